package site

import (
	"context"
	"slices"
	"testing"

	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/scale"
)

// Which machine of a group the configuration names first may change while all run, and
// while none does: each stays who it is, none is lost sight of, and none runs twice.
func TestAnotherMachineOfAGroupMayBeTheFirst(t *testing.T) {
	t.Parallel()
	scale.Tools(t, "qemu-system-x86_64")
	w, ctx := newWorld(t), context.Background()
	w.tellingProgram("db")
	w.tellingProgram("web")
	ca, cb := w.pair("", machinesOfWeb)
	a, b := w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 1, 0, 4096)
	awaitLevel(a, b, "web")
	a.stop()
	q := control.FailoverRequest{Group: "web", At: "latest", Force: true, Operator: "tester"}
	first, err := b.Failover(ctx, q, quietly)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.endThem)
	b.stop()
	m := cb.Groups[0].Machine
	db, web := *m, m.Besides[0]
	db.Besides = nil
	web.Besides = []config.Machine{db}
	cb.Groups[0].Machine = &web
	b = w.run(cb)
	if got := b.theyRun(); !slices.Equal(got, []string{"web", "db"}) {
		t.Fatalf("%v run after web was named first", got)
	}
	await(t, "the disks are served", func() bool { return b.groupLine("web").State == control.StateSynced })
	for _, one := range b.machineFor(b.groups[0], b.groups[0].cfg.Machine).Each() {
		i := slices.IndexFunc(first.Machines, func(x control.MachineStarted) bool { return x.Name == one.Name })
		if pid, err := one.Process(); err != nil || pid != first.Machines[i].PID {
			t.Errorf("%s was process %d and is %d, %v", one.Name, first.Machines[i].PID, pid, err)
		}
	}
	b.endThem()
	done, err := b.Failover(ctx, q, quietly)
	if err != nil || len(done.Machines) != 2 || done.Machines[0].Name != "web" || done.Machines[0].Adopted || done.Machines[1].Adopted {
		t.Errorf("started in the other order: %+v, %v", done, err)
	}
	if w.startsOf("db") != 2 || w.startsOf("web") != 2 {
		t.Errorf("db was started %d times, web %d times", w.startsOf("db"), w.startsOf("web"))
	}
}
