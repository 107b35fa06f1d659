package site

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/recovery/fence"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// standDown has a site give web up and returns what it signed.
func (r *running) standDown(group string) string {
	r.t.Helper()
	q := control.DecisionRequest{Verb: control.VerbStandDown, Group: group, Operator: "op"}
	d, err := r.PlanDecision(context.Background(), q)
	if err != nil || len(d.Refused) > 0 || len(d.Steps) == 0 {
		r.t.Fatalf("%+v, %v", d, err)
	}
	q.Expect = d.Digest
	done, err := r.Decide(context.Background(), q, func(control.Progress) {})
	if err != nil || !done.Done || done.Role != string(recovery.Replica) || done.Statement == "" {
		r.t.Fatalf("%+v, %v", done, err)
	}
	return done.Statement
}

// A site that stood down signs it, writes no more, and follows who is failed over to; the
// statement proves that it is off together with a second channel, and alone it does not.
func TestStandDownIsOneChannelOfTheFence(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	one := device(t, w.dir, "fence_one", false)
	ca, cb := w.pair("", "")
	a, b := w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 7, 0, 4096)
	awaitLevel(a, b, "web")
	b.stop() // the sites do not reach each other
	text := a.standDown("web")
	if err := a.tryWrite("web/root"); err == nil {
		t.Error("a site that stood down takes writes")
	}
	x, err := fence.Statement{Text: text, Site: "a", Identity: a.groups[0].id, Key: func([]byte) bool { return true }}.Standing()
	if err != nil || uint64(x.Head.Seq) != a.groupLine("web").Seq || !strings.Contains(x.How, "are shut") {
		t.Errorf("%+v, %v; a is at %d", x, err, a.groupLine("web").Seq)
	}
	if again := a.standDown("web"); again == text { // it is signed again, at another time
		t.Error("asked again it says what it said")
	}

	b = w.run(cb)
	q := control.FailoverRequest{Group: "web", At: "latest", Statement: text}
	_, err = b.Failover(ctx, q, func(control.Progress) {})
	if f := fault.Of(err); f == nil || f.Code != fault.NotFenced || f.Exit() != fault.ExitSplitBrain || !strings.Contains(f.Why, "alone says that it is off") {
		t.Errorf("the statement alone: %v", err)
	}
	b.stop()
	cb = w.configure("b", "listen: "+cb.Listen+"\npeers: [{name: a, pin: \""+cb.Peers[0].Pin+"\", address: \""+cb.Peers[0].Address+"\"}]\ngroups:\n- name: web\n  peers: [a]\n  fence: {programs: [{path: "+one+", plug: web, timeout: 1m}]}\n")
	b = w.run(cb)
	done, err := b.Failover(ctx, q, func(control.Progress) {})
	if err != nil || done.Unfenced || !strings.Contains(done.Proof.Why, "statement of a") {
		t.Fatalf("%+v, %v", done, err)
	}
	b.reads("web/root", 7, 0, 4096)
	b.write("web/root", 8, 0, 4096)
	await(t, "a follows b", func() bool { return a.lagOf("web", "b", "in").State == "streaming" })
	awaitLevel(b, a, "web")
	if g := a.groupLine("web"); g.Role != "replica" || g.State == control.StateHalted {
		t.Errorf("a is %s, %s", g.Role, g.State)
	}
}

// tryWrite is one write, if the disk is there.
func (r *running) tryWrite(name string) error {
	x, err := r.lookupExport(context.Background(), name)
	if err != nil {
		return err
	}
	return x.Device.WriteAt(context.Background(), make([]byte, 512), 0, false)
}

// A statement that was changed, that is about another group, or after which the site wrote
// again is refused before anything is planned.
func TestStatementsThatDoNotHold(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	one := device(t, w.dir, "fence_one", false)
	mail := "- name: mail\n  role: primary\n  peers: [b]\n  volumes: [{name: root, size: 1MiB, embedded: {image: mail.img}}]\n"
	ca, cb := w.pair(mail, "  fence: {programs: [{path: "+one+", plug: web, timeout: 1m}]}\n- {name: mail, peers: [a]}\n")
	a, b := w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	a.awaitState("mail", control.StateSynced)
	a.write("web/root", 7, 0, 4096)
	awaitLevel(a, b, "web")
	awaitLevel(a, b, "mail")
	other, old := a.standDown("mail"), a.standDown("web")
	refused := func(what, text, why string) {
		t.Helper()
		q := control.FailoverRequest{Group: "web", At: "latest", Statement: text}
		if _, err := b.PlanFailover(ctx, q); fault.Of(err) == nil || fault.Of(err).Code != fault.NotFenced || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("another group's", other, "about another group")
	// Every character of it counts, but for its very last, some bits of which carry nothing.
	for _, i := range []int{len(old) / 3, len(old) / 2, len(old) - 20} {
		forged := []byte(old)
		forged[i] = map[bool]byte{true: 'B', false: 'A'}[forged[i] == 'A']
		refused("a forged one", string(forged), "the statement is refused")
	}
	refused("half of it", old[:len(old)/2], "cut short or changed")
	// a person fails over to a again, and it writes.
	if _, err := a.Failover(ctx, control.FailoverRequest{Group: "web", At: "latest", Force: true, NoMachine: true}, func(control.Progress) {}); err != nil {
		t.Fatal(err)
	}
	a.write("web/root", 9, 0, 4096)
	awaitLevel(a, b, "web")
	a.stop()
	await(t, "b has lost a", func() bool { return b.peers.get("a").connections == 0 })
	refused("an old one", old, "wrote after it")
}

// A statement does not hold once its site is known to have begun another epoch, also by
// what a third site says, and after that one has gone too; nor where the newest history is
// that of another site.
func TestAStatementOfAnEarlierReign(t *testing.T) {
	w, ctx := newWorld(t).seats("a", "b", "c"), context.Background()
	ca := w.at("a", "- {name: web, role: primary, peers: [b, c], volumes: [{name: root, size: 1MiB, embedded: {image: root.img}}]}\n")
	cb, cc := w.at("b", "- {name: web, peers: [a, c]}\n"), w.at("c", "- {name: web, peers: [a, b]}\n")
	a, b, c := w.run(ca), w.run(cb), w.run(cc)
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 7, 0, 4096)
	awaitLevel(a, b, "web")
	awaitLevel(a, c, "web")
	old := a.standDown("web")
	b.stop() // it hears nothing of what follows
	force := control.FailoverRequest{Group: "web", At: "latest", Force: true, NoMachine: true}
	if _, err := a.Failover(ctx, force, quietly); err != nil {
		t.Fatal(err)
	}
	a.write("web/root", 8, 0, 4096)
	awaitLevel(a, c, "web")
	newer := a.standDown("web")
	a.stop()

	b = w.run(cb)
	refused := func(text, why string) func() bool {
		return func() bool {
			_, err := b.PlanFailover(ctx, control.FailoverRequest{Group: "web", At: "latest", Statement: text})
			f := fault.Of(err)
			return f != nil && f.Code == fault.NotFenced && strings.Contains(err.Error(), why)
		}
	}
	await(t, "c tells that a began another epoch", refused(old, "wrote after it"))
	b.stop()
	c.stop()
	b = w.run(cb)
	if !refused(old, "wrote after it")() {
		t.Error("what c told is forgotten")
	}
	c = w.run(cc)
	if _, err := c.Failover(ctx, force, quietly); err != nil {
		t.Fatal(err)
	}
	c.write("web/root", 9, 0, 4096)
	awaitLevel(c, b, "web")
	if !refused(newer, "that of c")() {
		t.Error("c reigned last, and that a is off is believed to matter")
	}
}

// The socket of a plain QEMU is gone, which proves nothing: its process runs, and what has
// one of its disks open may be it. Only when neither is there it is off.
func TestStandDownSeesAPlainMachineOff(t *testing.T) {
	w, ctx := newPlainWorld(t), context.Background()
	s := w.start(Options{})
	s.awaitState("web", control.StateSynced)
	w.guestWrites("root", 1, 0, 4096)
	refused := func(why string) {
		t.Helper()
		q := control.DecisionRequest{Verb: control.VerbStandDown, Group: "web"}
		plan, err := s.PlanDecision(ctx, q)
		if err != nil || len(plan.Refused) != 1 || !strings.Contains(plan.Refused[0], why) {
			t.Errorf("want %q: %+v, %v", why, plan.Refused, err)
		}
		if out, err := s.Decide(ctx, q, quietly); !fault.Is(err, fault.RoleForbids) || out.Statement != "" {
			t.Errorf("want %q: %+v, %v", why, out, err)
		}
	}
	if err := os.Remove(w.m.QMP); err != nil {
		t.Fatal(err)
	}
	refused("runs: shut it down first")
	w.m.Kill()
	disk, err := recovery.Drive{Path: w.files()[1], Format: "raw"}.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	refused("has the disk of volume data open")
	if err := disk.Close(); err != nil {
		t.Fatal(err)
	}
	text := s.standDown("web")
	x, err := fence.Statement{Text: text, Site: "a", Identity: s.groups[0].id, Key: func([]byte) bool { return true }}.Standing()
	if err != nil || !strings.Contains(x.How, "nobody has its disks open") {
		t.Errorf("%+v, %v", x, err)
	}
}

// What runs here is not stood down from: nothing is given up, nothing signed.
func TestStandDownSeesTheMachineOff(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	s := w.run(w.configure("a", "groups:\n- {name: web, role: primary, volumes: [{name: root, size: 1MiB, embedded: {image: w.img}}], machine: {name: m, binary: /bin/true, disks: [{volume: root, id: d0}]}}\n"))
	s.awaitState("web", control.StateSynced)
	s.write("web/root", 1, 0, 512)
	pid := strconv.Itoa(os.Getpid())
	pretend(t, s.machineFor(s.groups[0], s.groups[0].cfg.Machine), pid)
	q := control.DecisionRequest{Verb: control.VerbStandDown, Group: "web"}
	plan, err := s.PlanDecision(ctx, q)
	if err != nil || len(plan.Refused) == 0 || !strings.Contains(plan.Refused[0], pid) {
		t.Fatalf("%+v, %v", plan, err)
	}
	if out, err := s.Decide(ctx, q, func(control.Progress) {}); !fault.Is(err, fault.RoleForbids) || out.Statement != "" {
		t.Errorf("%+v, %v", out, err)
	}
	if g := s.groupLine("web"); g.Role != "primary" {
		t.Errorf("given up all the same: %s", g.Role)
	}
}

// A tap is in a machine that runs, whoever says that there is none; one that hears of the
// end only now is waited for.
func TestAMachineWithATapIsNotOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := &fakeTracker{running: true}
		tap, err := newTapping(pause{}, time.Now, nil, func() (cbt.Tracker, error) { return fake, nil })
		if err != nil {
			t.Fatal(err)
		}
		l := &life{reign: &reign{tracker: tap}}
		ctx, cancel := context.WithTimeout(t.Context(), examineBounded)
		defer cancel()
		if err := l.untapped(ctx); err == nil || !strings.Contains(err.Error(), "(synced): shut it down first") {
			t.Errorf("synced: %v", err)
		}
		time.AfterFunc(time.Second, func() {
			fake.mu.Lock()
			fake.running = false
			fake.mu.Unlock()
		})
		if err := l.untapped(t.Context()); err != nil {
			t.Errorf("it ended meanwhile: %v", err)
		}
		if err := (&life{}).untapped(t.Context()); err != nil {
			t.Errorf("nothing is tapped: %v", err)
		}
	})
}

// pretend holds a machine's lock as its QEMU would.
func pretend(t *testing.T, m recovery.Machine, pid string) {
	t.Helper()
	if err := os.MkdirAll(m.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(m.Dir, "qemu.pid"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteString(pid + "\n"); err != nil {
		t.Fatal(err)
	}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		t.Fatal(err)
	}
}
