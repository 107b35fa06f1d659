package libvirtd

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/novacron/afterimage/testbed/scale"
)

// patience bounds the daemon's start; it probes QEMU's abilities first.
const patience = 30 * time.Second

// nobody is the user that the daemon of a root user runs as.
const nobody = 65534

// Daemon is a running libvirtd.
type Daemon struct {
	Dir    string // short, so that sockets fit in it; removed at the test's end
	Socket string // of libvirtd
	URI    string // for our own packages and for virsh

	program string
	cmd     *exec.Cmd
	out     bytes.Buffer
	done    chan struct{} // closed once the daemon has ended
	root    bool
}

// Start runs a libvirtd until t ends. Without libvirtd or QEMU it stops t.
func Start(t testing.TB) *Daemon {
	t.Helper()
	scale.Tools(t, "qemu-system-x86_64", "qemu-img")
	program := find(t)
	dir, err := os.MkdirTemp("", "ai")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d := &Daemon{Dir: dir, Socket: filepath.Join(dir, "run", "libvirt-sock"), program: program, root: os.Geteuid() == 0}
	d.URI = "qemu:///session?socket=" + d.Socket
	if err := d.configure(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Kill(); d.killMachines(t) })
	d.Boot(t)
	return d
}

// Boot starts the daemon, again after Kill: machines that went on are its own again.
func (d *Daemon) Boot(t testing.TB) {
	t.Helper()
	dir := d.Dir
	d.out.Reset()
	d.done = make(chan struct{})
	d.cmd = exec.Command(d.program, "-f", filepath.Join(dir, "config/libvirt/libvirtd.conf"), "-p", filepath.Join(dir, "libvirtd.pid"))
	d.cmd.Dir, d.cmd.Stdout, d.cmd.Stderr = dir, &d.out, &d.out
	for _, v := range []string{"CONFIG_HOME=config", "RUNTIME_DIR=run", "CACHE_HOME=cache", "DATA_HOME=data"} {
		name, sub, _ := strings.Cut(v, "=")
		d.cmd.Env = append(d.cmd.Env, "XDG_"+name+"="+filepath.Join(dir, sub))
	}
	d.cmd.Env = append(d.cmd.Env, "HOME="+dir, "PATH="+os.Getenv("PATH"))
	if d.root {
		d.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd, done := d.cmd, d.done
	go func() { _ = cmd.Wait(); close(done) }()
	if err := d.answers(); err != nil {
		d.Kill()
		t.Fatalf("start libvirtd: %v\n%s", err, &d.out)
	}
}

// find is libvirtd's path; Debian keeps it where other users' PATH does not look.
func find(t testing.TB) string {
	t.Helper()
	for _, name := range []string{"libvirtd", "/usr/sbin/libvirtd"} {
		if p, err := exec.LookPath(name); err == nil {
			return p
		}
	}
	scale.Missing(t, "libvirtd is not installed")
	return ""
}

func (d *Daemon) configure() error {
	for _, sub := range []string{"config/libvirt", "run", "cache", "data"} {
		if err := os.MkdirAll(filepath.Join(d.Dir, sub), 0o755); err != nil {
			return err
		}
	}
	files := map[string]string{
		// An id of its own, or nothing could be migrated between two of them.
		"config/libvirt/libvirtd.conf": fmt.Sprintf("unix_sock_dir = %q\nauth_unix_rw = \"none\"\nhost_uuid = %q\n", filepath.Dir(d.Socket), newUUID()),
		"config/libvirt/qemu.conf": "security_driver = \"none\"\ncgroup_controllers = []\nnamespaces = []\n" +
			"remember_owner = 0\nstdio_handler = \"file\"\n", // file: no virtlogd is needed
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(d.Dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := os.Chmod(d.Dir, 0o755); err != nil || !d.root {
		return err
	}
	return filepath.WalkDir(d.Dir, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chown(p, nobody, nobody)
	})
}

// newUUID draws one at random.
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// answers returns once the socket takes connections.
func (d *Daemon) answers() error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for {
		if c, err := net.Dial("unix", d.Socket); err == nil {
			return c.Close()
		}
		select {
		case <-tick.C:
		case <-d.done:
			return fmt.Errorf("it ended: %v", d.cmd.ProcessState)
		case <-late:
			return fmt.Errorf("no answer within %v", patience)
		}
	}
}

// Kill ends the daemon at once and returns when it has gone; machines go on.
func (d *Daemon) Kill() {
	if d.cmd == nil || d.cmd.Process == nil {
		return
	}
	_ = d.cmd.Process.Kill()
	<-d.done
}

// killMachines ends what libvirtd left running: machines, and QEMUs that it was asking
// for what they can do when it was killed. They are told by Dir in their command lines.
func (d *Daemon) killMachines(t testing.TB) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		line, err := os.ReadFile(f)
		program, args, _ := bytes.Cut(line, []byte{0})
		if err != nil || !strings.HasPrefix(filepath.Base(string(program)), "qemu") || !bytes.Contains(args, []byte(d.Dir+"/")) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err != nil {
			continue
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Errorf("kill %s, process %d: %v", program, pid, err)
		}
	}
}

// Path is a file name in Dir.
func (d *Daemon) Path(name string) string { return filepath.Join(d.Dir, name) }

// Own gives files to the user that QEMU runs as.
func (d *Daemon) Own(t testing.TB, paths ...string) {
	t.Helper()
	if !d.root {
		return
	}
	for _, p := range paths {
		if err := os.Chown(p, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
}
