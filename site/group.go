package site

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/fault"
)

// group is one group at this site. Its life begins when its journal is open and
// ends when that is closed; a life that fails is followed by another.
type group struct {
	site *Site
	cfg  config.Group
	dir  string
	id   journal.Identity

	aside bool // it was set aside, and can be read alone

	upkeep upkeep    // has its own lock
	guard  *guardian // nil: a person decides on failovers

	rewinds atomic.Uint64 // that changed its disks, since the site was opened

	mu      sync.Mutex // guards all below
	life    *life      // nil: the journal is not open
	failure *fault.Error
	retry   time.Time       // when a failed group is tried again
	halted  map[string]halt // conflicts by peer, until a stream flows with it again
	turn    chan struct{}   // closed when a life begins or an opening fails
	move    *move           // the newest handover of this process
	turning bool            // one life ends for another role's; sessions outlive that
}

// life is one opening of a group's journal.
type life struct {
	*group
	j *journal.Journal

	users sync.WaitGroup // who reads the journal; it is closed after them
	ctx   context.Context
	next  func() // ends this life for the next one, which plays another role

	mu       sync.Mutex // guards all below
	closing  bool       // no more users
	role     recovery.Reign
	reign    *reign // nil: a replica
	failover bool   // one is under way
	// bootWaits is why the domain is not started yet; empty: it does not wait.
	bootWaits string
	bootDone  bool // nothing is left to be started
	// owed is a machine that is owed a start, owedWhy why it waits, owedHint what helps;
	// empty: none does.
	owed, owedWhy, owedHint string
	cutOff                  string // what runs of several machines whose start was cut off; empty: nothing is told
	took                    cbt.ID // the handover that this life took over
	// upkeeping ends the maintenance that is under way and waits for it; nil: none.
	upkeeping func()
	keys      *journal.Keys // nil: nothing is sealed or opened here

	lent lending // has its own lock

	crowned chan coronation // what a failover has made, for play
	settled chan struct{}   // closed once play has done with what an earlier life left

	rewinding *rewinding      // under way; under mu
	rewind    chan *rewinding // to who reigns, which carries it out
	left      chan struct{}   // signalled when a rewind may have left something to be done
	pivot     chan *pivoting  // likewise
	pivotLeft chan struct{}   // signalled when one was left half-way
	pivots    sync.Mutex      // held while disks become local
	starting  sync.Mutex      // held while a machine is started again
	alls      sync.Mutex      // held while several machines are started
	orders    patient         // held while peers are made to follow, and who is to is changed
}

// Pauses between attempts at a group that fails.
const (
	firstRetry = time.Second
	lastRetry  = time.Minute
)

func newGroup(s *Site, c config.Group) *group {
	return &group{site: s, cfg: c, dir: s.groupDir(c), id: identityOf(c), halted: map[string]halt{}, turn: make(chan struct{})}
}

// run lives one life after the other until ctx ends. It never fails: what is
// wrong with one group must not end the others.
func (g *group) run(ctx context.Context) {
	pause := firstRetry
	for {
		began := g.site.o.Now()
		err := g.live(ctx)
		if ctx.Err() != nil {
			if err != nil && !errors.Is(err, context.Canceled) {
				g.site.o.Log.Error("group did not close cleanly", "group", g.cfg.Ref(), "err", err)
			}
			return
		}
		if errors.Is(err, errTurn) {
			pause = firstRetry
			continue
		}
		if g.site.o.Now().Sub(began) > lastRetry {
			pause = firstRetry
		}
		g.failed(err, pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		pause = min(2*pause, lastRetry)
	}
}

func (g *group) failed(err error, pause time.Duration) {
	if err == nil {
		err = errors.New("the journal ended by itself")
	}
	f := fault.Of(explain("run group "+g.cfg.Ref(), err))
	g.site.o.Log.Error("group failed", "group", g.cfg.Ref(), "code", f.Code, "err", err, "retry_in", pause)
	g.site.meters.failed(f.Code)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.turning = false
	g.failure, g.retry = f, g.site.o.Now().Add(pause)
	g.turnedLocked()
}

// turnedLocked wakes who waits for the group to be opened.
func (g *group) turnedLocked() {
	close(g.turn)
	g.turn = make(chan struct{})
}

func syncMode(y config.Sync) journal.SyncMode {
	if y == config.SyncPower {
		return journal.SyncPower
	}
	return journal.SyncProcess
}

// segmentBytes is how long a segment is under a quota; 0: the journal's default.
// Only whole segments are reclaimed, so a small quota wants small ones.
func segmentBytes(quota int64) int64 {
	const least, most, parts = 2 << 20, 64 << 20, 32
	if quota == 0 || quota/parts >= most {
		return 0
	}
	return max(least, quota/parts>>20<<20)
}

// options are those of the group's journal, which is made where there is none.
func (g *group) options(ring *journal.Keys) journal.Options {
	return journal.Options{Create: &g.id, Sync: syncMode(g.cfg.Sync), QuotaBytes: int64(g.cfg.Quota), SegmentBytes: segmentBytes(int64(g.cfg.Quota)), Now: g.site.o.Now, Uptime: g.site.o.Uptime,
		Compress: compression(g.cfg.Compress), Keys: keyRing(ring),
		Log: g.site.o.Log.With("group", g.cfg.Ref())}
}

// live opens the journal, plays the group's role, and closes it.
func (g *group) live(ctx context.Context) (err error) {
	if err := g.setAside(); err != nil {
		return err
	}
	if err := os.MkdirAll(g.dir, 0o700); err != nil {
		return fault.Wrap(fault.FileTrouble, "make "+g.dir, err)
	}
	ring := g.site.ring(ctx, g.cfg)
	defer ring.Close()
	j, err := journal.Open(g.dir, g.options(ring))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	r, err := firstReign(j, g.cfg.Role, g.site.o.Now())
	if err != nil {
		return err
	}
	turned, turn := context.WithCancelCause(ctx)
	defer turn(nil)
	eg, ctx := errgroup.WithContext(turned)
	l := &life{group: g, j: j, keys: ring, ctx: ctx, role: r, crowned: make(chan coronation), rewind: make(chan *rewinding), left: make(chan struct{}, 1), orders: newPatient(), pivot: make(chan *pivoting), pivotLeft: make(chan struct{}, 1), settled: make(chan struct{}), next: func() { g.turns(); turn(errTurn) }}
	// The journal runs until everything that writes to it has ended.
	writing, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	eg.Go(func() error {
		err := j.Run(writing)
		if err == nil && ctx.Err() == nil {
			err = errors.New("the journal ended")
		}
		return err
	})
	eg.Go(func() error {
		defer stop()
		err := l.play(ctx)
		if err == nil {
			err = ctx.Err()
		}
		return err
	})
	eg.Go(func() error {
		l.noteHeads(ctx)
		return nil
	})
	eg.Go(func() error {
		l.keepUp(ctx)
		return nil
	})
	eg.Go(func() error {
		l.scrub(ctx)
		return nil
	})
	eg.Go(func() error {
		l.finishPivots(ctx)
		return nil
	})
	g.begin(l)
	<-ctx.Done()
	l.end()
	err = eg.Wait()
	l.users.Wait()
	if errors.Is(context.Cause(turned), errTurn) && (err == nil || errors.Is(err, context.Canceled)) {
		err = errTurn
	}
	return err
}

// turns notes that the next life follows at once.
func (g *group) turns() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.turning = true
}

// begin makes l the group's life, and end takes it back: then there are no new users.
func (g *group) begin(l *life) {
	g.mu.Lock()
	g.life, g.failure, g.turning = l, nil, false
	g.turnedLocked()
	g.mu.Unlock()
	g.site.o.Log.Info("group opened", "group", g.cfg.Ref(), "role", l.roleNow().Role, "head", l.j.Head().Position)
	g.site.reignBegan() // who waits for a disk looks whether there will be one
	g.site.repl.Refresh()
}

func (l *life) end() {
	l.group.mu.Lock()
	l.group.life = nil
	l.group.mu.Unlock()
	l.mu.Lock()
	l.closing = true
	l.mu.Unlock()
	l.site.repl.Refresh()
}

// play is the group's role until ctx ends: a replica waits for records, and for
// a failover; then, as a primary from the start, it reigns. What was interrupted is
// finished first: a promotion, a handover.
func (l *life) play(ctx context.Context) error {
	if err := l.finishPromotion(ctx); err != nil {
		return err
	}
	if r := l.roleNow(); r.Stage() == recovery.StageDraining {
		if err := l.drain(ctx, r); err != nil {
			return err
		}
	}
	captures := l.roleNow().Role.Captures()
	if !captures && l.roleNow().Stage() != recovery.StageCeded { // what was ceded may come back
		if err := l.forgetStopped(); err != nil {
			return err
		}
	}
	if err := l.closeStart(); err != nil {
		return err
	}
	close(l.settled) // from here on only what a failover hands over changes anything
	if captures {
		r, err := l.enthrone(ctx)
		if err != nil {
			return err
		}
		return l.reignOn(ctx, r)
	}
	c, err := l.follow(ctx)
	switch {
	case err != nil || c == nil:
		return err
	case c.err != nil:
		return c.err
	case c.writer == nil:
		return l.reignOn(ctx, c.reign)
	}
	r, err := l.crown(ctx, c.writer)
	if err != nil {
		return err
	}
	return l.reignOn(ctx, r)
}

func (l *life) roleNow() recovery.Reign {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.role
}

func (l *life) setRole(r recovery.Reign) {
	l.mu.Lock()
	l.role = r
	l.mu.Unlock()
	l.site.reignBegan() // who waits for a disk looks again
	l.site.repl.Refresh()
}
