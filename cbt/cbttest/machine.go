package cbttest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/cbt/qmp"
)

// DiskSpec is one disk of a Machine.
type DiskSpec struct {
	Name   string
	Bytes  int64
	Format string // raw (default) or qcow2
}

// Machine is a running qemu-storage-daemon, or a QEMU without a guest. Each disk
// is a node of its name, and an NBD export of that name is the guest's way to it.
type Machine struct {
	Dir     string // short enough for sockets
	QMP     string // for the tracker
	Spare   string // QMP, for a watchdog
	Own     *qmp.Client
	NBD     string // the socket of the guest's exports
	Disks   []DiskSpec
	Process *os.Process

	binary string
	cmd    *exec.Cmd
	gone   chan struct{}

	mu     sync.Mutex
	guests map[string]*nbd.Client // of Write, by disk
}

// Tool finds a program; without it the test fails in CI and is skipped elsewhere.
func Tool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") != "" || os.Getenv("AFTERIMAGE_TESTBED") == "1" {
			t.Fatalf("%s is needed: %v", name, err)
		}
		t.Skipf("%s is not installed", name)
	}
	return path
}

// StartStorageDaemon runs the disks in a qemu-storage-daemon. It has QEMU's
// block layer, but no yank.
func StartStorageDaemon(t testing.TB, disks ...DiskSpec) *Machine {
	t.Helper()
	return start(t, Tool(t, "qemu-storage-daemon"), disks)
}

// StartQEMU runs the disks in a QEMU that never starts its guest.
func StartQEMU(t testing.TB, disks ...DiskSpec) *Machine {
	t.Helper()
	return start(t, Tool(t, "qemu-system-x86_64"), disks)
}

func start(t testing.TB, binary string, disks []DiskSpec) *Machine {
	t.Helper()
	dir, err := os.MkdirTemp("", "ai")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m := &Machine{
		Dir: dir, QMP: filepath.Join(dir, "q"), Spare: filepath.Join(dir, "w"), NBD: filepath.Join(dir, "n"),
		Disks: disks, binary: binary, guests: make(map[string]*nbd.Client),
	}
	for i, d := range disks {
		if d.Format == "qcow2" {
			run(t, Tool(t, "qemu-img"), "create", "-q", "-f", "qcow2", m.path(i), fmt.Sprint(d.Bytes))
		} else if f, err := os.Create(m.path(i)); err != nil {
			t.Fatal(err)
		} else {
			if err := f.Truncate(d.Bytes); err != nil {
				t.Fatal(err)
			}
			f.Close()
		}
	}
	m.Boot(t)
	t.Cleanup(func() { m.Kill() })
	return m
}

func run(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func (m *Machine) path(i int) string { return filepath.Join(m.Dir, m.Disks[i].Name+".img") }

// Boot starts the machine, again after Kill.
func (m *Machine) Boot(t testing.TB) {
	t.Helper()
	own := filepath.Join(m.Dir, "o")
	var args []string
	system := strings.Contains(filepath.Base(m.binary), "system")
	if system {
		args = []string{"-machine", "none", "-nodefaults", "-display", "none", "-S"}
	}
	for i, path := range []string{m.QMP, m.Spare, own} {
		ch := fmt.Sprintf("socket,id=c%d,server=on,wait=off,path=%s", i, path)
		if system {
			args = append(args, "-chardev", ch, "-mon", fmt.Sprintf("chardev=c%d,mode=control", i))
		} else {
			args = append(args, "--chardev", ch, "--monitor", fmt.Sprintf("chardev=c%d", i))
		}
	}
	dashes := "--"
	if system {
		dashes = "-"
	}
	for i, d := range m.Disks {
		format := d.Format
		if format == "" {
			format = "raw"
		}
		args = append(args, dashes+"blockdev", fmt.Sprintf("file,node-name=%s-file,filename=%s,discard=unmap", d.Name, m.path(i)),
			dashes+"blockdev", fmt.Sprintf("%s,node-name=%s,file=%s-file,discard=unmap", format, d.Name, d.Name))
	}
	m.cmd = exec.Command(m.binary, args...)
	var said bytes.Buffer
	m.cmd.Stderr = io.MultiWriter(&said, t.Output())
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	m.gone, m.Process = gone, m.cmd.Process
	cmd := m.cmd
	go func() {
		defer close(gone)
		cmd.Wait()
	}()
	ctx := Context(t, 20*time.Second)
	var err error
	for tick := time.NewTicker(5 * time.Millisecond); ; <-tick.C {
		if m.Own, err = qmp.Dial(ctx, own, qmp.Options{}); err == nil {
			break
		}
		select {
		case <-gone:
			t.Fatalf("%s ended: %s", m.binary, said.String())
		case <-ctx.Done():
			t.Fatalf("%s: no monitor: %v", m.binary, err)
		default:
		}
	}
	m.Do(t, "nbd-server-start", map[string]any{"addr": map[string]any{"type": "unix", "data": map[string]any{"path": m.NBD}}})
	for _, d := range m.Disks {
		m.Do(t, "block-export-add", map[string]any{"type": "nbd", "id": d.Name, "node-name": d.Name, "name": d.Name, "writable": true})
	}
}

// Kill ends the machine as a power loss would, and returns when it is gone.
func (m *Machine) Kill() {
	m.mu.Lock()
	clear(m.guests)
	m.mu.Unlock()
	m.Own.Close()
	m.Process.Kill()
	<-m.gone
}

// Quit ends the machine as one that was shut down ends: its images are closed.
func (m *Machine) Quit(t testing.TB) {
	t.Helper()
	m.mu.Lock()
	clear(m.guests)
	m.mu.Unlock()
	m.Do(t, "quit", nil)
	select {
	case <-m.gone:
	case <-Context(t, time.Minute).Done():
		t.Fatal("the machine does not quit")
	}
	m.Own.Close()
}

// Do runs a QMP command on the machine's own monitor.
func (m *Machine) Do(t testing.TB, command string, args map[string]any) {
	t.Helper()
	var in any // a nil map would be sent as null
	if args != nil {
		in = args
	}
	if err := m.Own.Execute(Context(t, 20*time.Second), command, in, nil); err != nil {
		t.Fatal(err)
	}
}

// Guest connects to a disk as its guest; writes return when QEMU completed them.
//
// A machine's disk does not come anew while it runs, and a test that writes while a job
// may end must not let it: QEMU 7.2 stops the connections that there are when it drains
// a node, but one that is made during the drain writes on, into the mirror's freed
// bitmaps, and the storage daemon crashes. Connect before, or use Write.
func (m *Machine) Guest(t testing.TB, disk string) *nbd.Client {
	t.Helper()
	c, err := nbd.Dial(Context(t, 20*time.Second), "unix", m.NBD, nbd.DialOptions{Export: disk})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Write writes to a disk as its guest, over a connection that lasts until Kill.
func (m *Machine) Write(t testing.TB, disk string, p []byte, off int64) error {
	t.Helper()
	m.mu.Lock()
	g := m.guests[disk]
	if g == nil {
		g = m.Guest(t, disk)
		m.guests[disk] = g
	}
	m.mu.Unlock()
	return g.WriteAt(Context(t, time.Minute), p, off, false)
}

// Image reads what disk holds now, through QEMU.
func (m *Machine) Image(t testing.TB, disk string) []byte {
	t.Helper()
	c := m.Guest(t, disk)
	defer c.Close()
	p := make([]byte, c.Info().Size)
	ctx := Context(t, time.Minute)
	for at := 0; at < len(p); at += 1 << 20 {
		if err := c.ReadAt(ctx, p[at:min(at+1<<20, len(p))], int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// Context ends after d, or with the test.
func Context(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// Eventually asks ok every few milliseconds until it holds; it fails the test
// after d.
func Eventually(t testing.TB, d time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(d)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("not within %v: %s", d, what)
		}
	}
}

// FirstDifference is where a and b differ first, -1 if nowhere.
func FirstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	if len(a) != len(b) {
		return min(len(a), len(b))
	}
	return -1
}

// Volume makes a volume of a disk.
func (d DiskSpec) Volume() cbt.Volume {
	return cbt.Volume{ID: cbt.VolumeID(cbt.NewID()), Name: d.Name, Size: d.Bytes}
}
