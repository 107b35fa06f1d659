package libvirt

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"slices"
	"strings"

	rpc "github.com/digitalocean/go-libvirt"

	"github.com/novacron/afterimage/cbt/qmp"
)

// State is what a domain does; the texts are virsh's.
type State string

// States of a domain.
const (
	StateRunning   State = "running"
	StateIdle      State = "idle"
	StatePaused    State = "paused"
	StateStopping  State = "in shutdown"
	StateOff       State = "shut off"
	StateCrashed   State = "crashed"
	StateSuspended State = "pmsuspended"
	StateUnknown   State = "no state"
)

var states = map[rpc.DomainState]State{
	rpc.DomainRunning: StateRunning, rpc.DomainBlocked: StateIdle, rpc.DomainPaused: StatePaused,
	rpc.DomainShutdown: StateStopping, rpc.DomainShutoff: StateOff, rpc.DomainCrashed: StateCrashed,
	rpc.DomainPmsuspended: StateSuspended,
}

// Domain is a machine that libvirtd knows.
type Domain struct {
	Name string
	UUID string // with dashes

	conn *Conn
	dom  rpc.Domain
}

// Domain finds a domain by name, or by UUID where no name fits.
func (c *Conn) Domain(ctx context.Context, name string) (*Domain, error) {
	var dom rpc.Domain
	err := c.Call(ctx, "look up domain "+name, func(l *rpc.Libvirt) (err error) {
		dom, err = l.DomainLookupByName(name)
		if rpc.IsNotFound(err) {
			if id, ok := parseUUID(name); ok {
				dom, err = l.DomainLookupByUUID(id)
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return c.Adopt(dom), nil
}

// Adopt makes a Domain of what an RPC call returned.
func (c *Conn) Adopt(dom rpc.Domain) *Domain {
	h := hex.EncodeToString(dom.UUID[:])
	uuid := strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
	return &Domain{Name: dom.Name, UUID: uuid, conn: c, dom: dom}
}

func parseUUID(s string) (id rpc.UUID, ok bool) {
	h := strings.ReplaceAll(s, "-", "")
	if hex.DecodedLen(len(h)) != len(id) {
		return id, false
	}
	_, err := hex.Decode(id[:], []byte(h))
	return id, err == nil
}

// RPC is what the RPC client calls d.
func (d *Domain) RPC() rpc.Domain { return d.dom }

// State asks what d does now.
func (d *Domain) State(ctx context.Context) (State, error) {
	var n int32
	err := d.conn.Call(ctx, "state of "+d.Name, func(l *rpc.Libvirt) (err error) {
		n, _, err = l.DomainGetState(d.dom, 0)
		return err
	})
	if err != nil {
		return "", err
	}
	if s, ok := states[rpc.DomainState(n)]; ok {
		return s, nil
	}
	return StateUnknown, nil
}

// StoppedByDisk asks whether d stands still because a disk failed it.
func (d *Domain) StoppedByDisk(ctx context.Context) (bool, error) {
	var state, reason int32
	err := d.conn.Call(ctx, "state of "+d.Name, func(l *rpc.Libvirt) (err error) {
		state, reason, err = l.DomainGetState(d.dom, 0)
		return err
	})
	if err != nil {
		return false, err // the call may still write
	}
	return rpc.DomainState(state) == rpc.DomainPaused && rpc.DomainPausedReason(reason) == rpc.DomainPausedIoerror, nil
}

// saved asks whether d's memory was saved, by virsh managedsave or when the host went down.
func (d *Domain) saved(ctx context.Context) (bool, error) {
	var n int32
	err := d.conn.Call(ctx, "saved memory of "+d.Name, func(l *rpc.Libvirt) (err error) {
		n, err = l.DomainHasManagedSaveImage(d.dom, 0)
		return err
	})
	if err != nil {
		return false, err // the call may still write
	}
	return n != 0, nil
}

// Definition is the XML that d would be defined with again, without secrets. A
// transient domain's carries aliases and indexes, which libvirt ignores there.
func (d *Domain) Definition(ctx context.Context) (string, error) {
	return d.xml(ctx, rpc.DomainXMLInactive)
}

// Live is the XML of d as it runs.
func (d *Domain) Live(ctx context.Context) (string, error) { return d.xml(ctx, 0) }

// Lying are the disks that d, which runs, has now, and where they lie.
func (d *Domain) Lying(ctx context.Context) ([]InspectedDisk, error) {
	live, err := d.Live(ctx)
	if err != nil {
		return nil, err
	}
	var in Inspection
	if err := in.read([]byte(live)); err != nil {
		return nil, fmt.Errorf("%w: definition of %s: %w", ErrReply, d.Name, err)
	}
	return in.Disks, nil
}

// Equipped is the definition with the disks that d has now: where others are plugged
// than are defined, it is what a migration would take along.
func (d *Domain) Equipped(ctx context.Context) (string, error) {
	defined, err := d.Definition(ctx)
	if err != nil {
		return "", err
	}
	live, err := d.xml(ctx, rpc.DomainXMLMigratable)
	if err != nil {
		return "", err
	}
	a, err := targets(defined)
	if err != nil {
		return "", fmt.Errorf("%w: definition of %s: %w", ErrReply, d.Name, err)
	}
	b, err := targets(live)
	if err != nil {
		return "", fmt.Errorf("%w: definition of %s: %w", ErrReply, d.Name, err)
	}
	if slices.Equal(a, b) {
		return defined, nil
	}
	return live, nil
}

// targets are those of a definition's disks, sorted.
func targets(text string) ([]string, error) {
	var def struct {
		Disks []definedDisk `xml:"devices>disk"`
	}
	err := xml.Unmarshal([]byte(text), &def)
	var out []string
	for _, k := range def.Disks {
		out = append(out, k.Target.Dev)
	}
	slices.Sort(out)
	return out, err
}

// NVRAM is the file in which a definition's firmware keeps its variables; "" if none.
func NVRAM(definition string) string {
	var def struct {
		Path string `xml:"os>nvram"`
	}
	if xml.Unmarshal([]byte(definition), &def) != nil {
		return ""
	}
	return strings.TrimSpace(def.Path)
}

func (d *Domain) xml(ctx context.Context, flags rpc.DomainXMLFlags) (string, error) {
	var text string
	err := d.conn.Call(ctx, "definition of "+d.Name, func(l *rpc.Libvirt) (err error) {
		text, err = l.DomainGetXMLDesc(d.dom, flags)
		return err
	})
	if err != nil {
		return "", err // the call may still write
	}
	return text, nil
}

// size is that of the disk with a target, in bytes.
func (d *Domain) size(ctx context.Context, target string) (int64, error) {
	var capacity uint64
	err := d.conn.Call(ctx, "size of "+target+" of "+d.Name, func(l *rpc.Libvirt) (err error) {
		_, capacity, _, err = l.DomainGetBlockInfo(d.dom, target, 0)
		return err
	})
	if err != nil {
		return 0, err // the call may still write
	}
	return int64(capacity), nil
}

// Execute runs a QMP command in d's QEMU by monitor passthrough, as a
// qmp.Client would; a refusal by QEMU is a *qmp.Error.
func (d *Domain) Execute(ctx context.Context, command string, args, result any) error {
	in := map[string]any{"execute": command}
	if args != nil {
		in["arguments"] = args
	}
	b, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("libvirt: marshal %s: %w", command, err)
	}
	var text string
	err = d.conn.Call(ctx, "monitor command "+command, func(l *rpc.Libvirt) (err error) {
		text, err = l.QEMUDomainMonitorCommand(d.dom, string(b), 0)
		return err
	})
	if err != nil {
		return err
	}
	var out struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Class string `json:"class"`
			Desc  string `json:"desc"`
		} `json:"error"`
	}
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		return fmt.Errorf("%w to %s: %w", ErrReply, command, err)
	}
	switch {
	case out.Error != nil:
		return &qmp.Error{Command: command, Class: out.Error.Class, Desc: out.Error.Desc}
	case out.Return == nil:
		return fmt.Errorf("%w to %s: neither return nor error", ErrReply, command)
	case result == nil:
		return nil
	}
	if err := json.Unmarshal(out.Return, result); err != nil {
		return fmt.Errorf("%w to %s: %w", ErrReply, command, err)
	}
	return nil
}
