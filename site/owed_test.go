package site

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
	"github.com/novacron/afterimage/testbed/scale"
)

// A peer that says that it reigns keeps a machine off for as long as it says so; one that
// does not answer only while that is waited for.
func TestWhatPeersHaveAgainstAStart(t *testing.T) {
	away := errors.New("away")
	as := func(role recovery.Role, stage recovery.Stage) func() (heads, error) {
		return func() (heads, error) { return heads{Role: role, Stage: stage}, nil }
	}
	silent := func() (heads, error) { return heads{}, away }
	for _, x := range []struct {
		name             string
		b, c             func() (heads, error)
		patient, anyways string // what speaks against it
	}{
		{"both follow", as(recovery.Replica, recovery.StageReplica), as(recovery.Replica, recovery.StageReplica), "", ""},
		{"one reigns", as(recovery.Replica, recovery.StageReplica), as(recovery.Uncommitted, recovery.StageUncommitted), "c is uncommitted", "c is uncommitted"},
		{"one is silent, one reigns", silent, as(recovery.Primary, recovery.StagePrimary), "c is primary", "c is primary"},
		{"one hands over", as(recovery.Primary, recovery.StageDraining), as(recovery.Replica, recovery.StageReplica), "b is draining", "b is draining"},
		{"one has ceded", as(recovery.Primary, recovery.StageCeded), as(recovery.Replica, recovery.StageReplica), "", ""},
		{"one is silent", as(recovery.Replica, recovery.StageReplica), silent, "c has not told", ""},
		{"all are silent", silent, silent, "c has not told", ""},
	} {
		ask := func(peer string) (heads, error) {
			if peer == "b" {
				return x.b()
			}
			return x.c()
		}
		for patient, want := range map[bool]string{true: x.patient, false: x.anyways} {
			got := notStartedBy([]string{"b", "c"}, patient, ask)
			if (got == "") != (want == "") || !strings.HasPrefix(got, want) {
				t.Errorf("%s, patient %v: %q, want %q", x.name, patient, got, want)
			}
		}
	}
	if got := notStartedBy(nil, true, nil); got != "" {
		t.Errorf("without peers: %q", got)
	}
}

// A machine that is owed a start stays off while a peer says that it is primary, and the
// status says why.
func TestAMachineThatIsOwedAStartWaitsForAPeerThatReigns(t *testing.T) {
	t.Parallel()
	scale.Tools(t, "qemu-system-x86_64")
	w := newWorld(t)
	ca, cb := w.pair("", machineOfWeb)
	w.program(`echo started >> "` + w.dir + `/starts"; exec qemu-system-x86_64 "$@"`)
	a, b := w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 1, 0, 4096)
	awaitLevel(a, b, "web")
	a.stop()
	failOver(t, b, control.FailoverRequest{NoMachine: true})
	b.awaitRole("web", recovery.Uncommitted, control.StateSynced)
	l, release := b.lifeOf()
	err := l.j.Remember(stoppedKey, stoppedFor{Machine: "web1", Since: time.Now()})
	release()
	if err != nil {
		t.Fatal(err)
	}
	b.stop()
	a = w.run(ca) // it was never told, and reigns too
	a.awaitRole("web", recovery.Primary, control.StateSynced)
	b = w.runWith(cb, Options{peersPatience: time.Hour})
	await(t, "it waits", func() bool {
		for _, n := range b.groupLine("web").Notices {
			if n.Level == control.Alarm && strings.Contains(n.Text, "machine web1 is not started: a is primary") {
				return true
			}
		}
		return false
	})
	if _, err := os.Stat(filepath.Join(w.dir, "starts")); err == nil {
		t.Error("it was started")
	}
	b.stop()
}

// A machine that a rewind has turned off, and that is another one by the time when it would
// be started, is told of until what is configured runs.
func TestAStartThatIsOwedToAnotherMachineIsTold(t *testing.T) {
	t.Parallel()
	scale.Tools(t, "qemu-system-x86_64")
	w := newWorld(t)
	ca, cb := w.pair("", machineOfWeb)
	w.program(`exec qemu-system-x86_64 "$@"`)
	a, b := w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 1, 0, 4096)
	awaitLevel(a, b, "web")
	a.stop()
	failOver(t, b, control.FailoverRequest{NoMachine: true})
	b.awaitRole("web", recovery.Uncommitted, control.StateSynced)
	b.stop()
	j := w.offline(cb)
	if err := j.Remember(stoppedKey, stoppedFor{Machine: "web1, db1", Since: time.Now()}); err != nil {
		t.Fatal(err)
	}
	j.close()
	b = w.runWith(cb, Options{peersPatience: time.Millisecond})
	told := func() bool {
		for _, n := range b.groupLine("web").Notices {
			if n.Level == control.Alarm && strings.Contains(n.Text, "machine web1, db1 is not started") && strings.Contains(n.Text, "configured now is web1") {
				return true
			}
		}
		return false
	}
	await(t, "it is told", told)
	failOver(t, b, control.FailoverRequest{}) // starts what is configured
	await(t, "nothing is owed any more", func() bool { return !told() })
	l, release := b.lifeOf()
	defer release()
	var was stoppedFor
	if _, err := l.j.Recall(stoppedKey, &was); err != nil || was.Machine != "" {
		t.Errorf("owed: %+v, %v", was, err)
	}
	b.endMachine()
}

// A start that a rewind owes ends with the role, and the tapped domain, whose disks are of
// another history, is not started beside the machine of a failover; what the rewind took
// from its autostart stays known.
func TestAStartThatIsOwedEndsWithTheRole(t *testing.T) {
	w := newWorld(t)
	ca, cb := w.pair("", "  libvirt: {domain: web, uri: 'qemu:///session?socket=/nonexistent', sockets: '{dir}/s', disks: all}\n")
	a, b := w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 1, 0, 4096)
	awaitLevel(a, b, "web")
	a.stop()
	b.stop()
	owed := stoppedFor{Machine: "web", Since: time.Now(), Tapped: &tappedMachine{Domain: "d", Autostart: true}}
	j := w.offline(cb)
	if err := j.Remember(stoppedKey, owed); err != nil {
		t.Fatal(err)
	}
	j.close()
	b = w.run(cb)
	b.awaitState("web", control.StateWaiting)
	l, release := b.lifeOf()
	<-l.settled
	var was stoppedFor
	_, err := l.j.Recall(stoppedKey, &was)
	release()
	if err != nil || was.Machine != "" || was.Tapped == nil || !was.Tapped.Autostart {
		t.Errorf("a replica owes %+v, %v", was, err)
	}

	failOver(t, b, control.FailoverRequest{NoMachine: true})
	b.awaitRole("web", recovery.Uncommitted, control.StateSynced)
	l, release = b.lifeOf()
	defer release()
	if err := l.j.Remember(stoppedKey, owed); err != nil {
		t.Fatal(err)
	}
	if started, err := l.startAgain(t.Context()); started || err != nil {
		t.Errorf("beside the disks of the history: started %v, %v", started, err)
	}
	if err := l.autostartBack(t.Context()); err != nil {
		t.Errorf("its autostart, beside the disks of the history: %v", err)
	}
}

// A guest that was told to switch itself off is looked after until it is known to stay.
func TestAGuestThatMaySwitchItselfOffLateIsLookedAfter(t *testing.T) {
	now := time.Unix(1e9, 0)
	for _, x := range []struct {
		seen time.Time
		want bool
	}{{time.Time{}, false}, {now, false}, {now.Add(-shutPatience + 1), false}, {now.Add(-shutPatience), true}, {now.Add(time.Hour), false}} {
		if got := (shutFor{Seen: x.seen}).stays(now); got != x.want {
			t.Errorf("seen %v: %v", x.seen, got)
		}
	}
}

// Before a rewind forks anything, each disk that it will write to is there and fits.
func TestDrivesFitTheirVolumes(t *testing.T) {
	root, image := config.Volume{Name: "root", Size: 4096}, config.Volume{Name: "image", Size: 512, Embedded: &config.Embedded{}}
	l := &life{group: &group{cfg: config.Group{Tenant: "default", Name: "web", Volumes: []config.Volume{root, image}}}}
	a, b := volumeOf(l.cfg, root), volumeOf(l.cfg, image)
	for _, x := range []struct {
		sizes map[string]int64
		ok    bool
	}{{map[string]int64{a.ID.String(): 4096}, true}, {map[string]int64{a.ID.String(): 8192}, false}, {map[string]int64{a.ID.String(): 2048}, false}, {map[string]int64{b.ID.String(): 512}, false}, {nil, false}} {
		if err := l.drivesFit([]cbt.Volume{a, b}, x.sizes); (err == nil) != x.ok || err != nil && !errors.Is(err, recovery.ErrDrive) {
			t.Errorf("%v: %v", x.sizes, err)
		}
	}
}

// A domain whose memory is saved, or whose disk is not its alone, is not written to.
func TestDisksThatMustNotBeWrittenToAreRefused(t *testing.T) {
	t.Parallel()
	scale.Tools(t, "qemu-nbd", "qemu-img")
	w, ctx := newBootWorld(t), context.Background()
	w.virsh("start", "web")
	w.virsh("managedsave", "web")
	r := w.boot("first")
	w.awaitWaiting(r) // it is off, and not started
	l, release := r.lifeOf()
	defer release()
	refused := func(what, part string) {
		t.Helper()
		if _, err := l.homeDisks(ctx); !fault.Is(err, fault.ImageTrouble) || !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("saved memory", "memory is saved")
	look := func() tappedMachine {
		t.Helper()
		m, err := l.lookAtTapped(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	m := look()
	if m.running != "" || !m.saved {
		t.Errorf("found %+v", m)
	}
	if err := (&rewinding{life: l}).stopTapped(ctx); !fault.Is(err, fault.RewindElsewhere) {
		t.Errorf("a rewind of it: %v", err)
	}
	w.virsh("managedsave-remove", "web")
	if m := look(); m.saved {
		t.Errorf("found %+v", m)
	}
	if disks, err := l.definedDisks(ctx); err != nil || len(disks) != 1 {
		t.Fatalf("off: %v, %v", disks, err)
	}
	refusedAs := func(code fault.Code, part string) {
		t.Helper()
		if _, err := l.homeDisks(ctx); !fault.Is(err, code) || !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %v", part, err)
		}
	}
	refusedAs(fault.HomeElsewhere, "where volume root lay when the domain ran is not known")
	p := filepath.Join(w.dir, "transient.xml")
	if err := os.WriteFile(p, []byte(strings.Replace(w.virsh("dumpxml", "--inactive", "web"), "</disk>", "<transient/></disk>", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	w.virsh("define", p)
	refused("transient", "transient")
}

// Who has one peer follow decides nothing about the others, and takes nothing back.
func TestReprotectOfOnePeerLeavesTheOthers(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	ca, _ := w.pair("", "")
	pin, err := Pin(w.configure("c", ""))
	if err != nil {
		t.Fatal(err)
	}
	ca.Peers = append(ca.Peers, config.Peer{Name: "c", Pin: pin})
	ca.Groups[0].Peers = append(ca.Groups[0].Peers, "c")
	var l *life
	a := w.runWith(ca, Options{passed: func(step string) {
		if step == "who is to follow is remembered" && l.orders.TryLock() {
			t.Error("a peer may be asked by two at a time")
			l.orders.Unlock()
		}
	}})
	a.awaitState("web", control.StateSynced)
	l, release := a.lifeOf()
	defer release()
	kept := func() protecting {
		t.Helper()
		var out protecting
		if _, err := l.j.Recall(protectKey, &out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	var d control.Decision
	if err := l.reprotect(ctx, &d, "tester", "b"); err != nil {
		t.Fatal(err)
	}
	if p := kept(); len(p) != 1 || p["b"].Operator != "tester" || len(d.Away) != 1 {
		t.Errorf("for b: %+v, %+v", p, d)
	}
	if err := l.reprotect(ctx, &d, "other", "c"); err != nil {
		t.Fatal(err)
	}
	if p := kept(); len(p) != 2 || p["b"].Operator != "tester" || p["c"].Operator != "other" {
		t.Errorf("for c too: %+v", p)
	}
	if err := l.reprotect(ctx, &d, "third", ""); err != nil {
		t.Fatal(err)
	}
	if p := kept(); len(p) != 2 || p["b"].Operator != "third" || p["c"].Operator != "third" {
		t.Errorf("for all: %+v", p)
	}
}

// Who decides about peers and gives up does not wait for one that is being asked and hangs;
// the others are asked in between.
func TestAPersonWaitsForNoPeerThatHangs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ca, _ := w.pair("", "")
	a := w.run(ca)
	a.awaitState("web", control.StateSynced)
	l, release := a.lifeOf()
	defer release()
	if err := l.orders.Lock(t.Context()); err != nil { // as somebody does who asks
		t.Fatal(err)
	}
	ctx, leave := context.WithCancelCause(t.Context())
	gone := errors.New("the caller went away")
	done := make(chan error, 1)
	go func() {
		var d control.Decision
		done <- l.reprotect(ctx, &d, "tester", "b")
	}()
	leave(gone)
	select {
	case err := <-done:
		if !errors.Is(err, gone) {
			t.Errorf("gave up: %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("waits though its caller has gone")
	}
	var kept protecting
	if _, err := l.j.Recall(protectKey, &kept); err != nil || len(kept) > 0 {
		t.Errorf("who is to follow: %+v, %v", kept, err)
	}
	l.orders.Unlock()
	var d control.Decision
	if err := l.reprotect(t.Context(), &d, "tester", "b"); err != nil {
		t.Error(err)
	}
}

// The report of a decision says of the old primary what was known when it was failed over.
func TestADecisionsReportSaysThatTheFailoverWasUnfenced(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := levelPair(w)
	a.stop()
	failOver(t, b, control.FailoverRequest{})
	b.awaitRole("web", recovery.Uncommitted, control.StateSynced)
	d := decide(t, b, control.VerbCommit, "")
	text, err := os.ReadFile(strings.TrimSuffix(d.Report, ".html") + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var r recovery.Report
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	if o := r.Outcome; !o.Unfenced || o.Plan.Fence.Off() || o.Plan.Loss.Known {
		t.Errorf("unfenced %v, fence %s, loss known %v", o.Unfenced, o.Plan.Fence, o.Plan.Loss.Known)
	}
}
