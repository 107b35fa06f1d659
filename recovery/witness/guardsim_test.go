package witness_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery/witness"
	"github.com/novacron/afterimage/recovery/witness/witnesstest"
	"github.com/novacron/afterimage/testbed/scale"
)

// view is a witness as one site reaches it: cut off, slow, or with the whole site
// hanging, for spans that the seed gives.
type view struct {
	m *witnesstest.Memory

	mu    sync.Mutex // guards what follows
	r     *rand.Rand
	cut   bool
	hangs chan struct{} // nil: it does not; closed when it goes on
}

func (v *view) faults() (cut bool, hangs chan struct{}, there, back time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.r.IntN(3) == 0 {
		there, back = time.Duration(v.r.Int64N(int64(2*time.Second))), time.Duration(v.r.Int64N(int64(2*time.Second)))
	}
	return v.cut, v.hangs, there, back
}

func (v *view) set(cut bool, hangs chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.cut, v.hangs = cut, hangs
}

// pass is the way to the witness and back; a request that is cut on its way back was
// carried out.
func (v *view) pass(ctx context.Context, do func() error) error {
	cut, hangs, there, back := v.faults()
	if hangs != nil {
		<-hangs // a process that is stopped sees no context end
	}
	if cut {
		return witnesstest.ErrUnreachable
	}
	if err := wait(ctx, there); err != nil {
		return err
	}
	err := do()
	if late := wait(ctx, back); err == nil {
		err = late
	}
	if _, hangs, _, _ := v.faults(); hangs != nil {
		<-hangs
	}
	return err
}

func wait(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return nil
	}
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Acquire wraps the grant, so that renewals go the same way; a lease whose reply was
// lost stays with the witness until it ends.
func (v *view) Acquire(ctx context.Context, group cbt.ID, holder string, ttl time.Duration) (l *witness.Lease, err error) {
	from := time.Now()
	err = v.pass(ctx, func() error {
		inner, err := v.m.Acquire(ctx, group, holder, ttl)
		if err == nil {
			l = witness.NewLease(from, ttl, inner.Token(), passing{v, inner})
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

func (v *view) Holder(ctx context.Context, group cbt.ID) (string, bool, error) {
	return v.m.Holder(ctx, group)
}

type passing struct {
	v *view
	l *witness.Lease
}

func (p passing) Renew(ctx context.Context) error {
	return p.v.pass(ctx, func() error { return p.l.Renew(ctx) })
}

func (p passing) Release(ctx context.Context) error {
	return p.v.pass(ctx, func() error { return p.l.Release(ctx) })
}

// simMachine runs or stands still; what it does is on record.
type simMachine struct {
	site string
	h    *history
	base time.Time

	mu   sync.Mutex // guards what follows
	runs bool
	last int64
}

func (m *simMachine) now() int64 { return int64(time.Since(m.base)) }

func (m *simMachine) tick() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.runs {
		m.last = m.now()
		m.h.add(opTick, m.site, m.last, m.last)
	}
	return m.runs
}

func (m *simMachine) pause() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.runs {
		m.runs, m.last = false, m.now() // it ran until now
		m.h.add(opTick, m.site, m.last, m.last)
		m.h.add(opStop, m.site, m.last+1, never)
	}
}

// simDog is a watchdog that pauses as late as it may: after what it is allowed, and
// after what a slow clock adds.
type simDog struct {
	m    *simMachine
	late time.Duration
	v    *view

	mu    sync.Mutex // guards what follows
	timer *time.Timer
}

func (d *simDog) Arm(_ context.Context, until time.Time) error {
	if _, hangs, _, _ := d.v.faults(); hangs != nil {
		<-hangs
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer == nil {
		d.timer = time.AfterFunc(time.Until(until)+d.late, d.m.pause)
	} else if !d.timer.Stop() {
		return errors.New("it has paused the machine")
	}
	d.timer.Reset(time.Until(until) + d.late)
	return nil
}

func (d *simDog) Disarm(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
	}
	return nil
}

const simTTL = 4 * time.Second

// live is a site that takes the right whenever it can, and loses it in all the ways.
func (v *view) live(ctx context.Context, site string, group cbt.ID, h *history, base time.Time, r *rand.Rand, late func() time.Duration) {
	for ctx.Err() == nil {
		m := &simMachine{site: site, h: h, base: base}
		call := m.now()
		g, err := witness.Take(ctx, v, group, site, simTTL, &simDog{m: m, late: late(), v: v})
		if err != nil {
			_ = wait(ctx, time.Duration(r.Int64N(int64(time.Second))))
			continue
		}
		m.mu.Lock()
		m.runs = true
		h.add(opRun, site, call, max(m.now(), call+1))
		m.mu.Unlock()
		v.reign(ctx, g, m, r)
		for m.tick() { // whoever is to pause it does
			if wait(context.Background(), 50*time.Millisecond) != nil {
				return
			}
		}
	}
}

// reign keeps the right until it is lost, given up, or the site's process dies.
func (v *view) reign(ctx context.Context, g *witness.Guard, m *simMachine, r *rand.Rand) {
	alive, die := context.WithCancel(ctx)
	defer die()
	kept := make(chan error, 1)
	go func() { kept <- g.Keep(alive) }()
	ends := time.After(time.Duration(r.Int64N(int64(20 * time.Second))))
	for {
		select {
		case <-kept:
			return
		case <-ends:
			if r.IntN(2) == 0 { // killed: nothing is given back, the dog stays
				return
			}
			die()
			<-kept
			m.pause()
			_ = g.Release(context.Background())
			return
		case <-time.After(simTTL / 8):
			m.tick()
		}
	}
}

// simulate lets three sites compete under faults that a seed gives.
func simulate(t *testing.T, seed uint64, late func(*rand.Rand) time.Duration) (ok bool, runs, changes int) {
	h := &history{}
	synctest.Test(t, func(t *testing.T) {
		base, m, group := time.Now(), new(witnesstest.Memory), cbt.NewID()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		var wg sync.WaitGroup
		for i, site := range []string{"a", "b", "c"} {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			v := &view{m: m, r: rand.New(rand.NewPCG(seed, uint64(10+i)))}
			wg.Go(func() { v.live(ctx, site, group, h, base, r, func() time.Duration { return late(r) }) })
			wg.Go(func() { v.suffer(ctx, rand.New(rand.NewPCG(seed, uint64(20+i)))) })
		}
		wg.Wait()
	})
	return h.verdict(t)
}

// suffer cuts the site off, and stops its process, now and then.
func (v *view) suffer(ctx context.Context, r *rand.Rand) {
	span := func() time.Duration { return time.Duration(r.Int64N(int64(2 * simTTL))) }
	for ctx.Err() == nil {
		_ = wait(ctx, span())
		hangs := make(chan struct{})
		if r.IntN(2) == 0 {
			v.set(true, nil)
		} else {
			v.set(false, hangs)
		}
		_ = wait(ctx, span())
		v.set(false, nil)
		close(hangs)
	}
}

// Whatever is cut, hangs or dies: two sites never both run a group. The dog is as late
// as the margin allows with a clock that is as slow as it may be.
func TestNeverTwoMachines(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	n, total, changed := scale.Long(1000), 0, 0
	for i := range n {
		ok, runs, changes := simulate(t, seed+uint64(i), func(r *rand.Rand) time.Duration {
			return time.Duration(r.Int64N(int64(witness.PauseWithin(simTTL) + simTTL/8)))
		})
		total, changed = total+runs, changed+changes
		if !ok {
			t.Fatalf("seed %d: two machines ran at once", seed+uint64(i))
		}
	}
	if changed < n {
		t.Errorf("the right changed hands only %d times in %d worlds", changed, n)
	}
	t.Logf("%d reigns, %d changes of hands", total, changed)
	scale.Counted(t, "witness-worlds", n, 1000)
}

// A dog that comes later than it may is found: the worlds are hard enough.
func TestALateDogIsFound(t *testing.T) {
	for seed := range uint64(200) {
		if ok, _, _ := simulate(t, seed, func(*rand.Rand) time.Duration { return 3 * simTTL }); !ok {
			return
		}
	}
	t.Error("no world finds a watchdog that comes three times the ttl late")
}
