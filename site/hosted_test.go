package site

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/novacron/afterimage/recovery/domain"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
	"github.com/novacron/afterimage/testbed/libvirtd"
	"github.com/novacron/afterimage/testbed/scale"
)

// hostedWeb is the pair whose replica has libvirtd run the machine; the history has
// the domain that define makes, as a tap would have recorded it.
func hostedWeb(t *testing.T, define func(xml string) string) (a, b *running, d *libvirtd.Daemon) {
	t.Helper()
	scale.Tools(t, "virsh")
	d = libvirtd.Start(t)
	user := ""
	if os.Geteuid() == 0 {
		user = ", user: nobody"
	}
	w := newWorld(t)
	ca, cb := w.pair("", fmt.Sprintf("  machine:\n    name: web1\n    disks: [{volume: root, id: vda}, {volume: data, id: vdb}]\n    libvirt: {uri: %q, sockets: %q%s}\n", d.URI, d.Path("s"), user))
	a, b = w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	g, err := a.group("web")
	if err != nil {
		t.Fatal(err)
	}
	l, release, err := g.use()
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if err := l.reigning().writer.Machine(context.Background(), "web", []byte(define(d.Domain("web", "/nowhere/a.qcow2", "/nowhere/b.qcow2")))); err != nil {
		t.Fatal(err)
	}
	a.write("web/root", 1, 0, 4096)
	awaitLevel(a, b, "web")
	return a, b, d
}

func same(xml string) string { return xml }

func domains(t *testing.T, d *libvirtd.Daemon) string {
	t.Helper()
	out, err := exec.Command("virsh", "-c", d.URI, "list", "--all", "--name").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// A drill on libvirtd defines a machine of its own, and neither it nor its sockets are
// left, nor after a definition that is refused.
func TestADrillOnLibvirtLeavesNothing(t *testing.T) {
	ctx := context.Background()
	_, b, d := hostedWeb(t, same)
	seen := ""
	done, err := b.TestFailover(ctx, control.DrillRequest{Group: "web", At: "latest"}, func(p control.Progress) {
		if strings.HasPrefix(p.Step, "start ") {
			seen = domains(t, d)
		}
	})
	if err != nil || seen != "drill-web1" || len(done.Left) != 0 {
		t.Fatalf("drill: %+v, %v; while it ran libvirtd had %q", done, err, seen)
	}
	nothing := func() {
		t.Helper()
		if left := domains(t, d); left != "" {
			t.Errorf("domains are left: %s", left)
		}
		if left, _ := filepath.Glob(d.Path("s/d-*")); len(left) != 0 {
			t.Errorf("directories are left: %v", left)
		}
		b.nothingLeft()
	}
	nothing()
	g, err := b.group("web")
	if err != nil {
		t.Fatal(err)
	}
	g.cfg.Machine.Libvirt.Domain = "other"
	if _, err := b.TestFailover(ctx, control.DrillRequest{Group: "web", At: "latest"}, func(control.Progress) {}); !fault.Is(err, fault.MachineTrouble) {
		t.Errorf("a domain that the history has not: %v", err)
	}
	nothing()
}

func TestADrillOnLibvirtRefusesWhatReachesOut(t *testing.T) {
	_, b, d := hostedWeb(t, func(xml string) string {
		return strings.Replace(xml, "</devices>", "<hostdev mode='subsystem' type='pci'/></devices>", 1)
	})
	_, err := b.TestFailover(context.Background(), control.DrillRequest{Group: "web", At: "latest"}, func(control.Progress) {})
	if !fault.Is(err, fault.MachineTrouble) || !strings.Contains(err.Error(), "hostdev") {
		t.Errorf("drill: %v", err)
	}
	if left := domains(t, d); left != "" {
		t.Errorf("domains are left: %s", left)
	}
}

// The daemon was killed in the middle of a drill: its domain lives on until the next
// start, which takes it away by what the drill's directory says.
func TestLeftOversOfADrillOnLibvirtAreTakenAway(t *testing.T) {
	ctx := context.Background()
	_, b, d := hostedWeb(t, same)
	g, err := b.group("web")
	if err != nil {
		t.Fatal(err)
	}
	m, err := b.machineFor(g, g.cfg.Machine).Isolated(b.drillDir(g))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.noteDrill(&drill{group: g, machine: m}); err != nil {
		t.Fatal(err)
	}
	m.Host.(*domain.Runner).Targets = nil
	m.Host.(*domain.Runner).Definition = func(context.Context) (string, error) { return d.Domain("web"), nil }
	if _, _, err := socketFor(g, drillPrefix); err != nil {
		t.Fatal(err)
	}
	ran, err := m.Ensure(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer closeMachine(ran)
	if got := domains(t, d); got != "drill-web1" {
		t.Fatalf("libvirtd has %q", got)
	}
	b.sweepDrills()
	if err := ran.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	if got := domains(t, d); got != "" || len(b.leftover) != 0 {
		t.Errorf("left: %q, %v", got, b.leftover)
	}
	b.nothingLeft()
}
