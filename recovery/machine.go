package recovery

import (
	"encoding/json"
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Machine is the QEMU that a failover starts. It is not our child: it has a session
// of its own and outlives us, and another life of ours finds it again. A service
// manager that ends all processes of a service (systemd: anything but
// KillMode=process) would take it along.
//
// In Args stand for
//
//	{dir} {name} {qmp} {qmp2} {serial}  its directory, name, two QMP sockets, serial file
//	{agent}                             a socket for the guest agent's channel
//	{disk:VOLUME}                       the value of -blockdev that makes VOLUME a node
//	{uri:VOLUME}                        where VOLUME is served, as an NBD URI
//	{KEY}                               Vars[KEY]
//
// A -device that attaches one of these nodes gets werror=stop,rerror=stop unless it
// says otherwise: when we are away the guest must stand still, not see errors.
type Machine struct {
	Name   string            `json:"name"`
	Binary string            `json:"binary"`          // QEMU, or what becomes it by exec
	Disks  []MachineDisk     `json:"disks,omitempty"` // made nodes before Args, in this order
	Args   []string          `json:"args"`
	Vars   map[string]string `json:"vars,omitempty"`
	// Dir is the machine's own directory, made with mode 0700. Its path is short: that
	// of a socket in it has at most 107 bytes.
	Dir string `json:"dir"`
	// Ready is how long QEMU may take until it runs; default 30 s.
	Ready time.Duration `json:"ready,omitempty"`
	// Host, where there is one, runs the machine in our place: then Binary and Args
	// are not used, and a disk's ID is the target that Host knows it by.
	Host Host `json:"-"`
	// UUID is that of a machine which Host had before us; else it lies in Dir.
	UUID string `json:"-"`
	// Reconnect is how long the disks wait for an NBD server that went away; default a day.
	Reconnect time.Duration `json:"reconnect,omitempty"`
	// Besides start with it, or none does (besides.go).
	Besides []Companion `json:"besides,omitempty"`
	// Starting is called before the first of several is started, once all can start; where
	// it fails none is. It may be nil.
	Starting func() error `json:"-"`
}

// MachineDisk makes a volume the block node ID.
type MachineDisk struct {
	Volume string `json:"volume"`
	ID     string `json:"id"`
}

func (m Machine) withDefaults() Machine {
	if m.Ready == 0 {
		m.Ready = 30 * time.Second
	}
	if m.Reconnect == 0 {
		m.Reconnect = 24 * time.Hour
	}
	return m
}

func (m Machine) qmp() string  { return filepath.Join(m.Dir, "qmp.sock") }
func (m Machine) qmp2() string { return filepath.Join(m.Dir, "qmp2.sock") }
func (m Machine) qmp3() string { return filepath.Join(m.Dir, "qmp3.sock") }
func (m Machine) serial() string {
	if m.Host != nil {
		return m.Host.Console()
	}
	return filepath.Join(m.Dir, "serial.log")
}
func (m Machine) agent() string   { return filepath.Join(m.Dir, "agent.sock") }
func (m Machine) pidFile() string { return filepath.Join(m.Dir, "qemu.pid") }
func (m Machine) logFile() string { return filepath.Join(m.Dir, "qemu.log") }

// ours are options that would take the machine out of our hands.
var ours = []string{"daemonize", "pidfile", "S", "incoming", "snapshot"}

var (
	nodeName    = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]{0,30}$`)
	blank       = regexp.MustCompile(`\{[A-Za-z0-9]+(:[^{}:"]+)?\}`)
	driveOption = regexp.MustCompile(`(^|,)drive=([^,]+)`)
	guestDisk   = regexp.MustCompile(`^(virtio-blk|scsi-hd|ide-hd|usb-storage)`)
)

func (m Machine) validate() error {
	if len(m.Besides) > 0 {
		for _, one := range m.Each() {
			if err := one.validate(); err != nil {
				return err
			}
		}
		return m.distinct()
	}
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: machine %q: %s", ErrMachine, m.Name, fmt.Sprintf(format, args...))
	}
	switch {
	case m.Name == "" || strings.ContainsAny(m.Name, ",/"):
		return bad("its name is empty or has a comma or slash")
	case m.Binary == "" && m.Host == nil:
		return bad("it names no program")
	case !filepath.IsAbs(m.Dir) || strings.Contains(m.Dir, ","):
		return bad("directory %q is not absolute or has a comma", m.Dir)
	case len(m.qmp2()) > 107:
		return bad("the path of socket %s is longer than 107 bytes", m.qmp2())
	}
	for _, d := range m.Disks {
		if !nodeName.MatchString(d.ID) {
			return bad("%q cannot be a block node's name", d.ID)
		}
	}
	for _, a := range m.Args {
		if name := strings.TrimLeft(a, "-"); name != a && slices.Contains(ours, name) {
			return bad("option %s is not for a definition", a)
		}
	}
	return nil
}

// Argv is the command line, the program first. uris says where each volume is
// served: nbd+unix:///EXPORT?socket=PATH or nbd://HOST:PORT/EXPORT, or which local file
// it is: file:///PATH. It is pure.
func (m Machine) Argv(uris map[string]string, uuid string) ([]string, error) {
	m = m.withDefaults()
	if err := m.validate(); err != nil {
		return nil, err
	}
	argv := []string{m.Binary}
	given := strings.Join(m.Args, " ")
	if !slices.Contains(m.Args, "-name") {
		argv = append(argv, "-name", m.Name)
	}
	if !slices.Contains(m.Args, "-uuid") {
		argv = append(argv, "-uuid", uuid)
	}
	argv = append(argv, "-pidfile", m.pidFile())
	for _, name := range []string{"qmp", "qmp2"} {
		if !strings.Contains(given, "{"+name+"}") {
			argv = append(argv, "-qmp", "unix:{"+name+"},server=on,wait=off")
		}
	}
	argv = append(argv, "-qmp", "unix:"+m.qmp3()+",server=on,wait=off")
	nodes := make([]string, 0, len(m.Disks))
	for _, d := range m.Disks {
		argv = append(argv, "-blockdev", "{disk:"+d.Volume+"}")
		nodes = append(nodes, d.ID)
	}
	argv = append(argv, m.Args...)
	for i, a := range argv {
		var err error
		argv[i] = blank.ReplaceAllStringFunc(a, func(hole string) string {
			text, ok, perr := m.fill(hole[1:len(hole)-1], uris)
			if perr != nil {
				err = perr
			}
			if !ok {
				return hole
			}
			if volume, isDisk := strings.CutPrefix(hole, "{disk:"); isDisk {
				nodes = append(nodes, m.nodeOf(strings.TrimSuffix(volume, "}")))
			}
			return text
		})
		if err != nil {
			return nil, err
		}
	}
	for i := 1; i < len(argv); i++ {
		if argv[i-1] == "-device" {
			argv[i] = stopOnError(argv[i], nodes)
		}
	}
	return argv, nil
}

// fill is what stands for a blank; ok is false for text that is none.
func (m Machine) fill(name string, uris map[string]string) (text string, ok bool, err error) {
	fixed := map[string]string{"dir": m.Dir, "name": m.Name, "qmp": m.qmp(), "qmp2": m.qmp2(), "serial": m.serial(), "agent": m.agent()}
	if text, ok = fixed[name]; ok {
		return text, true, nil
	}
	if text, ok = m.Vars[name]; ok {
		return text, true, nil
	}
	kind, volume, found := strings.Cut(name, ":")
	if !found || kind != "disk" && kind != "uri" {
		return "", false, nil
	}
	uri, ok := uris[volume]
	if !ok {
		return "", false, fmt.Errorf("%w: machine %q: volume %q is not served", ErrMachine, m.Name, volume)
	}
	if kind == "uri" {
		return uri, true, nil
	}
	text, err = m.blockdev(volume, uri)
	return text, true, err
}

// nodeOf is the block node's name of a volume.
func (m Machine) nodeOf(volume string) string {
	for _, d := range m.Disks {
		if d.Volume == volume {
			return d.ID
		}
	}
	return volume
}

// FileURI is the URI of a raw file or block device of this host that is a volume, in
// place of one that tells where it is served.
func FileURI(path string) string { return (&url.URL{Scheme: "file", Path: path}).String() }

// Node is the block node of a volume in the machine that no Host runs.
func (m Machine) Node(volume string) string { return m.nodeOf(volume) }

// Monitors are the machine's two QMP sockets: one that is asked now and then, and one
// that is kept by whoever taps the machine. One that Host runs has none.
func (m Machine) Monitors() (own, tap string) { return m.qmp(), m.qmp2() }

// WatchdogMonitor is a third QMP socket of the machine, for the watchdog process alone: a
// socket answers one client at a time, and that one has to be there when the tap's hangs.
func (m Machine) WatchdogMonitor() string { return m.qmp3() }

// blockdev is the value of -blockdev for a volume (QEMU QAPI, BlockdevOptionsNbd and
// BlockdevOptionsFile).
func (m Machine) blockdev(volume, uri string) (string, error) {
	node := m.nodeOf(volume)
	if !nodeName.MatchString(node) {
		return "", fmt.Errorf("%w: machine %q: %q cannot be a block node's name", ErrMachine, m.Name, node)
	}
	u, err := url.Parse(uri)
	if err != nil {
		return "", fmt.Errorf("%w: machine %q: volume %s: %w", ErrMachine, m.Name, volume, err)
	}
	if u.Scheme == "file" && u.Host == "" && filepath.IsAbs(u.Path) {
		file := map[string]any{"driver": "file", "filename": u.Path, "discard": "unmap"}
		raw := map[string]any{"driver": "raw", "node-name": node, "discard": "unmap", "file": file}
		if u.Query().Has("device") {
			size, err := strconv.ParseInt(u.Query().Get("size"), 10, 64)
			if err != nil {
				return "", fmt.Errorf("%w: machine %q: volume %s: %w", ErrMachine, m.Name, volume, err)
			}
			file["driver"], raw["size"] = "host_device", size
		}
		b, err := json.Marshal(raw)
		return string(b), err
	}
	server := map[string]any{"type": "inet", "host": u.Hostname(), "port": u.Port()}
	switch {
	case u.Scheme == "nbd+unix" && u.Query().Get("socket") != "":
		server = map[string]any{"type": "unix", "path": u.Query().Get("socket")}
	case u.Scheme != "nbd" || u.Hostname() == "":
		return "", fmt.Errorf("%w: machine %q: volume %s: %q is no NBD URI", ErrMachine, m.Name, volume, uri)
	case u.Port() == "":
		server["port"] = "10809"
	}
	b, err := json.Marshal(map[string]any{
		"driver": "nbd", "node-name": node, "server": server, "export": strings.TrimPrefix(u.Path, "/"),
		"reconnect-delay": int64(m.Reconnect / time.Second), "discard": "unmap",
	})
	return string(b), err
}

// stopOnError completes a -device that attaches one of nodes.
func stopOnError(device string, nodes []string) string {
	d := driveOption.FindStringSubmatch(device)
	if d == nil || !slices.Contains(nodes, d[2]) || !guestDisk.MatchString(device) {
		return device
	}
	for _, o := range []string{"werror", "rerror"} {
		if !strings.Contains(device, o+"=") {
			device += "," + o + "=stop"
		}
	}
	return device
}
