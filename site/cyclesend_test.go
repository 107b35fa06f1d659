package site

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/novacron/afterimage/cbt/cbttest"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
	"github.com/novacron/afterimage/testbed/port"
	"github.com/novacron/afterimage/testbed/scale"
)

// cyclesWorld is site a, which taps the disks of a storage daemon in bitmap cycles, and
// its peer b.
type cyclesWorld struct {
	*plainWorld
	rng          *rand.Rand
	stamp        byte
	textA, textB string
}

// newCyclesWorld has a cycle every so often. What is written after the first one of many
// is in none where that is an hour.
func newCyclesWorld(t *testing.T, every string) *cyclesWorld {
	t.Helper()
	w := &cyclesWorld{plainWorld: newPlainWorld(t)}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	w.rng = rand.New(rand.NewPCG(seed, 1))
	pin := func(name string) string {
		p, err := Pin(w.configure(name, ""))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	pins, at := [2]string{pin("a"), pin("b")}, [2]string{port.Address(t), port.Address(t)}
	peers := "listen: %s\npeers: [{name: %s, address: %q, pin: %q}]\ngroups:\n- name: web\n  peers: [%s]\n"
	w.textA = fmt.Sprintf(peers, at[0], "b", at[1], pins[1], "b") + fmt.Sprintf("  role: primary\n  capture: {mode: bitmap, every: %s}\n  qemu: {qmp: %s, watchdog_qmp: %s, nbd: %s}\n  volumes: [{name: root, size: 6MiB, qemu: {node: root}}, {name: data, size: 3MiB, qemu: {node: data}}]\n", every, w.m.QMP, w.m.Spare, w.m.NBD)
	w.textB = fmt.Sprintf(peers, at[1], "a", at[0], pins[0], "a") + "  role: replica\n"
	w.c = w.configure("a", w.textA)
	return w
}

// stamps writes a few times to both disks, so that the last write is nowhere else.
func (w *cyclesWorld) stamps() {
	w.t.Helper()
	for range 8 {
		w.stamp++
		w.guestWrites("root", w.stamp, 512*w.rng.Int64N(11<<10), 512*(1+w.rng.Int64N(64)))
		w.guestWrites("data", w.stamp, 512*w.rng.Int64N(5<<10), 512*(1+w.rng.Int64N(64)))
	}
}

// shows compares a point of b's with what the machine's disks are.
func (w *cyclesWorld) shows(what string, restore func(context.Context, control.RestoreRequest, func(control.Progress)) (control.Restored, error)) {
	w.t.Helper()
	out, err := os.MkdirTemp(w.dir, "restored")
	if err == nil {
		_, err = restore(context.Background(), control.RestoreRequest{Group: "web", At: "latest", To: out + "/", Format: control.FormatSparse}, quietly)
	}
	if err != nil {
		w.t.Fatalf("%s: %v", what, err)
	}
	for i, name := range []string{"root", "data"} {
		have, err := os.ReadFile(filepath.Join(out, name+".raw"))
		if err != nil {
			w.t.Fatal(err)
		}
		if at := cbttest.FirstDifference(have, w.onDisk()[i]); at >= 0 {
			w.t.Errorf("%s: disk %s differs from the machine's at byte %d", what, name, at)
		}
	}
}

// What a machine wrote after its last cycle, and as it went down, is at the other site: the
// images are equal, whether there was a cycle a moment ago or only the first one.
func TestAMachineInCyclesIsHandedOverWhole(t *testing.T) {
	t.Parallel()
	for _, every := range []string{"1h", "100ms"} {
		t.Run(every, func(t *testing.T) {
			w, ctx := newCyclesWorld(t, every), context.Background()
			a, b := w.start(Options{}), w.run(w.configure("b", w.textB))
			a.awaitState("web", control.StateCycles)
			b.awaitState("web", control.StateReceiving)
			q := control.HandoverRequest{Group: "web", Operator: "tester"}
			refused := func() []string {
				p, err := a.PlanHandover(ctx, q)
				if err != nil {
					t.Fatal(err)
				}
				return p.Refused
			}
			if why := refused(); len(why) == 0 {
				t.Error("nothing speaks against it while the machine runs")
			}
			w.stamps()
			w.m.Quit(t)
			await(t, "its end is seen", func() bool { return len(refused()) == 0 })
			plan, err := a.PlanHandover(ctx, q)
			if err != nil || !slices.Contains(plan.Steps, readStep) {
				t.Errorf("plan %+v, %v", plan, err)
			}
			var told atomic.Int64
			done, err := a.Handover(ctx, q, func(p control.Progress) {
				if strings.HasPrefix(p.Step, "read: ") {
					told.Add(1)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			if told.Load() != 4 || !strings.Contains(a.log.String(), "bytes_journaled=") {
				t.Errorf("%d steps told of the reading", told.Load())
			}
			b.awaitRole("web", recovery.Primary, control.StateSynced)
			a.awaitRole("web", recovery.Replica, control.StateReceiving)
			w.shows("b", b.Restore)
			if b.loss(t, done) != 0 {
				t.Errorf("handed over at %+v", done)
			}
		})
	}
}

// loss is how many records of the giver's epoch the taker's history does not have.
func (r *running) loss(t *testing.T, done control.HandedOver) uint64 {
	t.Helper()
	return done.Last.Seq - r.seqBefore(done.Epoch)
}

// A disk that somebody else writes to while it is read is not believed, nothing is given
// up, and it is read anew when that is repeated; one that is in somebody's hands is not
// read at all.
func TestADiskThatChangesWhileItsEndIsReadIsRefused(t *testing.T) {
	t.Parallel()
	w, ctx := newCyclesWorld(t, "1h"), context.Background()
	var meddles atomic.Bool
	a := w.start(Options{passed: func(step string) {
		if step != "the machine's disks are read" || !meddles.CompareAndSwap(true, false) {
			return
		}
		f, err := os.OpenFile(w.files()[1], os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt(bytes.Repeat([]byte{0xEE}, 512), 2<<20)
			f.Close()
		}
		if err != nil {
			t.Error(err)
		}
	}})
	b := w.run(w.configure("b", w.textB))
	a.awaitState("web", control.StateCycles)
	b.awaitState("web", control.StateReceiving)
	w.stamps()
	w.m.Quit(t)
	q := control.HandoverRequest{Group: "web", Operator: "tester"}
	ready := func() bool {
		p, err := a.PlanHandover(ctx, q)
		return err == nil && len(p.Refused) == 0
	}
	await(t, "its end is seen", ready)
	meddles.Store(true)
	if _, err := a.Handover(ctx, q, quietly); !fault.Is(err, fault.HandoverTrouble) || !strings.Contains(err.Error(), "does not read alike twice") {
		t.Errorf("a disk that changed meanwhile: %v", err)
	}
	if g := a.groupLine("web"); g.Role != string(recovery.Primary) {
		t.Errorf("a is %s", g.Role)
	}
	d, err := recovery.Drive{Path: w.files()[0], Format: "qcow2"}.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Handover(ctx, q, quietly); !fault.Is(err, fault.HandoverTrouble) || !strings.Contains(err.Error(), "open, "+filepath.Join(w.m.Dir, "root.img")) {
		t.Errorf("a disk that somebody has open: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	await(t, "it could be handed over", ready)
	if _, err := a.Handover(ctx, q, quietly); err != nil {
		t.Fatal(err)
	}
	b.awaitRole("web", recovery.Primary, control.StateSynced)
	w.shows("b", b.Restore)
}

// A machine that was started after its end was read has written what nobody has, whether
// or not a cycle was closed since.
func TestAMachineThatRanAfterItsEndWasReadIsNotWhole(t *testing.T) {
	t.Parallel()
	w, ctx := newCyclesWorld(t, "1h"), context.Background()
	a := w.start(Options{})
	a.awaitState("web", control.StateCycles)
	w.stamps()
	w.m.Quit(t)
	l, release := a.lifeOf()
	defer release()
	await(t, "its end is seen", func() bool {
		_, err := l.writerIsGone(ctx)
		return err == nil
	})
	if err := l.endedWhole(ctx); err == nil || !strings.Contains(err.Error(), cyclesEnd) {
		t.Errorf("before its end was read: %v", err)
	}
	if _, err := l.readEnd(ctx, quietly); err != nil {
		t.Fatal(err)
	}
	if err := l.writerIsOff(ctx, ""); err != nil {
		t.Errorf("after its end was read: %v", err)
	}
	w.shows("a", a.Restore)
	w.m.Boot(t)
	await(t, "it is seen to run", func() bool { return l.endedWhole(ctx) != nil })
	w.stamps()
	w.m.Quit(t)
	await(t, "its end is seen again", func() bool {
		_, err := l.writerIsGone(ctx)
		return err == nil
	})
	if err := l.endedWhole(ctx); err == nil {
		t.Error("what it wrote then is in no cycle, and it is told to be whole")
	}
}

// Promise 11, for a machine in cycles: wherever its site is killed while its end is read
// and the group handed over, the site is primary as before and its machine can start, or
// the group is handed over with all that the machine wrote.
func TestAHandoverInCyclesSurvivesAKillAtEveryDurableStep(t *testing.T) {
	t.Parallel()
	kills, handed := 0, 0
	for died := true; died; {
		w := newCyclesWorld(t, "1h")
		a, b := w.mortal("a", w.textA), w.mortal("b", w.textB)
		a.start()
		b.start()
		for here := true; here && died; {
			a.awaitRole(recovery.Primary, control.StateCycles)
			await(t, "b follows", func() bool {
				x, y := a.line(), b.line()
				return y.State == control.StateReceiving && x.EpochID == y.EpochID && x.Seq == y.Durable
			})
			w.stamps()
			w.m.Quit(t)
			q := control.HandoverRequest{Group: "web", Operator: "tester"}
			await(t, "its end is seen", func() bool {
				p, err := a.api.PlanHandover(t.Context(), q)
				return err == nil && len(p.Refused) == 0
			})
			a.arm(kills+1, fmt.Sprint("cycles ", kills))
			_, err := a.api.Handover(t.Context(), q, quietly)
			if died = a.disarm(); died {
				kills++
				a.start()
			} else if err != nil {
				t.Fatal(err)
			}
			await(t, "one reigns", func() bool {
				x, y := a.line(), b.line()
				if here = x.Role == string(recovery.Primary) && x.State == control.StateGap; here {
					return y.Role == string(recovery.Replica)
				}
				return x.Role == string(recovery.Replica) && y.Role == string(recovery.Primary) && y.State == control.StateSynced
			})
			t.Logf("death %d: died %v, still primary %v", kills, died, here)
			if here {
				w.m.Boot(t)
				continue
			}
			handed++
			w.shows(fmt.Sprintf("after death %d", kills), b.api.Restore)
		}
		a.kill()
		b.kill()
	}
	t.Logf("killed %d times, handed over %d times", kills, handed)
	scale.Counted(t, "cycles-handover-kills", kills, 8)
	if handed < 2 {
		t.Errorf("handed over %d times", handed)
	}
}
