package libvirt

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	rpc "github.com/digitalocean/go-libvirt"

	"github.com/novacron/afterimage/cbt/cbttest"
	"github.com/novacron/afterimage/cbt/qmp"
	"github.com/novacron/afterimage/testbed/libvirtd"
)

const patience = time.Minute

func connect(t testing.TB, d *libvirtd.Daemon) *Conn {
	t.Helper()
	c, err := Connect(cbttest.Context(t, patience), d.URI)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// startDomain makes a transient domain by virsh create with flags.
func startDomain(t testing.TB, d *libvirtd.Daemon, xml string, flags ...string) {
	t.Helper()
	p := d.Path("domain.xml")
	if err := os.WriteFile(p, []byte(xml), 0o600); err != nil {
		t.Fatal(err)
	}
	virsh(t, d, append([]string{"create", p}, flags...)...)
}

func virsh(t testing.TB, d *libvirtd.Daemon, args ...string) string {
	t.Helper()
	out, err := exec.Command(cbttest.Tool(t, "virsh"), append([]string{"-c", d.URI}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("virsh %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func TestDomainIsDescribed(t *testing.T) {
	t.Parallel()
	d := libvirtd.Start(t)
	startDomain(t, d, d.Domain("web", d.Image(t, "a.qcow2", 8<<20), d.Image(t, "b.qcow2", 3<<20+512)))
	ctx := cbttest.Context(t, patience)
	c := connect(t, d)
	dom, err := c.Domain(ctx, "web")
	if err != nil {
		t.Fatal(err)
	}
	if byUUID, err := c.Domain(ctx, dom.UUID); err != nil || byUUID.Name != "web" {
		t.Fatalf("by uuid: %v, %v", byUUID, err)
	}
	if want := strings.TrimSpace(virsh(t, d, "domuuid", "web")); dom.UUID != want {
		t.Errorf("uuid %s, virsh says %s", dom.UUID, want)
	}
	disks, err := dom.Disks(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := []Disk{
		{"vda", d.Path("a.qcow2"), "qcow2", "", 8 << 20},
		{"vdb", d.Path("b.qcow2"), "qcow2", "", 3<<20 + 512},
	}
	var named []struct {
		Name string `json:"node-name"`
		File string `json:"file"`
		Drv  string `json:"drv"`
	}
	if err := dom.Execute(ctx, "query-named-block-nodes", nil, &named); err != nil {
		t.Fatal(err)
	}
	for i, w := range want {
		for _, n := range named {
			if n.File == w.Source && n.Drv == "qcow2" {
				w.Node = n.Name
			}
		}
		if i >= len(disks) || disks[i] != w || w.Node == "" {
			t.Errorf("disk %d: want %+v of %+v", i, w, disks)
		}
	}
	checkState(t, dom, StateRunning)
	virsh(t, d, "suspend", "web")
	checkState(t, dom, StatePaused)
	xml, err := dom.Definition(ctx)
	if err != nil || !strings.Contains(xml, "<name>web</name>") || strings.TrimSpace(xml) != strings.TrimSpace(virsh(t, d, "dumpxml", "--inactive", "web")) {
		t.Errorf("definition: %v\n%s", err, xml)
	}
}

func checkState(t *testing.T, d *Domain, want State) {
	t.Helper()
	got, err := d.State(cbttest.Context(t, patience))
	if err != nil || got != want {
		t.Errorf("state %q, %v; want %q", got, err, want)
	}
}

func TestErrorsAreTyped(t *testing.T) {
	t.Parallel()
	d := libvirtd.Start(t)
	startDomain(t, d, d.Domain("web", d.Image(t, "a.qcow2", 1<<20)))
	ctx := cbttest.Context(t, patience)
	c := connect(t, d)
	if _, err := c.Domain(ctx, "nobody"); !errors.Is(err, ErrNoDomain) {
		t.Errorf("unknown domain: %v", err)
	}
	dom, err := c.Domain(ctx, "web")
	if err != nil {
		t.Fatal(err)
	}
	var refused *qmp.Error
	err = dom.Execute(ctx, "no-such-command", nil, nil)
	if !errors.As(err, &refused) || refused.Class != "CommandNotFound" || !qmp.IsRefused(err) {
		t.Errorf("unknown command: %v", err)
	}
	if _, err := Freeze(ctx, d.URI, "web"); err == nil || !FrozeNothing(err) {
		t.Errorf("freeze without an agent: %v", err)
	}
	virsh(t, d, "destroy", "web")
	if _, err := Freeze(ctx, d.URI, "web"); !errors.Is(err, ErrNoDomain) || !FrozeNothing(err) {
		t.Errorf("freeze a domain that has gone: %v", err)
	}
	if err := dom.Execute(ctx, "query-status", nil, nil); !errors.Is(err, ErrNoDomain) {
		t.Errorf("command for a domain that has gone: %v", err)
	}
	over, cancel := context.WithCancelCause(ctx)
	enough := errors.New("enough")
	cancel(enough)
	err = c.Call(over, "wait", func(*rpc.Libvirt) error { <-ctx.Done(); return nil })
	if !errors.Is(err, enough) {
		t.Errorf("a call whose context ended: %v", err)
	}
	d.Kill()
	if _, err := c.Domain(ctx, "web"); !errors.Is(err, ErrConnection) {
		t.Errorf("without libvirtd: %v", err)
	}
	if _, err := Connect(ctx, d.URI); !errors.Is(err, ErrConnection) {
		t.Errorf("connect without libvirtd: %v", err)
	}
}

// What an agent may have been told, and may yet do, is no refusal.
func TestARefusedFreezeIsToldFromOneInDoubt(t *testing.T) {
	for _, c := range []struct {
		err     error
		nothing bool
	}{
		{nil, false},
		{errors.New("lost"), false},
		{&Error{Code: uint32(rpc.ErrAgentUnresponsive)}, false},
		{&Error{Code: uint32(rpc.ErrAgentCommandTimeout)}, false},
		{&Error{Code: uint32(rpc.ErrAgentUnsynced)}, false},
		{&Error{Code: uint32(rpc.ErrInternalError)}, false},
		{&Error{Code: uint32(rpc.ErrAgentCommandFailed)}, true},
		{&Error{Code: uint32(rpc.ErrArgumentUnsupported)}, true},
		{&Error{Code: uint32(rpc.ErrOperationInvalid)}, true},
		{notAsked{&Error{Code: uint32(rpc.ErrAgentUnresponsive)}}, true},
		{notAsked{context.DeadlineExceeded}, true},
	} {
		if got := FrozeNothing(c.err); got != c.nothing {
			t.Errorf("%v: %t", c.err, got)
		}
	}
}

func TestURIs(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", "/r")
	for _, c := range []struct{ uri, driver, socket string }{
		{"qemu:///system", "qemu:///system", systemSocket},
		{"qemu+unix:///system?socket=/s", "qemu:///system", "/s"},
		{"qemu:///session", "qemu:///session", "/r/libvirt/libvirt-sock"},
		{"qemu:///session?socket=/s", "qemu:///session", "/s"},
		{"qemu+ssh://host/system", "", ""},
		{"xen:///system", "", ""},
		{"qemu:///other", "", ""},
		{"://", "", ""},
	} {
		driver, socket, err := parseURI(c.uri)
		if driver != c.driver || socket != c.socket || (err != nil) != (c.driver == "") || (err != nil && !errors.Is(err, ErrURI)) {
			t.Errorf("%s: %q %q %v", c.uri, driver, socket, err)
		}
	}
}
