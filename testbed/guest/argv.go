package guest

import (
	"encoding/json"
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
)

const qemuProgram = "qemu-system-x86_64"

// reconnectSeconds is how long QEMU waits for an NBD server to come back: these
// disks are served by us, and the guest stands still meanwhile.
const reconnectSeconds = 300

// Disk is one virtio disk of a guest: vda, vdb, … in order.
type Disk struct {
	// Path is a file, or nbd+unix:///EXPORT?socket=PATH, or nbd://HOST:PORT/EXPORT.
	Path string
	// Format is raw (also if empty) or qcow2.
	Format string
	// Node is the block node's name; if empty disk0, disk1, …
	Node string
	// Discard lets the guest's discards through to the file.
	Discard bool
}

// Config is a guest and the QEMU around it. Image, Accel and Dir must be set for
// Argv; Start fills Image and Accel in when they are zero.
type Config struct {
	Image     Image
	Accel     Accel
	Dir       string // holds the sockets; short, for a socket's path has at most 107 bytes
	Disks     []Disk
	MemoryMiB int      // default 256
	Orders    string   // obeyed at the start, separated by ';'
	KernelLog bool     // the kernel's messages on the console too
	Extra     []string // further arguments of QEMU
}

// ConsolePath is the socket that QEMU connects its console to; the listener must be
// there first, or QEMU tries again every second.
func (c Config) ConsolePath() string { return filepath.Join(c.Dir, "console.sock") }

// QMPPath is one of the two QMP sockets that QEMU listens on: 0 or 1.
func (c Config) QMPPath(i int) string { return filepath.Join(c.Dir, fmt.Sprintf("qmp%d.sock", i)) }

// Argv is the command line of QEMU, the program first.
func Argv(c Config) ([]string, error) {
	memory := c.MemoryMiB
	if memory == 0 {
		memory = 256
	}
	cpu := "max"
	if c.Accel == KVM {
		cpu = "host"
	}
	argv := []string{
		qemuProgram, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "pc", "-accel", string(c.Accel), "-cpu", cpu, "-m", strconv.Itoa(memory),
		"-kernel", c.Image.Kernel, "-initrd", c.Image.Initrd, "-append", c.commandLine(),
		"-chardev", "socket,id=console,path=" + escape(c.ConsolePath()) + ",reconnect=1",
		"-serial", "chardev:console",
		"-qmp", "unix:" + escape(c.QMPPath(0)) + ",server=on,wait=off",
		"-qmp", "unix:" + escape(c.QMPPath(1)) + ",server=on,wait=off",
	}
	for i, d := range c.Disks {
		node := d.Node
		if node == "" {
			node = fmt.Sprintf("disk%d", i)
		}
		opts, device, err := d.options(node)
		if err != nil {
			return nil, err
		}
		argv = append(argv, "-blockdev", opts, "-device", device)
	}
	return append(argv, c.Extra...), nil
}

// KernelLine is what every guest's kernel is told: panic=-1 and -no-reboot turn a panic
// into QEMU's exit, and no_timer_check leaves out a test of the timer against a clock,
// which panics when an emulated guest is not let run ("IO-APIC + timer doesn't work").
const KernelLine = "console=ttyS0 panic=-1 no_timer_check"

func (c Config) commandLine() string {
	line := KernelLine + " "
	if !c.KernelLog {
		line += "quiet loglevel=1 "
	}
	return line + `afterimage="` + c.Orders + `"`
}

// options are the arguments of -blockdev and -device.
func (d Disk) options(node string) (blockdev, device string, err error) {
	format := d.Format
	if format == "" {
		format = "raw"
	}
	device = "virtio-blk-pci,drive=" + node + ",serial=" + node
	file := map[string]any{"driver": "file", "filename": d.Path}
	if strings.HasPrefix(d.Path, "nbd") && strings.Contains(d.Path, "://") {
		if file, err = nbdNode(d.Path); err != nil {
			return "", "", err
		}
		device += ",werror=stop,rerror=stop"
	}
	outer := map[string]any{"driver": format, "node-name": node, "file": file}
	if d.Discard {
		outer["discard"], file["discard"] = "unmap", "unmap"
	}
	b, err := json.Marshal(outer)
	return string(b), device, err
}

func nbdNode(uri string) (map[string]any, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return nil, err
	}
	server := map[string]any{"type": "inet", "host": u.Hostname(), "port": u.Port()}
	switch {
	case u.Scheme == "nbd+unix" && u.Query().Get("socket") != "":
		server = map[string]any{"type": "unix", "path": u.Query().Get("socket")}
	case u.Scheme != "nbd" || u.Host == "":
		return nil, fmt.Errorf("disk %q: want nbd+unix:///EXPORT?socket=PATH or nbd://HOST:PORT/EXPORT", uri)
	case u.Port() == "":
		server["port"] = "10809"
	}
	return map[string]any{
		"driver": "nbd", "server": server, "export": strings.TrimPrefix(u.Path, "/"),
		"reconnect-delay": reconnectSeconds,
	}, nil
}

// escape doubles commas, which separate QEMU's options.
func escape(path string) string { return strings.ReplaceAll(path, ",", ",,") }
