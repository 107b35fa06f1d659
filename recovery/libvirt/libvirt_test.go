package libvirt

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt/libvirt"
	"github.com/novacron/afterimage/testbed/libvirtd"
	"github.com/novacron/afterimage/testbed/scale"
)

const patience = time.Minute

const greeting = "afterimage runs\n"

// bootSector writes greeting to the first serial port and halts.
func bootSector() []byte {
	code := []byte{
		0xfa, 0x31, 0xc0, 0x8e, 0xd8, // cli; xor ax,ax; mov ds,ax
		0xbe, 0x17, 0x7c, // mov si, 0x7c17
		0xba, 0xf8, 0x03, // mov dx, 0x3f8
		0xb9, byte(len(greeting)), 0, // mov cx, len
		0xac, 0xee, // lodsb; out dx,al
		0xe2, 0xfc, // loop back to lodsb
		0xf4, 0xeb, 0xfd, // hlt; jmp to hlt
	}
	s := make([]byte, 1<<20)
	for len(code) < 0x17 {
		code = append(code, 0x90)
	}
	copy(s, code)
	copy(s[0x17:], greeting)
	s[510], s[511] = 0x55, 0xaa
	return s
}

// serveImage exports an image by nbdkit, a server that is not ours.
func serveImage(t *testing.T, d *libvirtd.Daemon, image []byte) string {
	t.Helper()
	scale.Tools(t, "nbdkit")
	file, socket := d.Path("disk.raw"), d.Path("disk.nbd")
	if err := os.WriteFile(file, image, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("nbdkit", "--foreground", "--unix", socket, "--exportname", "view", "file", file)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	until(t, "nbdkit listens", func() bool {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	d.Own(t, socket)
	return socket
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func virsh(t *testing.T, d *libvirtd.Daemon, args ...string) string {
	t.Helper()
	scale.Tools(t, "virsh")
	out, err := exec.Command("virsh", append([]string{"-c", d.URI}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("virsh %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// A machine whose own disk is elsewhere boots from the export, isolated, under
// another name, beside the machine that it was made of.
func TestMachineRunsFromAnExport(t *testing.T) {
	d := libvirtd.Start(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	h, err := Connect(ctx, d.URI)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	original := d.Domain("web", d.Image(t, "web.qcow2", 1<<20))
	first, err := h.Start(ctx, original)
	if err != nil {
		t.Fatal(err)
	}
	definition, err := first.Definition(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const uuid = "11111111-2222-4333-8444-555555555555"
	text, err := Rewrite(definition, Edit{
		Name: "web-drill", UUID: uuid, Isolate: true, Console: d.Path("drill.console"), Disks: map[string]Export{"vda": {serveImage(t, d, bootSector()), "view"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	m, err := h.Start(ctx, text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if m.Name != "web-drill" || m.UUID != uuid {
		t.Errorf("%s %s", m.Name, m.UUID)
	}
	until(t, "the boot sector speaks", func() bool {
		b, _ := os.ReadFile(d.Path("drill.console"))
		return strings.Contains(string(b), greeting)
	})
	if list := virsh(t, d, "domblklist", "web-drill"); strings.Contains(list, "web.qcow2") || !strings.Contains(list, "view") {
		t.Errorf("disks:\n%s", list)
	}
	if link := virsh(t, d, "domif-getlink", "web-drill", "52:54:00:aa:bb:cc"); !strings.HasSuffix(link, "down") {
		t.Errorf("link: %s", link)
	}
	if s, err := first.State(ctx); err != nil || s != libvirt.StateRunning {
		t.Errorf("the original is %s, %v", s, err)
	}
	checkEnd(ctx, t, d, m)
}

// checkEnd stops and undefines m, each twice.
func checkEnd(ctx context.Context, t *testing.T, d *libvirtd.Daemon, m *Machine) {
	t.Helper()
	for range 2 {
		if err := m.Stop(ctx); err != nil {
			t.Errorf("stop: %v", err)
		}
	}
	if s, err := m.State(ctx); err != nil || s != libvirt.StateOff {
		t.Errorf("after stop: %s, %v", s, err)
	}
	for range 2 {
		if err := m.Undefine(ctx); err != nil {
			t.Errorf("undefine: %v", err)
		}
	}
	if list := virsh(t, d, "list", "--all", "--name"); list != "web" {
		t.Errorf("left: %q", list)
	}
}

func TestStartLeavesOthersAlone(t *testing.T) {
	d := libvirtd.Start(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	h, err := Connect(ctx, d.URI)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if _, err := h.Start(ctx, d.Domain("web", d.Image(t, "web.qcow2", 1<<20))); err != nil {
		t.Fatal(err)
	}
	before := virsh(t, d, "dumpxml", "--inactive", "web")
	if _, err := h.Start(ctx, d.Domain(" web ")); !errors.Is(err, ErrTaken) {
		t.Errorf("name taken: %v", err)
	}
	twin, err := Rewrite(before, Edit{Name: "other", Disks: map[string]Export{"vda": {d.Path("none"), "x"}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Start(ctx, twin); !errors.Is(err, ErrTaken) {
		t.Errorf("uuid taken: %v", err)
	}
	if after := virsh(t, d, "dumpxml", "--inactive", "web"); after != before {
		t.Errorf("the machine changed:\n%s", after)
	}
	// An export that nobody serves: it cannot start, and nothing is left of it.
	dead, err := Rewrite(before, Edit{Name: "other", UUID: "11111111-2222-4333-8444-555555555555", Disks: map[string]Export{"vda": {d.Path("none"), "x"}}})
	if err != nil {
		t.Fatal(err)
	}
	var refused *libvirt.Error
	if _, err := h.Start(ctx, dead); !errors.As(err, &refused) {
		t.Errorf("no server: %v", err)
	}
	if _, err := h.Machine(ctx, "other"); !errors.Is(err, libvirt.ErrNoDomain) {
		t.Errorf("what could not start: %v", err)
	}
	if _, err := h.Start(ctx, "<domain><name>x</name></domain>"); !errors.As(err, &refused) {
		t.Errorf("no machine: %v", err)
	}
}
