package guest

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/testbed/scale"
)

// TestCpioReadsTheInitramfs has the real tool judge our archive.
func TestCpioReadsTheInitramfs(t *testing.T) {
	scale.Tools(t, "cpio")
	content := bytes.Repeat([]byte("afterimage\n"), 1001)
	archive := newc([]entry{
		{name: "d", mode: modeDir | 0o755},
		{name: "d/odd", mode: modeFile | 0o640, data: content},
		{name: "d/empty", mode: modeFile | 0o600},
		{name: "d/none-left", mode: modeFile | 0o600, data: []byte("x")},
	})
	dir := t.TempDir()
	cmd := exec.Command("cpio", "-i", "--quiet")
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(archive)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v: %s", err, out)
	}
	for name, want := range map[string][]byte{"odd": content, "empty": {}, "none-left": []byte("x")} {
		got, err := os.ReadFile(filepath.Join(dir, "d", name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v, want %d", name, len(got), err, len(want))
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "d/odd")); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode of odd: %v, %v", info, err)
	}
}

func TestArgvNamesEveryKindOfDisk(t *testing.T) {
	argv, err := Argv(Config{
		Image: Image{"/k", "/i"}, Accel: TCG, Dir: "/tmp/a,b", Orders: "stamp rate=5;wait",
		Disks: []Disk{
			{Path: "/a,b.raw", Discard: true},
			{Path: "/c.qcow2", Format: "qcow2", Node: "system"},
			{Path: "nbd+unix:///vm/disk?socket=/s.sock"},
			{Path: "nbd://127.0.0.1:9/d"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`{"discard":"unmap","driver":"raw","file":{"discard":"unmap","driver":"file","filename":"/a,b.raw"},"node-name":"disk0"}`,
		`{"driver":"qcow2","file":{"driver":"file","filename":"/c.qcow2"},"node-name":"system"}`,
		`{"driver":"raw","file":{"driver":"nbd","export":"vm/disk","reconnect-delay":300,"server":{"path":"/s.sock","type":"unix"}},"node-name":"disk2"}`,
		`{"driver":"raw","file":{"driver":"nbd","export":"d","reconnect-delay":300,"server":{"host":"127.0.0.1","port":"9","type":"inet"}},"node-name":"disk3"}`,
		`virtio-blk-pci,drive=disk3,serial=disk3,werror=stop,rerror=stop`,
		`unix:/tmp/a,,b/qmp1.sock,server=on,wait=off`,
		`console=ttyS0 panic=-1 no_timer_check quiet loglevel=1 afterimage="stamp rate=5;wait"`,
	} {
		if !slices.Contains(argv, want) {
			t.Errorf("%s is not in\n%s", want, strings.Join(argv, "\n"))
		}
	}
	for _, path := range []string{"nbd://", "nbds://h:1/x", "nbd+unix:///x"} {
		if _, err := Argv(Config{Disks: []Disk{{Path: path}}}); err == nil {
			t.Errorf("disk %s is taken", path)
		}
	}
}

// TestConsoleOutlivesAGuest: what one QEMU says last is read before its end is told,
// and another may connect after it.
func TestConsoleOutlivesAGuest(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	dir, err := os.MkdirTemp("", "ai")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "c.sock")
	c, err := ListenConsole(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	dial := func(says string) net.Conn {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte(says)); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	dial("ready volumes=1\r\nstamped 7\nstamped 8\n").Close()
	if k, err := c.WaitStamped(ctx, 8); k != 8 || err != nil {
		t.Fatalf("stamped %d, %v", k, err)
	}
	if line, err := c.Wait(ctx, "ready"); line != "ready volumes=1" || err != nil {
		t.Fatalf("waited for ready: %q, %v", line, err)
	}
	second := dial("ready volumes=2\nerror no\n")
	defer second.Close()
	if line, err := c.Wait(ctx, "ready"); line != "ready volumes=2" || err != nil {
		t.Fatalf("the second guest: %q, %v", line, err)
	}
	if _, err := c.Wait(ctx, "pong"); !errors.Is(err, ErrConsole) || !strings.Contains(err.Error(), "error no") {
		t.Errorf("a guest that complains: %v", err)
	}
	if err := c.Send(ctx, "ping"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := second.Read(got); err != nil || string(got) != "ping\n" {
		t.Errorf("the guest heard %q, %v", got, err)
	}
	if _, err := second.Write([]byte("last words\n")); err != nil {
		t.Fatal(err)
	}
	c.end(nil)
	if line, err := c.Wait(ctx, "last"); line != "last words" || err != nil {
		t.Errorf("last words: %q, %v", line, err)
	}
	second.Close()
	if _, err := c.Wait(ctx, "more"); !errors.Is(err, ErrGone) {
		t.Errorf("after the end: %v", err)
	}
}

func TestQemuThatRefusesIsReported(t *testing.T) {
	scale.Tools(t, qemuProgram)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	dir, err := os.MkdirTemp("", "ai")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	g, err := Start(ctx, Config{Image: Image{"/nowhere", "/nowhere"}, Accel: TCG, Dir: dir, Disks: []Disk{{Path: "/nowhere"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if _, err := g.Wait(ctx, "ready"); err == nil || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("the reason is not in %v", err)
	}
}
