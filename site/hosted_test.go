package site

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/novacron/afterimage/recovery/domain"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
	"github.com/novacron/afterimage/testbed/libvirtd"
	"github.com/novacron/afterimage/testbed/scale"
)

// hostedWeb is the pair whose replica has libvirtd run the machine; the history has
// the domain that define makes, as a tap would have recorded it; where there is one beside
// it, each has a disk of its own.
func hostedWeb(t *testing.T, define func(xml string) string, beside ...string) (a, b *running, d *libvirtd.Daemon) {
	t.Helper()
	scale.Tools(t, "virsh")
	d = libvirtd.Start(t)
	user := ""
	if os.Geteuid() == 0 {
		user = ", user: nobody"
	}
	w := newWorld(t)
	there := fmt.Sprintf("libvirt: {uri: %q, sockets: %q%s, domain: ", d.URI, d.Path("s"), user)
	text := "  machine:\n    name: web1\n    disks: [{volume: root, id: vda}, {volume: data, id: vdb}]\n    " + strings.TrimSuffix(there, ", domain: ") + "}\n"
	if len(beside) > 0 {
		text = "  machine:\n    name: web1\n    disks: [{volume: root, id: vda}]\n    " + there + "web}\n    besides:\n    - name: " + beside[0] + "1\n      disks: [{volume: data, id: vda}]\n      " + there + beside[0] + "}\n"
	}
	ca, cb := w.pair("", text)
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
	defined := map[string]string{"web": d.Domain("web", "/nowhere/a.qcow2", "/nowhere/b.qcow2")}
	for _, name := range beside {
		defined["web"], defined[name] = d.Domain("web", "/nowhere/a.qcow2"), d.Domain(name, "/nowhere/b.qcow2")
	}
	for name, xml := range defined {
		if err := l.reigning().writer.Machine(context.Background(), name, []byte(define(xml))); err != nil {
			t.Fatal(err)
		}
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
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
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

// A machine that is failed over has the firmware's variables of the point, in a file of
// its own that its QEMU may write to; what its guest changes there stays when it is
// started once more, also when that has failed before; a drill has a copy that goes with
// it.
func TestFailoverPutsTheFirmwareBack(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	a, b, d := hostedWeb(t, func(xml string) string { // beside the console's file
		code, _, _ := strings.Cut(xml[strings.LastIndex(xml, "<source path='")+len("<source path='"):], "web.console")
		return strings.Replace(xml, "</type></os>", "</type><loader readonly='yes' type='pflash'>"+code+"code</loader><nvram template='/nowhere/vars'>/nowhere/web_VARS.fd</nvram></os>", 1)
	})
	if err := os.WriteFile(d.Path("code"), make([]byte, 64<<10), 0o644); err != nil {
		t.Fatal(err)
	}
	d.Own(t, d.Path("code"))
	vars := bytes.Repeat([]byte{0x5a}, 64<<10)
	l, release := a.lifeOf()
	err := l.reigning().writer.Machine(ctx, "web"+nvramSuffix, vars)
	release()
	if err != nil {
		t.Fatal(err)
	}
	a.write("web/root", 2, 0, 4096)
	awaitLevel(a, b, "web")
	a.stop()

	quiet := func(control.Progress) {}
	if _, err := b.TestFailover(ctx, control.DrillRequest{Group: "web", At: "latest"}, quiet); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(d.Path("s/*/nvram")); len(left) != 0 {
		t.Errorf("a drill leaves %v", left)
	}
	if _, err := b.Failover(ctx, control.FailoverRequest{Group: "web", At: "latest", Force: true, Operator: "tester"}, quiet); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(machineSockets(b.groups[0], ""), "nvram")
	holds := func(want byte) {
		t.Helper()
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{want}, 64<<10)) {
			t.Errorf("the firmware's variables: %v", err)
		}
		if out, err := virshOf(d, "dumpxml", "web1"); err != nil || !strings.Contains(out, ">"+file+"</nvram>") {
			t.Errorf("the domain has other ones: %v\n%s", err, out)
		}
	}
	holds(0x5a)
	if err := os.WriteFile(file, bytes.Repeat([]byte{0x77}, 64<<10), 0o600); err != nil { // as its guest would
		t.Fatal(err)
	}
	if out, err := virshOf(d, "destroy", "web1"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Rename(d.Path("code"), d.Path("away")); err != nil { // libvirtd cannot start it, and takes its variables away
		t.Fatal(err)
	}
	if _, err := b.Failover(ctx, control.FailoverRequest{Group: "web", At: "latest", Force: true, Operator: "tester"}, quiet); err == nil {
		t.Error("it starts without its firmware")
	}
	if err := os.Rename(d.Path("away"), d.Path("code")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Failover(ctx, control.FailoverRequest{Group: "web", At: "latest", Force: true, Operator: "tester"}, quiet); err != nil {
		t.Fatal(err)
	}
	holds(0x77)
	if left, _ := filepath.Glob(file + ".*"); len(left) != 0 {
		t.Errorf("beside the firmware's variables lie %v", left)
	}
	l, release = b.lifeOf()
	defer release()
	if err := l.machine(l.cfg.Machine).End(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("the firmware's variables outlive the machine")
	}
}

// Two domains of one group are drilled, failed over, shut off and rolled back together,
// each from its own disk; one that libvirtd refuses takes the other one along.
func TestSeveralDomainsStartTogether(t *testing.T) {
	ctx := context.Background()
	a, b, d := hostedWeb(t, same, "db")
	quiet := func(control.Progress) {}
	listed := func() []string {
		names := strings.Fields(domains(t, d))
		slices.Sort(names)
		return names
	}
	seen := ""
	done, err := b.TestFailover(ctx, control.DrillRequest{Group: "web", At: "latest"}, func(p control.Progress) {
		if strings.HasPrefix(p.Step, "start ") {
			seen = strings.Join(listed(), " ")
		}
	})
	if err != nil || seen != "drill-db1 drill-web1" || len(done.Left) != 0 || len(listed()) != 0 {
		t.Fatalf("drill: %+v, %v; while it ran libvirtd had %q, now %q", done, err, seen, listed())
	}
	if left, _ := filepath.Glob(d.Path("s/d-*")); len(left) != 0 {
		t.Errorf("directories are left: %v", left)
	}
	b.nothingLeft()
	a.stop()

	second := &b.groups[0].cfg.Machine.Besides[0]
	was := second.Libvirt.Domain
	second.Libvirt.Domain = "absent"
	q := control.FailoverRequest{Group: "web", At: "latest", Force: true, Operator: "tester"}
	if _, err := b.Failover(ctx, q, quiet); !fault.Is(err, fault.MachineTrouble) || !strings.Contains(err.Error(), "start machine db1") || len(listed()) != 0 {
		t.Fatalf("one has no definition: %v; libvirtd has %q", err, listed())
	}
	second.Libvirt.Domain = was
	other := d.Path("other.xml") // somebody else's
	if err := os.WriteFile(other, []byte(d.Domain("db1", "/nowhere/c.qcow2")), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := virshOf(d, "define", other); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Failover(ctx, q, quiet); !fault.Is(err, fault.MachineTrouble) || !strings.Contains(err.Error(), "start machine db1: another machine runs there") || !strings.Contains(err.Error(), "nothing was started") || !slices.Equal(listed(), []string{"db1"}) {
		t.Fatalf("the name of one is taken: %v; libvirtd has %q", err, listed())
	}
	if _, err := virshOf(d, "undefine", "db1"); err != nil {
		t.Fatal(err)
	}
	out, err := b.Failover(ctx, q, quiet)
	if err != nil || len(out.Machines) != 2 || !slices.Equal(listed(), []string{"db1", "web1"}) {
		t.Fatalf("%+v, %v; libvirtd has %q", out, err, listed())
	}
	for name, volume := range map[string]string{"web1": "root", "db1": "data"} {
		xml, err := virshOf(d, "dumpxml", name)
		if err != nil || strings.Count(xml, "name='web/") != 1 || !strings.Contains(xml, "name='web/"+volume+"'") {
			t.Errorf("the disks of %s are not %s alone: %v\n%s", name, volume, err, xml)
		}
	}
	detail := func(machine, renamed, state string) {
		t.Helper()
		g, err := b.Group(ctx, "web")
		i := slices.IndexFunc(g.Seen, func(m control.MachineSeen) bool { return m.Name == machine })
		if err != nil || i < 0 || g.Seen[i].Renamed != renamed || g.Seen[i].State != state {
			t.Errorf("%s is to be %s as %q: %+v, %v", machine, state, renamed, g.Seen, err)
		}
	}
	detail("db1", "", control.MachineRuns)
	virsh := func(args ...string) {
		t.Helper()
		if out, err := virshOf(d, args...); err != nil {
			t.Fatalf("virsh %v: %v: %s", args, err, out)
		}
	}
	virsh("destroy", "db1")
	virsh("domrename", "db1", "dbx")
	detail("db1", "", control.MachineOff)
	again, err := b.Failover(ctx, q, quiet) // it is off, and made anew
	if err != nil || !slices.Equal(listed(), []string{"db1", "web1"}) || again.PID != out.PID {
		t.Fatalf("one was renamed while it was off: %+v, %v; libvirtd has %q", again, err, listed())
	}
	virsh("destroy", "db1")
	virsh("domrename", "db1", "dbx")
	virsh("start", "dbx")
	detail("db1", "dbx", control.MachineRuns)
	if _, err := b.Failover(ctx, q, quiet); !fault.Is(err, fault.NotReplica) {
		t.Errorf("all run, one under another name: %v", err)
	}
	if _, err := b.Decide(ctx, control.DecisionRequest{Verb: control.VerbRollback, Group: "web"}, quiet); err != nil || len(listed()) != 0 {
		t.Errorf("rolled back: %v; libvirtd has %q", err, listed())
	}
}
