package domain

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	tapped "github.com/novacron/afterimage/cbt/libvirt"
	"github.com/novacron/afterimage/cbt/qemu"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/recovery/libvirt"
)

// Runner runs one machine as a domain of libvirtd's, from its journaled definition: it
// is the recovery.Host of that machine. Every call has a connection of its own, so
// that a libvirtd which was restarted is no trouble.
type Runner struct {
	URI  string
	Name string // of the domain here
	// Definition is the domain's XML as of the point; it is asked when the machine is
	// started.
	Definition func(ctx context.Context) (string, error)
	// NVRAM is what the firmware remembered at the point; nil: that is not known. It is
	// put beside the console's file, and is the machine's own from then on.
	NVRAM    func(ctx context.Context) ([]byte, error)
	Owner    int               // user id that the file is given to; 0: nobody else
	Targets  map[string]string // a volume's disk: vda, sda, …
	Networks map[string]libvirt.Network
	MACs     map[string]string
	Log      string // the file that the first serial port is written to
	DrillLog string // that of a drill
	Private  string // the network of drills; "": their cards are unplugged
	// Socket is where the machine reaches its disks, and no other machine of its UUID does:
	// by both a domain that was renamed is known. "": it is known by its name alone.
	Socket string
	// Own says that the domain is its owner's, with disks of its own: it is started and
	// stopped as it is defined, and never defined or forgotten.
	Own bool
	// Pictures is a directory that QEMU may write to; default that of Log.
	Pictures string

	drill bool
}

var _ recovery.Host = (*Runner)(nil)

// Isolated implements recovery.Host.
func (r *Runner) Isolated(name string) recovery.Host {
	out := *r
	out.Name, out.Log, out.Socket, out.drill = name, r.DrillLog, "", true
	return &out
}

// Console implements recovery.Host.
func (r *Runner) Console() string { return r.Log }

// Identify implements recovery.Host: the definition's own UUID, by which guests are
// licensed and inventories know them; a drill's is new.
func (r *Runner) Identify(ctx context.Context) (string, error) {
	if r.Own {
		return r.find(ctx)
	}
	if !r.drill {
		text, err := r.Definition(ctx)
		if err != nil {
			return "", err
		}
		if uuid, err := libvirt.UUIDOf(text); err != nil || uuid != "" {
			return uuid, err
		}
	}
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails on Linux
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]), nil
}

// find is the UUID of the domain that is called Name.
func (r *Runner) find(ctx context.Context) (string, error) {
	h, err := libvirt.Connect(ctx, r.URI)
	if err != nil {
		return "", err
	}
	defer h.Close()
	m, err := h.Machine(ctx, r.Name)
	if err != nil {
		return "", err
	}
	return m.UUID, nil
}

// on calls f with the machine, whatever libvirtd calls it by now; one that is not there is
// recovery.ErrNotRunning, and one of its name that is another is recovery.ErrWrongMachine.
func (r *Runner) on(ctx context.Context, uuid string, f func(h *libvirt.Host, m *libvirt.Machine) error) error {
	h, err := libvirt.Connect(ctx, r.URI)
	if err != nil {
		return err
	}
	defer h.Close()
	name := r.Name
	if r.Own {
		name = uuid // it may have been renamed
	}
	m, err := h.Machine(ctx, name)
	if errors.Is(err, tapped.ErrNoDomain) || err == nil && !strings.EqualFold(m.UUID, uuid) {
		switch x, rerr := r.renamed(ctx, h, uuid); {
		case rerr != nil:
			return rerr
		case x != nil:
			m, err = x, nil
		}
	}
	switch {
	case errors.Is(err, tapped.ErrNoDomain):
		return fmt.Errorf("%w: %s", recovery.ErrNotRunning, r.Name)
	case err != nil:
		return err
	case !strings.EqualFold(m.UUID, uuid):
		return fmt.Errorf("%w: domain %s has UUID %s, not %s", recovery.ErrWrongMachine, r.Name, m.UUID, uuid)
	}
	return f(h, m)
}

// renamed is the machine under another name than ours; nil: there is none. A domain of its
// UUID that has no disk of it is somebody else's: that from which it was made.
func (r *Runner) renamed(ctx context.Context, h *libvirt.Host, uuid string) (*libvirt.Machine, error) {
	if r.Socket == "" || r.Own {
		return nil, nil
	}
	m, err := h.Machine(ctx, uuid)
	if errors.Is(err, tapped.ErrNoDomain) || err == nil && (!strings.EqualFold(m.UUID, uuid) || m.Name == r.Name) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	text, err := m.Definition(ctx)
	switch {
	case errors.Is(err, tapped.ErrNoDomain): // it went meanwhile
		return nil, nil
	case err != nil:
		return nil, err
	case !libvirt.Reaches(text, r.Socket):
		return nil, nil
	}
	return m, nil
}

// Called is the name that libvirtd has for the machine.
func (r *Runner) Called(ctx context.Context, uuid string) (name string, err error) {
	err = r.on(ctx, uuid, func(_ *libvirt.Host, m *libvirt.Machine) error { name = m.Name; return nil })
	return name, err
}

// GoOn resumes the machine where a disk failed it; one that does not run is
// recovery.ErrNotRunning.
func (r *Runner) GoOn(ctx context.Context, uuid string) (resumed bool, err error) {
	err = r.on(ctx, uuid, func(_ *libvirt.Host, m *libvirt.Machine) (err error) {
		resumed, err = m.GoOn(ctx)
		return err
	})
	return resumed, err
}

func off(s tapped.State) bool { return s == tapped.StateOff || s == tapped.StateCrashed }

// Find implements recovery.Host.
func (r *Runner) Find(ctx context.Context, uuid string) error {
	return r.on(ctx, uuid, func(_ *libvirt.Host, m *libvirt.Machine) error {
		s, err := m.State(ctx)
		if err == nil && off(s) {
			err = fmt.Errorf("%w: domain %s is %s", recovery.ErrNotRunning, r.Name, s)
		}
		return err
	})
}

// CanStart implements recovery.Host.
func (r *Runner) CanStart(ctx context.Context, uuid string, uris map[string]string) error {
	text := ""
	if !r.Own {
		var err error
		if text, err = r.rewritten(ctx, uuid, uris); err != nil {
			return err
		}
	}
	if r.Own {
		return r.on(ctx, uuid, func(*libvirt.Host, *libvirt.Machine) error { return nil })
	}
	h, err := libvirt.Connect(ctx, r.URI)
	if err != nil {
		return err
	}
	defer h.Close()
	ours, err := r.renamed(ctx, h, uuid)
	if err != nil {
		return err
	}
	for _, key := range []string{r.Name, uuid} {
		switch m, err := h.Machine(ctx, key); {
		case errors.Is(err, tapped.ErrNoDomain) || err == nil && ours != nil && m.Name == ours.Name:
		case err != nil:
			return err
		case m.Name != r.Name || !strings.EqualFold(m.UUID, uuid):
			return fmt.Errorf("%w: domain %s has UUID %s, and machine %s is %s", recovery.ErrWrongMachine, m.Name, m.UUID, r.Name, uuid)
		}
	}
	return h.Connects(ctx, text)
}

// Start implements recovery.Host. A definition of ours whose machine does not run is
// of an earlier try, or its guest has switched itself off: it is made anew.
func (r *Runner) Start(ctx context.Context, uuid string, uris map[string]string) error {
	if r.Own {
		return r.on(ctx, uuid, func(_ *libvirt.Host, m *libvirt.Machine) error { return m.Create(ctx) })
	}
	text, err := r.rewritten(ctx, uuid, uris)
	if err != nil {
		return err
	}
	err = r.on(ctx, uuid, func(_ *libvirt.Host, m *libvirt.Machine) error {
		if err := r.keepNVRAM(); err != nil { // its guest may have changed them
			return err
		}
		return m.Undefine(ctx)
	})
	if err != nil && !errors.Is(err, recovery.ErrNotRunning) {
		return err
	}
	if err := r.putNVRAM(ctx); err != nil {
		return err
	}
	h, err := libvirt.Connect(ctx, r.URI)
	if err != nil {
		return err
	}
	defer h.Close()
	_, err = h.Start(ctx, text)
	switch {
	case errors.Is(err, libvirt.ErrTaken):
		return fmt.Errorf("%w: %w", recovery.ErrWrongMachine, err)
	case err != nil:
		return err
	}
	_ = os.Remove(r.keptNVRAM()) // one that stays is older than the file of a domain that is defined
	return nil
}

// rewritten is the definition of the machine to be run here.
func (r *Runner) rewritten(ctx context.Context, uuid string, uris map[string]string) (string, error) {
	text, err := r.Definition(ctx)
	if err != nil {
		return "", err
	}
	vars, err := r.remembered(ctx)
	if err != nil {
		return "", err
	}
	path := ""
	if vars != nil {
		path = r.nvram()
	}
	e := libvirt.Edit{NVRAM: path, Name: r.Name, UUID: uuid, Disks: map[string]libvirt.Export{}, Networks: r.Networks, MACs: r.MACs, Console: r.Log, Isolate: r.drill, Private: r.Private}
	for volume, target := range r.Targets {
		x, err := exportAt(uris[volume])
		if err != nil {
			return "", fmt.Errorf("%w: volume %s: %w", recovery.ErrMachine, volume, err)
		}
		e.Disks[target] = x
	}
	text, err = libvirt.Rewrite(text, e)
	if err != nil {
		return "", fmt.Errorf("%w: %w", recovery.ErrMachine, err)
	}
	return text, nil
}

// exportAt takes an NBD URI of a unix socket apart (NBD, uri.md).
func exportAt(uri string) (libvirt.Export, error) {
	u, err := url.Parse(uri)
	if err != nil || u.Scheme != "nbd+unix" || u.Query().Get("socket") == "" {
		return libvirt.Export{}, fmt.Errorf("it is served at %q, which is no unix socket", uri)
	}
	return libvirt.Export{Socket: u.Query().Get("socket"), Name: strings.TrimPrefix(u.Path, "/")}, nil
}

// End implements recovery.Host.
func (r *Runner) End(ctx context.Context, uuid string) error {
	err := r.on(ctx, uuid, func(_ *libvirt.Host, m *libvirt.Machine) error {
		if err := m.Stop(ctx); err != nil || r.Own {
			return err
		}
		return m.Undefine(ctx)
	})
	if err != nil && !errors.Is(err, recovery.ErrNotRunning) {
		return err
	}
	return r.dropNVRAM()
}

// Powerdown implements recovery.Host.
func (r *Runner) Powerdown(ctx context.Context, uuid string) error {
	return r.on(ctx, uuid, func(_ *libvirt.Host, m *libvirt.Machine) error { return m.Powerdown(ctx) })
}

// Agent implements recovery.Host.
func (r *Runner) Agent(ctx context.Context, uuid, command string, arguments map[string]any, result any) error {
	in := map[string]any{"execute": command}
	if arguments != nil {
		in["arguments"] = arguments
	}
	text, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", qemu.ErrAgent, command, err)
	}
	var out string
	err = r.on(ctx, uuid, func(_ *libvirt.Host, m *libvirt.Machine) (err error) {
		out, err = m.Agent(ctx, command, string(text))
		return err
	})
	if err != nil {
		return fmt.Errorf("%w: %w", qemu.ErrAgent, err)
	}
	var answer struct {
		Return json.RawMessage `json:"return"`
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		return fmt.Errorf("%w: %s: %w", qemu.ErrAgent, command, err)
	}
	if err := json.Unmarshal(answer.Return, result); err != nil {
		return fmt.Errorf("%w: %s: %w", qemu.ErrAgent, command, err)
	}
	return nil
}

// Screenshot implements recovery.Host.
func (r *Runner) Screenshot(ctx context.Context, uuid string) ([]byte, error) {
	var picture []byte
	err := r.on(ctx, uuid, func(_ *libvirt.Host, m *libvirt.Machine) error {
		text, err := m.Definition(ctx)
		if err == nil && !libvirt.HasScreen(text) {
			err = recovery.ErrNoScreen
		}
		if err == nil {
			picture, err = r.picture(ctx, m)
		}
		return err
	})
	if err != nil || bytes.HasPrefix(picture, []byte("\x89PNG\r\n")) {
		return picture, err
	}
	return recovery.PNG(bytes.NewReader(picture))
}

// picture has QEMU write its screen beside the console's file: libvirt's own way goes
// through a stream, which the RPC client now and then reads as empty; it is asked where
// QEMU may not write there.
func (r *Runner) picture(ctx context.Context, m *libvirt.Machine) ([]byte, error) {
	dir := r.Pictures
	if dir == "" {
		dir = filepath.Dir(r.Log)
	}
	if r.Own && r.Pictures == "" {
		return m.Screenshot(ctx)
	}
	path := filepath.Join(dir, "screen.ppm")
	defer os.Remove(path)
	err := m.Execute(ctx, "screendump", map[string]any{"filename": path}, nil)
	if err == nil {
		return os.ReadFile(path)
	}
	picture, second := m.Screenshot(ctx)
	if second != nil {
		return nil, errors.Join(err, second)
	}
	return picture, nil
}

// Connect implements recovery.Host. A card is named by its place (net0 is the first
// one), its alias or its MAC address. "up" and "down" plug its cable; anything else is
// a network of the map, or of libvirt's. A drill's cards lead nowhere whatever is
// asked.
func (r *Runner) Connect(ctx context.Context, uuid, card, to string) error {
	if r.drill && to != "down" && (to != "up" || r.Private == "") {
		return nil // it is where a drill's card belongs
	}
	n, ok := r.Networks[to]
	if !ok {
		n = libvirt.Network{Network: to}
	}
	return r.on(ctx, uuid, func(_ *libvirt.Host, m *libvirt.Machine) error {
		if to == "up" || to == "down" {
			return m.SetLink(ctx, card, to)
		}
		return m.Plug(ctx, card, n)
	})
}
