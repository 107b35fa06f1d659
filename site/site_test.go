package site

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// TestMain also is a site of a test's, and the watchdog of guards: those processes are
// this program.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == WatchdogCommand {
		os.Exit(guardDog(os.Args[2:]))
	}
	if path := os.Getenv(mortalSite); path != "" {
		os.Exit(liveAndDie(path))
	}
	if len(os.Args) > 1 && os.Args[1] == PackCommand {
		os.Exit(packDog(os.Args[2:]))
	}
	goleak.VerifyTestMain(m)
}

func TestWriteMarkAttackLookBackFailOver(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	ca, cb := w.pair("", "")
	a, b := w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	b.awaitState("web", control.StateReceiving)

	a.write("web/root", 0x11, 0, 64<<10)
	a.write("web/data", 0x22, 4096, 8192)
	if _, err := a.Mark(ctx, control.MarkRequest{Group: "web", Name: "before"}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Mark(ctx, control.MarkRequest{Group: "web", Name: "before"}); !fault.Is(err, fault.MarkName) {
		t.Errorf("a mark's name was given twice: %v", err)
	}
	a.write("web/root", 0x66, 0, 64<<10)
	awaitLevel(a, b, "web")
	if _, err := b.Mark(ctx, control.MarkRequest{Group: "web", Name: "x"}); !fault.Is(err, fault.NotPrimary) {
		t.Errorf("a replica set a mark: %v", err)
	}

	// b shows the past while it receives.
	to := filepath.Join(w.dir, "out")
	r, err := b.Restore(ctx, control.RestoreRequest{Group: "web", At: "name:before", To: to + "/", Format: control.FormatSparse}, func(control.Progress) {})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Files) != 2 || !r.Files[0].Verified {
		t.Errorf("restored %+v", r.Files)
	}
	root, err := os.ReadFile(filepath.Join(to, "root.raw"))
	if err != nil {
		t.Fatal(err)
	}
	if len(root) != 1<<20 || root[0] != 0x11 || root[64<<10-1] != 0x11 || root[64<<10] != 0 {
		t.Error("the restored file is not the disk before the attack")
	}

	// While a answers, b does not take over.
	q := control.FailoverRequest{Group: "web", At: "name:before"}
	plan, err := b.PlanFailover(ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	if plan.Loss.Writes != 1 || plan.Loss.Bytes != 64<<10 || len(plan.Refused) == 0 {
		t.Errorf("plan: loss %+v, refused %v", plan.Loss, plan.Refused)
	}
	if _, err := b.Failover(ctx, q, func(control.Progress) {}); !fault.Is(err, fault.PrimaryAlive) {
		t.Errorf("failover beside a living primary: %v", err)
	}
	a.stop()
	if _, err := b.Failover(ctx, control.FailoverRequest{Group: "web", At: "name:before", Expect: "other", Force: true}, func(control.Progress) {}); !fault.Is(err, fault.PlanStale) {
		t.Errorf("another plan than the one shown: %v", err)
	}
	q.Force, q.Operator = true, "tester"
	done, err := b.Failover(ctx, q, func(control.Progress) {})
	if err != nil {
		t.Fatal(err)
	}
	if done.Epoch <= 1 || !done.Unfenced || len(done.Exports) != 2 || done.RTOSeconds <= 0 {
		t.Errorf("failed over: %+v", done)
	}
	if _, err := os.Stat(done.Report); err != nil {
		t.Error(err)
	}
	b.reads("web/root", 0x11, 0, 64<<10)
	b.reads("web/data", 0x22, 4096, 8192)
	b.write("web/root", 0x33, 512, 1024)
	b.awaitState("web", control.StateSynced)
	if g := b.groupLine("web"); g.Role != string(recovery.Uncommitted) {
		t.Errorf("role %s after a failover", g.Role)
	}
	if _, err := b.PlanFailover(ctx, q); !fault.Is(err, fault.NotReplica) {
		t.Errorf("a second failover: %v", err)
	}

	// The role and what was written survive a restart; the configuration still says replica.
	b.stop()
	b = w.run(cb)
	b.awaitState("web", control.StateSynced)
	b.reads("web/root", 0x33, 512, 1024)
	b.reads("web/root", 0x11, 2048, 1024)
}

func TestReturnedPrimaryIsFoundToHaveDiverged(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	ca, cb := w.pair("", "")
	a, b := w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 1, 0, 4096)
	awaitLevel(a, b, "web")
	a.stop()
	if _, err := b.Failover(ctx, control.FailoverRequest{Group: "web", At: "latest", Force: true}, func(control.Progress) {}); err != nil {
		t.Fatal(err)
	}
	b.write("web/root", 2, 0, 4096)
	a = w.run(ca)
	b.awaitState("web", control.StateHalted)
	a.awaitState("web", control.StateHalted)
	a.reads("web/root", 1, 0, 4096)
	b.reads("web/root", 2, 0, 4096)
	if d, err := a.Group(ctx, "web"); err != nil || !strings.Contains(d.Conflict, "split brain") {
		t.Errorf("conflict %q, %v", d.Conflict, err)
	}
}

func TestInterruptedFailoverIsFinished(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ca, cb := w.pair("", "")
	a, b := w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 7, 0, 4096)
	awaitLevel(a, b, "web")
	a.stop()
	l, release, err := b.groups[0].use()
	if err != nil {
		t.Fatal(err)
	}
	plan, err := l.plan(context.Background(), control.FailoverRequest{Group: "web", At: "latest"})
	if err != nil {
		t.Fatal(err)
	}
	order, err := plan.Order("tester", true)
	if err != nil {
		t.Fatal(err)
	}
	// The intent is durable, and then the site died.
	err = l.j.Remember(recovery.PromotionKey, recovery.Promotion{ID: cbt.NewID(), State: recovery.PromotionBegun, Order: order, Began: time.Now(), Known: plan.NewEpochNumber - 1})
	if err != nil {
		t.Fatal(err)
	}
	release()
	b.stop()
	b = w.run(cb)
	b.awaitState("web", control.StateSynced)
	b.reads("web/root", 7, 0, 4096)
	if g := b.groupLine("web"); g.Role != string(recovery.Uncommitted) {
		t.Errorf("role %s, want uncommitted", g.Role)
	}
}

// A frame that is under way when the role changes is not appended.
func TestPrimaryAppendsNoFrames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.run(w.configure("a", twoGroups))
	s.awaitState("web", control.StateSynced)
	l, release, err := s.groups[0].use()
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if _, _, err := (guard{l: l}).AppendFrame(context.Background(), strings.NewReader("x"), 1, journal.Chain{}); !errors.Is(err, replicator.ErrNotReplica) {
		t.Errorf("a frame at a primary: %v", err)
	}
}

func TestSecondDaemonRefusesToStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.configure("a", "")
	first := w.run(c)
	_, err := Open(c, Options{})
	if f := fault.Of(err); f.Code != fault.DaemonTwice || f.Exit() != fault.ExitBusy || !strings.Contains(f.Why, "process ") {
		t.Errorf("second daemon: %v, exit %d", err, f.Exit())
	}
	first.stop()
	second, err := Open(c, Options{})
	if err != nil {
		t.Fatalf("after the first ended: %v", err)
	}
	second.Close()
}

const twoGroups = `groups:
- {name: web, role: primary, volumes: [{name: root, size: 1MiB, embedded: {image: w.img}}]}
- {name: db, tenant: acme, role: primary, volumes: [{name: root, size: 1MiB, embedded: {image: d.img}}]}
`

func TestOneGroupFailsAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.configure("a", twoGroups)
	s := w.run(c)
	s.awaitState("web", control.StateSynced)
	s.awaitState("acme/db", control.StateSynced)
	s.write("acme/db/root", 9, 0, 512)
	s.stop()
	id := filepath.Join(c.Data, "groups", "default", "web", "identity.json")
	was, err := os.ReadFile(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(id, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = w.run(c)
	s.awaitState("acme/db", control.StateSynced)
	s.reads("acme/db/root", 9, 0, 512)
	s.awaitState("web", control.StateFailed)
	if _, err := s.Points(context.Background(), control.PointsQuery{Group: "web"}); !fault.Is(err, fault.GroupFailed) {
		t.Errorf("points of a failed group: %v", err)
	}
	if err := os.WriteFile(id, was, 0o600); err != nil {
		t.Fatal(err)
	}
	s.awaitState("web", control.StateSynced) // tried again by itself
}

func TestReachWithoutDaemonReadsAndRefusesTheRest(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	c := w.configure("a", twoGroups)
	api := Reach(c, Options{})
	if st, err := api.Status(ctx); err != nil || st.Daemon != control.NotRunning || st.Groups[0].State != control.StateStopped {
		t.Errorf("before the first start: %+v, %v", st, err)
	}
	if _, err := api.Points(ctx, control.PointsQuery{Group: "web"}); !fault.Is(err, fault.JournalAbsent) {
		t.Errorf("points before the first start: %v", err)
	}
	s := w.run(c)
	s.awaitState("web", control.StateSynced)
	s.write("web/root", 5, 0, 1<<20)
	live, err := api.Group(ctx, "web")
	if err != nil || live.State != control.StateSynced {
		t.Errorf("through the daemon: %+v, %v", live, err)
	}
	s.stop()
	st, err := api.Status(ctx)
	if err != nil || st.Daemon != control.NotRunning || st.Groups[0].Seq < live.Seq || st.Groups[0].Role != "primary" {
		t.Errorf("without: %+v, %v", st, err)
	}
	to := filepath.Join(w.dir, "root.raw")
	if _, err := api.Restore(ctx, control.RestoreRequest{Group: "web", At: "latest", To: to, Format: control.FormatRaw}, func(control.Progress) {}); err != nil {
		t.Fatal(err)
	}
	_, err = api.Restore(ctx, control.RestoreRequest{Group: "web", At: "latest", To: to, Format: control.FormatRaw}, func(control.Progress) {})
	if !fault.Is(err, fault.FileExists) {
		t.Errorf("a file was overwritten: %v", err)
	}
	for name, f := range map[string]func() error{
		"mark": func() error { _, err := api.Mark(ctx, control.MarkRequest{Group: "web", Name: "x"}); return err },
		"plan": func() error {
			_, err := api.PlanFailover(ctx, control.FailoverRequest{Group: "web", At: "latest"})
			return err
		},
		"view": func() error {
			return api.Serve(ctx, control.ServeRequest{Group: "web", At: "latest"}, func(control.View) {})
		},
	} {
		if err := f(); !fault.Is(err, fault.NeedsDaemon) {
			t.Errorf("%s without a daemon: %v", name, err)
		}
	}
	lock, err := lockData(c.Data)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if _, err := api.Points(ctx, control.PointsQuery{Group: "web"}); !fault.Is(err, fault.ControlBroken) {
		t.Errorf("a daemon whose socket is gone: %v", err)
	}
}

func TestViewsEndWithCallerCloseAndSite(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	c := w.configure("a", twoGroups)
	s := w.run(c)
	s.awaitState("web", control.StateSynced)
	s.write("web/root", 5, 0, 4096)
	views := func() int {
		vs, err := s.Views(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return len(vs)
	}
	leased, end := context.WithCancel(ctx)
	opened, ended := make(chan control.View, 1), make(chan error, 1)
	go func() {
		ended <- s.Serve(leased, control.ServeRequest{Group: "web", At: "latest", Scratch: true, Lease: true}, func(v control.View) { opened <- v })
	}()
	v := <-opened
	if _, err := os.Stat(v.Listen); err != nil || views() != 1 || !strings.Contains(v.Exports[0].URI, "socket=") {
		t.Errorf("view %+v, %v", v, err)
	}
	end()
	<-ended
	if _, err := os.Stat(v.Listen); !errors.Is(err, fs.ErrNotExist) || views() != 0 {
		t.Errorf("the view outlives its caller: %v", err)
	}
	var kept control.View
	if err := s.Serve(ctx, control.ServeRequest{Group: "web", At: "latest", Listen: "127.0.0.1:0"}, func(v control.View) { kept = v }); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseView(ctx, kept.ID); err != nil || views() != 0 {
		t.Errorf("close: %v", err)
	}
	if err := s.CloseView(ctx, kept.ID); !fault.Is(err, fault.ViewUnknown) {
		t.Errorf("close twice: %v", err)
	}
	err := s.Serve(ctx, control.ServeRequest{Group: "web", At: "latest", Listen: "0.0.0.0:0"}, func(control.View) {})
	if !fault.Is(err, fault.Usage) {
		t.Errorf("an unencrypted export for everybody: %v", err)
	}
	if err := s.Serve(ctx, control.ServeRequest{Group: "web", At: "latest"}, func(control.View) {}); err != nil {
		t.Fatal(err)
	}
	s.stop() // ends though a view is open
}

func TestUnpinnedPeerGetsNothingAndIsNamed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ca, cb := w.pair("", "")
	ra, rb := w.runPair(ca, cb)
	ra.stop()
	// Somebody with another key, who knows all else.
	if err := os.Remove(ca.Key); err != nil {
		t.Fatal(err)
	}
	pin, err := Pin(ca)
	if err != nil {
		t.Fatal(err)
	}
	w.run(ca)
	await(t, "the caller's pin is in the log", func() bool { return strings.Contains(rb.log.String(), pin) })
	if g := rb.groupLine("web"); g.State != control.StateWaiting {
		t.Errorf("state %s", g.State)
	}
}

func TestFlippedByteIsNamedAndOtherPointsStay(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	c := w.configure("a", twoGroups)
	s := w.run(c)
	s.awaitState("web", control.StateSynced)
	s.write("web/root", 0xA1, 0, 64<<10)
	if _, err := s.Mark(ctx, control.MarkRequest{Group: "web", Name: "good"}); err != nil {
		t.Fatal(err)
	}
	s.write("web/root", 0xB2, 0, 7<<10) // less than would be packed
	s.stop()
	s = w.run(c) // what an opening reads again lies after the damage
	s.awaitState("web", control.StateSynced)
	s.write("web/root", 0xC3, 512<<10, 4096)
	s.stop()
	flip(t, filepath.Join(c.Data, "groups", "default", "web"), 0xB2)
	api := Reach(c, Options{})
	_, err := api.Restore(ctx, control.RestoreRequest{Group: "web", At: "latest", To: filepath.Join(w.dir, "bad"), Format: control.FormatSparse}, func(control.Progress) {})
	if f := fault.Of(err); f.Code != fault.JournalDamage || f.Exit() != fault.ExitVerification || !strings.Contains(f.Why, "seq") {
		t.Errorf("damage is told as %v", err)
	}
	if _, err := os.Stat(filepath.Join(w.dir, "bad")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a damaged file was left: %v", err)
	}
	if _, err := api.Restore(ctx, control.RestoreRequest{Group: "web", At: "name:good", To: filepath.Join(w.dir, "good"), Format: control.FormatSparse}, func(control.Progress) {}); err != nil {
		t.Errorf("a point before the damage: %v", err)
	}
}

// flip changes one byte in the middle of a run of fill in a segment.
func flip(t *testing.T, dir string, fill byte) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "segments", "*"))
	if err != nil {
		t.Fatal(err)
	}
	run := string([]byte{fill, fill, fill, fill, fill, fill, fill, fill})
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if i := strings.Index(string(b), run); i >= 0 {
			b[i+5000] ^= 0x40
			if err := os.WriteFile(file, b, 0o600); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatal("no segment holds the bytes")
}

func TestIdentitiesDependOnNamesAlone(t *testing.T) {
	web := config.Group{Tenant: "default", Name: "web"}
	elsewhere := config.Group{Tenant: "default", Name: "web", Role: config.Primary, Peers: []string{"b"}}
	if identityOf(web) != identityOf(elsewhere) || identityOf(web) == identityOf(config.Group{Tenant: "acme", Name: "web"}) {
		t.Error("identities")
	}
	// Names are separated: tenant "a", group "bc" is not tenant "ab", group "c".
	if identityOf(config.Group{Tenant: "a", Name: "bc"}) == identityOf(config.Group{Tenant: "ab", Name: "c"}) {
		t.Error("two groups share an identity")
	}
}
