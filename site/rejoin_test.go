package site

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// strayed is a replica that holds records which its primary's history has left, and has
// thinned where that was.
type strayed struct {
	*load                 // of the primary
	b, c         *running // c: the last of those that it goes to, which is where b is
	pinned, fork uint64
	held         uint64    // the end of what the replica holds
	before       []written // of the history that holds that
}

// straying is how two sites get there.
type straying struct {
	pin   bool   // the replica keeps a point that both hold
	key   string // of what is sealed, which the replica has not; empty: nothing is
	relay bool   // there is a third site, which the replica sends to
}

// sites runs them. A replica thins what is older than a second whenever it is told to.
func (how straying) sites(t *testing.T) (a *running, replicas []*running) {
	names, sent := []string{"a", "b"}, "- {name: web, peers: [a]}\n"
	if how.relay {
		names, sent = append(names, "c"), "- {name: web, peers: [a, c], relay: [c]}\n"
	}
	w := newWorld(t).seats(names...)
	thins := func(c *config.Config) {
		g := &c.Groups[0]
		g.Quota, g.Warn = 32<<20, config.DefaultWarn()
		g.History = []config.Rung{{Every: config.EveryWrite, For: config.For(time.Second)}}
		g.Maintenance = &config.Maintenance{Every: config.Duration(time.Hour), Rate: 1 << 30}
		replicas = append(replicas, w.run(c))
	}
	ca := w.at("a", "- name: web\n  role: primary\n  peers: [b]\n  volumes: [{name: root, size: 4MiB, embedded: {image: root.img}}]\n")
	if how.key != "" {
		withKey(ca, how.key)
	}
	a = w.run(ca)
	thins(w.at("b", sent))
	if how.relay {
		thins(w.at("c", "- {name: web, peers: [b]}\n"))
	}
	a.awaitState("web", control.StateSynced)
	return a, replicas
}

// stray brings sites there.
func stray(t *testing.T, how straying) *strayed {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	ctx := context.Background()
	a, replicas := how.sites(t)
	s := &strayed{load: &load{running: a, rng: rand.New(rand.NewPCG(seed, 9)), size: 4 << 20}, b: replicas[0], c: replicas[len(replicas)-1]}
	for off := int64(0); off < s.size; off += 256 << 10 {
		x := written{off: off, n: 256 << 10, seed: byte(7 + off>>18)}
		if err := a.device("web/root").WriteAt(ctx, x.data(), x.off, false); err != nil {
			t.Fatal(err)
		}
		x.seq = s.head()
		s.writes = append(s.writes, x)
	}
	s.pinned = s.head()
	for _, r := range replicas {
		awaitLevel(a, r, "web")
		if !how.pin {
			continue
		}
		if _, err := r.Pin(ctx, control.PinRequest{Group: "web", Name: "keep", At: fmt.Sprintf("#%d", s.pinned)}); err != nil {
			t.Fatal(err)
		}
	}
	for range 8 {
		s.writeOnce()
	}
	s.fork = s.head()
	for _, r := range replicas {
		await(t, "the fork is thinned at site "+r.cfg.Site, func() bool {
			for range 40 { // more segments, whole ones of which are folded
				s.writeOnce()
			}
			awaitLevel(a, r, "web")
			(&load{running: r}).maintain()
			_, err := r.Points(ctx, control.PointsQuery{Group: "web", At: fmt.Sprintf("#%d", s.fork)})
			return fault.Is(err, fault.HistoryThinned) || fault.Is(err, fault.PointUnknown)
		})
	}
	for _, r := range replicas { // the others' had more written
		awaitLevel(a, r, "web")
	}
	s.held, s.before = s.head(), s.writes
	if _, err := a.Rewind(ctx, control.RewindRequest{Group: "web", At: fmt.Sprintf("#%d", s.fork)}, func(control.Progress) {}); err != nil {
		t.Fatal(err)
	}
	a.awaitState("web", control.StateSynced)
	s.writes = nil
	for _, x := range s.before {
		if x.seq <= s.fork {
			s.writes = append(s.writes, x)
		}
	}
	for range 4 {
		s.writeOnce()
	}
	s.refused(a, s.b)
	return s
}

// refused waits until what one site sends another is refused, and who reads that is told
// what helps.
func (s *strayed) refused(from, to *running) {
	s.t.Helper()
	await(s.t, "it is refused at site "+to.cfg.Site, func() bool {
		l := from.lagOf("web", to.cfg.Site, "out")
		return l.State == replicator.StateRefused.String() && strings.Contains(l.Error, "at site "+to.cfg.Site+", group rejoin web")
	})
}

// withKey seals the group with the key of a file.
func withKey(c *config.Config, file string) {
	c.Keys = []config.TenantKey{{Name: "one", Tenant: config.DefaultTenant, File: file}}
	c.Groups[0].Key = "one"
}

func (s *strayed) restoredFrom(r *running, group, at string) []byte {
	s.t.Helper()
	file := filepath.Join(r.cfg.Data, "out")
	if _, err := r.Restore(context.Background(), control.RestoreRequest{Group: group, At: at, To: file, Format: control.FormatRaw, Overwrite: true}, func(control.Progress) {}); err != nil {
		s.t.Fatalf("restore %s of %s: %v", at, group, err)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		s.t.Fatal(err)
	}
	return got
}

// rejoin has a replica do so.
func (s *strayed) rejoin(at *running) control.Decision {
	s.t.Helper()
	ctx := context.Background()
	q := control.DecisionRequest{Verb: control.VerbRejoin, Group: "web", Operator: "anna"}
	plan, err := at.PlanDecision(ctx, q)
	if err != nil || len(plan.Refused) > 0 || plan.Aside != "web@1" {
		s.t.Fatalf("%+v, %v", plan, err)
	}
	if _, err := s.Site.PlanDecision(ctx, q); !fault.Is(err, fault.NotReplica) {
		s.t.Errorf("at the primary: %v", err)
	}
	if got := at.groupLine("web").Seq; got != s.held {
		s.t.Errorf("after the plan it stands at %d, want %d", got, s.held)
	}
	q.Expect = plan.Digest
	done, err := at.Decide(ctx, q, func(control.Progress) {})
	if err != nil || !done.Done || done.Aside != plan.Aside {
		s.t.Fatalf("%+v, %v", done, err)
	}
	awaitLevel(s.running, at, "web")
	return plan
}

// level compares what a replica holds, and what was set aside there, with what was written.
func (s *strayed) level(at *running) {
	s.t.Helper()
	if !bytes.Equal(s.restoredFrom(at, "web", "latest"), s.image(s.head())) {
		s.t.Errorf("site %s differs", at.cfg.Site)
	}
	old := &load{size: s.size, writes: s.before}
	if !bytes.Equal(s.restoredFrom(at, "web@1", "latest"), old.image(s.held)) {
		s.t.Errorf("what was set aside at site %s differs from what was written", at.cfg.Site)
	}
}

// A replica that has thinned where the histories part is refused, and told how it goes on:
// from the newest point that both hold, by what differs since. What it held can be read.
func TestReplicaRejoinsFromThePointInCommon(t *testing.T) {
	t.Parallel()
	s, ctx := stray(t, straying{pin: true}), context.Background()
	moved := s.b.lagOf("web", "a", "in").MovedFor
	plan := s.rejoin(s.b)
	if plan.Fork == nil || plan.Fork.Seq != s.pinned || len(plan.Warnings) == 0 || !strings.Contains(plan.Warnings[0], "pin keep") {
		t.Errorf("plan %+v", plan)
	}
	s.level(s.b)
	after := s.b.lagOf("web", "a", "in").MovedFor
	if after > moved { // else it counts from its new life on
		after -= moved
	}
	if after > 5<<19 {
		t.Errorf("%d bytes were taken for a disk of 4 MiB of which at most 12 writes differ", after)
	}
	if !bytes.Equal(s.restoredFrom(s.b, "web", fmt.Sprintf("#%d", s.pinned)), s.image(s.pinned)) {
		t.Error("the point that it began with differs")
	}
	if !bytes.Equal(s.restoredFrom(s.b, "web@1", fmt.Sprintf("#%d", s.pinned)), s.image(s.pinned)) {
		t.Error("the pin is lost")
	}
	if _, err := s.b.Pin(ctx, control.PinRequest{Group: "web@1", Name: "x", At: "latest"}); !fault.Is(err, fault.GroupFailed) {
		t.Errorf("what was set aside is changed: %v", err)
	}
	if _, err := s.b.Points(ctx, control.PointsQuery{Group: "web@2"}); !fault.Is(err, fault.GroupUnknown) {
		t.Errorf("what is not there is read: %v", err)
	}
	again, err := s.b.PlanDecision(ctx, control.DecisionRequest{Verb: control.VerbRejoin, Group: "web"})
	if err != nil || len(again.Refused) != 1 {
		t.Errorf("a second time: %+v, %v", again, err)
	}
	if d, err := s.b.Group(ctx, "web"); err != nil || d.Role != string(recovery.Replica) {
		t.Errorf("it is %s, %v", d.Role, err)
	}
	for range 4 {
		s.writeOnce()
	}
	awaitLevel(s.running, s.b, "web")
	s.level(s.b)
}

// Where no point is in common the group begins with nothing, and what was held can be read.
func TestReplicaRejoinsWithNothing(t *testing.T) {
	t.Parallel()
	s := stray(t, straying{})
	if plan := s.rejoin(s.b); plan.Fork != nil {
		t.Errorf("plan %+v", plan)
	}
	s.level(s.b)
}

// A replica that cannot read what it holds rejoins as well, by what differs: when it is
// given the key, all is there, and what was set aside.
func TestReplicaWithoutTheKeyRejoins(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "one.key")
	if err := os.WriteFile(file, bytes.Repeat([]byte{'x'}, tenantKeyBytes), 0o600); err != nil {
		t.Fatal(err)
	}
	s := stray(t, straying{pin: true, key: file})
	if plan := s.rejoin(s.b); plan.Fork == nil || plan.Fork.Seq != s.pinned {
		t.Errorf("plan %+v", plan)
	}
	q := control.RestoreRequest{Group: "web", At: "latest", To: filepath.Join(s.b.cfg.Data, "out"), Format: control.FormatRaw}
	if _, err := s.b.Restore(t.Context(), q, func(control.Progress) {}); err == nil {
		t.Error("without the key it is read")
	}
	for range 4 {
		s.writeOnce()
	}
	awaitLevel(s.running, s.b, "web")
	s.b.stop()
	withKey(s.b.cfg, file)
	s.b = (&world{t, filepath.Dir(s.b.cfg.Data)}).run(s.b.cfg)
	awaitLevel(s.running, s.b, "web")
	s.level(s.b)
}

// A relay rejoins, and then the site that it sends to, which is where it was.
func TestRelayRejoins(t *testing.T) {
	t.Parallel()
	s := stray(t, straying{pin: true, relay: true})
	for _, hop := range []struct{ from, to *running }{{s.running, s.b}, {s.b, s.c}} {
		s.refused(hop.from, hop.to)
		if plan := s.rejoin(hop.to); plan.Fork == nil || plan.Fork.Seq != s.pinned {
			t.Errorf("plan at site %s: %+v", hop.to.cfg.Site, plan)
		}
		s.level(hop.to)
	}
	for range 4 {
		s.writeOnce()
	}
	awaitLevel(s.running, s.c, "web")
	s.level(s.b)
	s.level(s.c)
}
