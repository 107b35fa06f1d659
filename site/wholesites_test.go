package site

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/scale"
)

// What a group went through, at a site.
const (
	opPromoted = "promoted" // the site's role became one that reigns
	opDemoted  = "demoted"  // it became a replica's
	opRuns     = "runs"     // its machine was seen to run
)

type roleOp struct{ kind, site string }

func (o roleOp) String() string { return o.kind + " " + o.site }

// oneRuns is the site whose machine may run: the one that was promoted last, for as long
// as it was not demoted. A promotion asks nobody: that is what the witness is there for.
var oneRuns = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, input, _ any) (bool, any) {
		switch o := input.(roleOp); {
		case o.kind == opPromoted:
			return true, o.site
		case o.kind == opRuns:
			return state == o.site, state
		case state == o.site: // demoted
			return true, ""
		default:
			return true, state
		}
	},
	DescribeOperation: func(input, _ any) string { return fmt.Sprint(input) },
}

// reignHistory is what a group went through, from looks at both sites.
type reignHistory struct {
	began time.Time
	ops   []porcupine.Operation // of one group
	known map[string]lookedAt   // by site
	held  string                // who was promoted last

	changes, runs int
}

// lookedAt is what a look saw of a group at a site.
type lookedAt struct {
	reigns    bool
	promotion cbt.ID
	epoch     uint64
	at        int64 // when the role was known before; nanoseconds
	ran       int64 // when a run was put on record
	last      int64 // when the machine was seen to run since
}

func (h *reignHistory) add(kind, site string, client int, call, ret int64) {
	h.ops = append(h.ops, porcupine.Operation{ClientId: client, Input: roleOp{kind, site}, Call: call, Return: ret})
}

// everyRun is how far apart runs are on record; the last one before a stop always is.
const everyRun = int64(250 * time.Millisecond)

// look puts on record what a site is and does now.
func (h *reignHistory) look(r *running, g *group, client int) {
	site := r.cfg.Site
	call := int64(time.Since(h.began))
	role, open := roleOf(g)
	runs := r.runs(g)
	ret := int64(time.Since(h.began))
	k := h.known[site]
	if open {
		on := role.Role == recovery.Primary || role.Role == recovery.Uncommitted
		switch {
		case on && (!k.reigns || k.promotion != role.Promotion || k.epoch != role.Epoch):
			h.add(opPromoted, site, client, k.at, ret)
			if h.held != site {
				h.changes++
			}
			h.held = site
		case !on && k.reigns:
			h.add(opDemoted, site, client, k.at, ret)
		}
		k.reigns, k.promotion, k.epoch, k.at = on, role.Promotion, role.Epoch, call
	}
	switch {
	case runs && ret-k.ran > everyRun:
		h.add(opRuns, site, client+2, call, ret)
		h.runs++
		k.ran, k.last = ret, 0
	case runs:
		k.last = ret
	case k.last != 0: // it has stopped since
		h.add(opRuns, site, client+2, k.last, k.last)
		k.last = 0
	}
	h.known[site] = k
}

func roleOf(g *group) (recovery.Reign, bool) {
	l, release, err := g.use()
	if err != nil { // its daemon is away
		return recovery.Reign{}, false
	}
	defer release()
	return l.roleNow(), true
}

// wholeSites are two sites of groups, which are stopped and started.
type wholeSites struct {
	*guarded
	r    *rand.Rand
	hist []*reignHistory // by group

	changes atomic.Int64 // of hands, of all groups

	use sync.RWMutex // who uses a site holds it; writers stop one
	mu  sync.Mutex   // guards a and b
}

func (x *wholeSites) sites() []*running {
	x.mu.Lock()
	defer x.mu.Unlock()
	return []*running{x.a, x.b}
}

// looks at every group until ctx ends, also at machines whose daemon is away.
func (x *wholeSites) looks(ctx context.Context) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		for i, h := range x.hist {
			for client, r := range x.sites() {
				was := h.changes
				h.look(r, r.groups[i], client)
				x.changes.Add(int64(h.changes - was))
			}
		}
		<-tick.C
	}
}

// suffer cuts what connects the sites and the witness, kills the witness, and restarts
// daemons, until ctx ends; at the end all is well again.
func (x *wholeSites) suffer(ctx context.Context, ttl time.Duration) (cuts int) {
	span := func(n time.Duration) time.Duration { return time.Duration(x.r.Int64N(int64(n))) }
	for ctx.Err() == nil {
		_ = pauseFor(ctx, ttl/2+span(ttl))
		fault := x.r.IntN(6)
		if cuts == 0 {
			fault = 0
		}
		switch fault {
		case 0, 1: // a is alone
			x.cut()
		case 2: // b is
			x.beside.Cut()
			x.cutSites()
		case 3: // both are
			x.beside.Cut()
			x.cut()
		case 4:
			x.etcd.kill()
			_ = pauseFor(ctx, span(ttl))
			x.etcd.start()
			continue
		default:
			x.restart(ctx, x.r.IntN(2) == 0, span(ttl/4))
			continue
		}
		switch cuts++; {
		case cuts == 1: // until rights go over, however busy the processors are
			await(x.t, "b takes over", func() bool { return x.changes.Load() > int64(len(x.hist)/4) })
		case x.r.IntN(2) == 0: // whoever is cut off dies, and cannot pause anything itself
			x.restart(ctx, x.r.IntN(4) != 0, ttl+span(2*ttl))
		default:
			_ = pauseFor(ctx, ttl+span(2*ttl))
		}
		x.heal()
		x.beside.Heal()
	}
	return cuts
}

// restart ends a daemon, and starts the next one after a while.
func (x *wholeSites) restart(ctx context.Context, a bool, after time.Duration) {
	x.use.Lock()
	defer x.use.Unlock()
	c, r := x.cb, x.sites()[1]
	if a {
		c, r = x.ca, x.sites()[0]
	}
	r.stop()
	_ = pauseFor(ctx, after)
	r = x.run(c)
	x.mu.Lock()
	defer x.mu.Unlock()
	if a {
		x.a = r
	} else {
		x.b = r
	}
}

// orders gives a group's verbs at random until ctx ends: machines are switched off by
// their users, groups are handed over, failed over without force, and decided.
func (x *wholeSites) orders(ctx context.Context, i int, r *rand.Rand, ttl time.Duration) {
	for ctx.Err() == nil {
		_ = pauseFor(ctx, ttl/4+time.Duration(r.Int64N(int64(ttl))))
		verb, at := r.IntN(4), r.IntN(2)
		x.use.RLock()
		s := x.sites()[at]
		name := s.groups[i].cfg.Ref()
		limit, done := context.WithTimeout(ctx, ttl)
		switch verb { // most are refused: what they come to is what is looked at
		case 0:
			if pid, err := s.machineFor(s.groups[i], s.groups[i].cfg.Machine).Process(); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			_, _ = s.Handover(limit, control.HandoverRequest{Group: name, Operator: "tester"}, quietly)
		case 1, 2:
			_, _ = s.Failover(limit, control.FailoverRequest{Group: name, At: "latest", Operator: "tester"}, quietly)
		default:
			_, _ = s.Decide(limit, control.DecisionRequest{Verb: control.VerbResolve, Group: name, Keep: x.sites()[r.IntN(2)].cfg.Site, Operator: "tester"}, quietly)
		}
		done()
		x.use.RUnlock()
	}
}

// Whole sites, a real etcd, QEMU processes with their watchdogs: while sites are cut off
// from each other and from the witness, daemons restart and people order what they may,
// a group's machine runs only where its last promotion was. What was seen of roles and of
// machines is judged by a linearizability checker.
func TestOneRunsOverWholeSites(t *testing.T) {
	scale.Lasting(t, "it waits for leases to end")
	if scale.Race {
		t.Skip("the other tests of guards run under the race detector")
	}
	const ttl = 5 * time.Second
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	n := scale.Scale(20)
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("g%02d", i))
	}
	x := &wholeSites{guarded: guardedSites(t, ttl, names...), r: rand.New(rand.NewPCG(seed, 1))}
	x.a, x.b = x.run(x.ca), x.run(x.cb)
	x.endAfter()
	for _, name := range names {
		x.a.awaitState(name, control.StateSynced)
		awaitLevel(x.a, x.b, name)
	}
	for _, g := range x.a.groups {
		await(t, "a holds the right", g.guard.holds)
		x.begin(g)
		x.hist = append(x.hist, &reignHistory{began: time.Now(), known: map[string]lookedAt{}, held: "a"})
	}
	span := 10 * ttl
	if !scale.Sweeps() {
		span = 4 * ttl
	}
	ctx, cancel := context.WithTimeout(t.Context(), span)
	defer cancel()
	looked, end := context.WithCancel(t.Context())
	defer end()
	var looks, work sync.WaitGroup
	looks.Go(func() { x.looks(looked) })
	for i := range names {
		work.Go(func() { x.orders(ctx, i, rand.New(rand.NewPCG(seed, uint64(100+i))), ttl) })
	}
	cuts := x.suffer(ctx, ttl)
	work.Wait()
	end()
	looks.Wait()
	changes, runs := 0, 0
	for i, h := range x.hist {
		if v := porcupine.CheckOperationsTimeout(oneRuns, h.ops, time.Minute); v != porcupine.Ok {
			t.Errorf("group %s: %s: a machine ran where it must not", names[i], v)
			for k, o := range h.ops { // of runs the first and the last
				if k > 0 && k+1 < len(h.ops) && o.Input == h.ops[k-1].Input && o.Input == h.ops[k+1].Input {
					continue
				}
				t.Logf("%v [%v, %v]", o.Input, time.Duration(o.Call), time.Duration(o.Return))
			}
		}
		changes, runs = changes+h.changes, runs+h.runs
	}
	t.Logf("%d cuts, %d changes of hands, %d looks at a machine that ran", cuts, changes, runs)
	if cuts == 0 || changes == 0 || runs < n {
		t.Errorf("the schedules were not hard enough: %d cuts, %d changes, %d runs", cuts, changes, runs)
	}
	scale.Counted(t, "whole-site-schedules", n, 20)
}

// begin starts a group's machine at the site that reigns.
func (x *wholeSites) begin(g *group) {
	x.t.Helper()
	l, release, err := g.use()
	if err != nil {
		x.t.Fatal(err)
	}
	defer release()
	m, err := l.machine(l.cfg.Machine).Ensure(context.Background(), l.urisOf(l.reigning()))
	if err != nil {
		x.t.Fatal(err)
	}
	closeMachine(m)
}
