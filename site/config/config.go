package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/novacron/afterimage/site/fault"
)

// Config is one site. Paths are absolute after Load; relative ones are taken
// from the directory of the file.
type Config struct {
	Site    string      `yaml:"site"`              // this site's name, told to peers
	Data    string      `yaml:"data"`              // directory of the journals and the key
	Key     string      `yaml:"key,omitempty"`     // file of the private key; default DATA/site.key
	Control string      `yaml:"control,omitempty"` // unix socket of the control API; default DATA/control.sock
	Listen  string      `yaml:"listen,omitempty"`  // UDP address for peers; none: this site only dials
	NBD     string      `yaml:"nbd,omitempty"`     // unix socket of the exports GROUP/VOLUME; default DATA/nbd.sock
	Metrics string      `yaml:"metrics,omitempty"` // TCP address of /metrics; none: no metrics
	Peers   []Peer      `yaml:"peers,omitempty"`
	Keys    []TenantKey `yaml:"keys,omitempty"` // that seal the groups of tenants
	Groups  []Group     `yaml:"groups,omitempty"`

	Runbooks *Runbooks `yaml:"runbooks,omitempty"`
	Witness  *Witness  `yaml:"witness,omitempty"` // of failovers that nobody decides on; none: a person decides
}

// Peer is another site.
type Peer struct {
	Name    string `yaml:"name"`
	Address string `yaml:"address,omitempty"` // none: it dials us
	Pin     string `yaml:"pin,omitempty"`     // none: not paired yet, nothing is sent or taken
	Limit   Bytes  `yaml:"limit,omitempty"`   // bytes per second sent to it; 0: no limit
	BWLimit string `yaml:"bwlimit,omitempty"` // in its place a timetable of them, in rclone's notation
	TZ      string `yaml:"tz,omitempty"`      // whose hours those are; default this machine's
	Hold    *Hold  `yaml:"hold,omitempty"`    // history that is kept for it while it lags

	Transport   string `yaml:"transport,omitempty"`   // auto (default): quic, and tls where UDP does not get through; quic; tls
	Connections Count  `yaml:"connections,omitempty"` // that a session with it uses at most; how many help is found out; default 128

	Coalesce *Coalesce `yaml:"coalesce,omitempty"` // none: it gets every record that is left
	Pack     string    `yaml:"pack,omitempty"`     // auto (default): frames are packed on their way where that pays; off; always
}

// Role is what a site is to a group.
type Role string

// Roles that a configuration may name.
const (
	Primary Role = "primary" // captures
	Replica Role = "replica" // receives
)

// Sync is the promise behind an answered write.
type Sync string

// Modes of Sync.
const (
	SyncProcess Sync = "process" // survives our process
	SyncPower   Sync = "power"   // survives the machine
)

// Group is the volumes that are recovered to one instant.
type Group struct {
	Name        string       `yaml:"name"`
	Tenant      string       `yaml:"tenant,omitempty"`
	Role        Role         `yaml:"role,omitempty"` // at the first start; afterwards the durable role rules
	Sync        Sync         `yaml:"sync,omitempty"`
	Key         string       `yaml:"key,omitempty"`         // of the tenant: what is recorded is sealed with it; none: this site does neither seal nor read what is sealed
	Compress    Compress     `yaml:"compress,omitempty"`    // when payloads are packed
	History     []Rung       `yaml:"history,omitempty"`     // which points are kept how long; default DefaultHistory
	Lock        Duration     `yaml:"lock,omitempty"`        // nothing younger is thinned by anybody, quota or not
	Quota       Bytes        `yaml:"quota,omitempty"`       // of the journal on disk; 0: none
	Warn        []Percent    `yaml:"warn,omitempty"`        // parts of the quota at which status warns
	Maintenance *Maintenance `yaml:"maintenance,omitempty"` // when and how fast history is thinned
	Verify      *Verify      `yaml:"verify,omitempty"`      // when and how fast the journal is scrubbed; default Scrubs
	StallBudget Duration     `yaml:"stall_budget,omitempty"`
	RPO         Duration     `yaml:"rpo,omitempty"` // objective, shown by status
	Peers       []string     `yaml:"peers,omitempty"`
	Relay       []string     `yaml:"relay,omitempty"`    // of the peers: who gets from this site what it receives, while it is a replica
	Priority    Count        `yaml:"priority,omitempty"` // its share of a link beside other groups: one of 4 gets twice what one of 2 gets; default 1
	BWLimit     string       `yaml:"bwlimit,omitempty"`  // of what is sent of it to all peers together, in rclone's notation
	TZ          string       `yaml:"tz,omitempty"`
	Volumes     []Volume     `yaml:"volumes,omitempty"`
	QEMU        *QEMU        `yaml:"qemu,omitempty"`
	Libvirt     *Libvirt     `yaml:"libvirt,omitempty"`
	Machines    []Captured   `yaml:"machines,omitempty"` // in place of one qemu: or libvirt:, several
	Capture     *Capture     `yaml:"capture,omitempty"`  // of the machine; default per write
	Quiesce     *Quiesce     `yaml:"quiesce,omitempty"`  // for application-consistent marks
	Detect      *Detect      `yaml:"detect,omitempty"`   // of writes that seem to encrypt a volume from within
	Machine     *Machine     `yaml:"machine,omitempty"`
	Boot        Boot         `yaml:"boot,omitempty"`       // who starts the domain after its host: libvirt (default) or ask
	Fence       *Fence       `yaml:"fence,omitempty"`      // how a failover to here proves that the old machine is off; none: it does not
	Failover    FailoverMode `yaml:"failover,omitempty"`   // who decides on one: manual (default) or auto, with a witness
	Objectives  *Objectives  `yaml:"objectives,omitempty"` // missed ones are told by status
	Drill       *Drill       `yaml:"drill,omitempty"`      // overdue ones are told by status
}

// Ref is TENANT/NAME, the group's full name.
func (g Group) Ref() string { return g.Tenant + "/" + g.Name }

// Volume is one disk. At a replica it may be left out: the history brings it.
type Volume struct {
	Name     string      `yaml:"name"`
	Size     Bytes       `yaml:"size"`
	Embedded *Embedded   `yaml:"embedded,omitempty"`
	QEMU     *Disk       `yaml:"qemu,omitempty"`
	Libvirt  *DomainDisk `yaml:"libvirt,omitempty"`
	Machine  string      `yaml:"machine,omitempty"` // which of the group's machines: has it
}

// Embedded is a disk that this site serves from an image file.
type Embedded struct {
	Image string `yaml:"image"`
}

// Disk is a disk of the tapped machine.
type Disk struct {
	Node string `yaml:"node"` // node name of the block graph, above the format
}

// QEMU is the machine whose disks are tapped.
type QEMU struct {
	QMP      string `yaml:"qmp"`                    // socket that capture uses alone
	Watchdog string `yaml:"watchdog_qmp,omitempty"` // second socket, for the watchdog process alone
	// NBD is the unix socket of the NBD server that the machine runs already, for it
	// can have one only. None: capture runs one while it reads.
	NBD string `yaml:"nbd,omitempty"`
}

// Machine is what a failover starts here.
type Machine struct {
	Name   string        `yaml:"name"`
	Binary string        `yaml:"binary"`
	Disks  []MachineDisk `yaml:"disks"`
	Args   []string      `yaml:"args,omitempty"`
	Ready  Duration      `yaml:"ready,omitempty"` // how long QEMU may take until it runs
	Health *Health       `yaml:"health,omitempty"`
	// Libvirt has libvirtd run it; then there are no Binary and no Args.
	Libvirt *MachineLibvirt `yaml:"libvirt,omitempty"`
	// Besides are the other machines of the group: all of them start, or none.
	Besides []Machine `yaml:"besides,omitempty"`
}

// Health is how the machine tells that it is up: by a line on its serial console,
// which Args must have written (-serial file:{serial}), or by its guest agent.
type Health struct {
	Prefix  string   `yaml:"prefix"`
	By      HealthBy `yaml:"by,omitempty"`
	Timeout Duration `yaml:"timeout,omitempty"`
}

// HealthBy is who says that a machine is up.
type HealthBy string

// Values of HealthBy; none is the console.
const (
	ByConsole HealthBy = "console"
	ByAgent   HealthBy = "agent"
)

// UnmarshalText accepts the values.
func (b *HealthBy) UnmarshalText(text []byte) error {
	switch v := HealthBy(text); v {
	case ByConsole, ByAgent:
		*b = v
		return nil
	}
	return fmt.Errorf("by %q is not understood: want console or agent", text)
}

// MachineDisk makes a volume, served by this site, the block node ID of the
// machine. For each the machine gets
//
//	-blockdev driver=nbd,node-name=ID,server.type=unix,server.path=…,export=…
//
// before Args, which attach the node to a device (errors stop the guest there
// unless Args say otherwise):
//
//	-device virtio-blk-pci,drive=ID
//
// In Args {dir}, {name}, {qmp}, {qmp2}, {serial} and {nbd} stand for the machine's
// directory, its name, its two QMP sockets, a file for its serial port and this
// site's NBD socket, {uri:VOLUME} and {disk:VOLUME} for where a volume is served
// (recovery.Machine).
type MachineDisk struct {
	Volume string `yaml:"volume"`
	ID     string `yaml:"id"`
}

// Group finds a group by NAME or TENANT/NAME.
func (c *Config) Group(name string) (Group, error) {
	var found []Group
	for _, g := range c.Groups {
		if g.Ref() == name || g.Name == name {
			found = append(found, g)
		}
	}
	switch len(found) {
	case 0:
		return Group{}, fault.New(fault.GroupUnknown, "find group "+name, "this site has no group of that name")
	case 1:
		return found[0], nil
	}
	return Group{}, fault.New(fault.GroupAmbiguous, "find group "+name, "%s and %s both have that name", found[0].Ref(), found[1].Ref())
}

// Peer finds a peer by name.
func (c *Config) Peer(name string) (Peer, bool) {
	for _, p := range c.Peers {
		if p.Name == name {
			return p, true
		}
	}
	return Peer{}, false
}

// Load reads, completes and judges the file at path. Faults of its content are
// *Problems; a file that cannot be read is a fault of code ConfigMissing.
func Load(path string) (*Config, error) {
	text, err := read(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, text)
}

// LoadAsWritten is Load without what the file leaves out: it judges the file but
// fills in no defaults and leaves relative paths alone.
func LoadAsWritten(path string) (*Config, error) {
	text, err := read(path)
	if err != nil {
		return nil, err
	}
	if _, err := Parse(path, text); err != nil {
		return nil, err
	}
	c := new(Config)
	return c, decode(text, c)
}

func read(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		why := err.Error()
		if errors.Is(err, fs.ErrNotExist) {
			why = "there is no such file"
		}
		return nil, &fault.Error{Code: fault.ConfigMissing, What: "read configuration " + path, Why: why, Err: err}
	}
	return text, nil
}

// Parse is Load for text that was read already; path is what problems name and
// what relative paths start from.
func Parse(path string, text []byte) (*Config, error) {
	root, problems := parse(path, text)
	if problems != nil {
		return nil, problems
	}
	s := &shape{path: path, text: text, places: map[string]place{}}
	c := new(Config)
	s.walk(root, typeOf(c), "")
	if len(s.problems) > 0 {
		return nil, s.sorted()
	}
	if err := decode(text, c); err != nil {
		return nil, s.undecodable(err)
	}
	c.complete(path)
	s.check(c)
	if len(s.problems) > 0 {
		return nil, s.sorted()
	}
	return c, nil
}

// Bytes is a size: a number of bytes, or one with KiB, MiB, GiB or TiB.
type Bytes int64

var units = []struct {
	suffix string
	bytes  Bytes
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

// String is the largest unit that divides b.
func (b Bytes) String() string {
	for _, u := range units {
		if b != 0 && b%u.bytes == 0 && u.bytes > 1 {
			return fmt.Sprintf("%d%s", b/u.bytes, u.suffix)
		}
	}
	return fmt.Sprintf("%d", int64(b))
}

// MarshalText is String.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// Duration is a time span in Go's notation, with days, weeks and years: 500ms, 30s,
// 5m, 1h, 7d, 2w.
type Duration time.Duration

// String is the shortest of that.
func (d Duration) String() string { return spanString(time.Duration(d)) }

// MarshalText is String.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }
