package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/testbed/scale"
)

// follower is a journal that follows the one of a folding.
type follower struct {
	*folding
	name  string
	o     Options
	to    *running
	lands int
}

func newFollower(f *folding, name string, fs vfs.FS) *follower {
	f.t.Helper()
	p := &follower{folding: f, name: name, o: Options{FS: fs, Create: f.o.Create, SegmentBytes: f.o.SegmentBytes, Now: f.clock.Now, faults: f.o.faults}}
	p.to = start(f.t, name, p.o)
	return p
}

// reopen opens it anew, on request without its index.
func (p *follower) reopen(withoutIndex bool) {
	p.t.Helper()
	p.to.close()
	if withoutIndex {
		if err := p.o.FS.RemoveAll(p.name + "/index"); err != nil {
			p.t.Fatal(err)
		}
	}
	p.to = start(p.t, p.name, p.o)
}

// common is the last record that both hold.
func (p *follower) common() (Position, error) {
	from, to := p.j.Journal, p.to.Journal
	r, err := Relate(from.Branches(), from.Head().Epoch, to.Branches(), to.Head().Epoch)
	if err != nil {
		return Position{}, err
	}
	if r.Kind != Same && r.Kind != PeerBehind {
		return Position{}, fmt.Errorf("the histories are %v", r.Kind)
	}
	if at := to.Head().Durable; at.Seq < r.Common.Seq {
		return at.Position, nil
	}
	return r.Common.Position, nil
}

// follow brings it level with the source, by a delta where frames are gone.
func (p *follower) follow() error {
	ctx := soon(p.t)
	for {
		err := p.stream(ctx)
		if !errors.Is(err, ErrReclaimed) {
			return err
		}
		if err := p.land(ctx, false); err != nil {
			return err
		}
	}
}

func (p *follower) stream(ctx context.Context) error {
	at, err := p.common()
	if err != nil {
		return err
	}
	s, err := p.j.Stream(ctx, at)
	if err != nil {
		return err
	}
	for p.to.Head().Position != p.j.Head().Position {
		fr, err := s.Next(ctx)
		if err != nil {
			return err
		}
		if _, _, err := p.to.AppendFrame(ctx, fr.Reader, fr.Bytes, Chain{}); err != nil {
			return err
		}
	}
	return errors.Join(s.Close(), p.to.WaitDurable(ctx, p.to.Head().Position))
}

// land sends one delta.
func (p *follower) land(ctx context.Context, newest bool) error {
	at, err := p.common()
	if err != nil {
		return err
	}
	d, err := p.j.OpenDelta(ctx, at, newest)
	if err != nil {
		return err
	}
	defer d.Close()
	l, err := p.to.OpenLanding(ctx, at, nil)
	if err != nil {
		return err
	}
	defer l.Close()
	var b bytes.Buffer
	if err := d.Write(ctx, &b, l.Place()); err != nil {
		return err
	}
	c, err := l.Take(ctx, &b, d.To())
	if err == nil && (c != d.To().Cursor || p.to.Head().Durable != c) {
		err = fmt.Errorf("it stands at %v, the delta leads to %v", p.to.Head().Durable, d.To())
	}
	p.lands++
	return err
}

// check compares every point that the follower lists with the model, and its newest
// with the source's.
func (p *follower) check() error {
	j := p.to.Journal
	spans, err := j.Spans(soon(p.t))
	if err != nil {
		return err
	}
	for _, s := range spans {
		for _, at := range []Position{s.First, s.Last} {
			if err := p.checkImage(j, at); err != nil {
				return err
			}
		}
	}
	theirs, err := p.j.Spans(soon(p.t))
	if err != nil {
		return err
	}
	n := len(spans)
	if n == 0 || spans[n-1].Last != theirs[len(theirs)-1].Last {
		return fmt.Errorf("it has points %v, the source %v", spans, theirs)
	}
	if a, b := p.j.Head().Durable, j.Head().Durable; a != b {
		return fmt.Errorf("it ends at %v, the source at %v", b, a)
	}
	if found, err := j.Verify(soon(p.t), nil); err != nil || len(found) > 0 {
		return fmt.Errorf("verify: %v: %w", found, err)
	}
	return nil
}

var deltaLadder = Retention{Ladder: []Rung{{0, 2 * time.Minute}, {20 * time.Second, 20 * time.Minute}, {2 * time.Minute, time.Hour}}}

// A journal that comes when history is folded already, and one that stays away now
// and then until what it lacks is, both follow by deltas and then by frames; every
// point that they list reads as it was written, whatever they fold themselves.
func TestDeltasBringFollowersOn(t *testing.T) {
	fs := vfs.NewMem()
	f := newFoldingOf(t, fs, deltaLadder, faults{}, 768<<10, 256<<10+512)
	often := newFollower(f, "often", fs)
	rounds := 12
	if scale.Race {
		rounds = 8
	}
	for round := range rounds {
		f.write(40, 3*time.Second)
		f.maintain()
		if round%4 != 3 { // else it is away
			continue
		}
		if err := often.follow(); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if err := often.check(); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		late := newFollower(f, fmt.Sprint("late", round), fs)
		if err := late.follow(); err != nil {
			t.Fatalf("round %d, a new one: %v", round, err)
		}
		for k := range 3 {
			if err := late.check(); err != nil {
				t.Fatalf("round %d, a new one: %v", round, err)
			}
			late.reopen(k == 1)
		}
		if late.lands == 0 {
			t.Errorf("round %d: a new one took all frames", round)
		}
		late.to.close()
		if _, err := often.to.Maintain(soon(t), Maintenance{Retention: f.r, FoldBytes: 1}); err != nil {
			t.Fatal(err)
		}
		often.reopen(round%8 == 3)
		if err := often.check(); err != nil {
			t.Fatalf("round %d, opened anew: %v", round, err)
		}
		f.reopen(false) // a new epoch
	}
	t.Logf("%d deltas", often.lands)
	if often.lands < 2 {
		t.Errorf("%d deltas, want more", often.lands)
	}
	often.to.close()
	f.j.close()
}

// A follower that has more of an epoch than the history goes on from keeps it as a
// branch, and takes the delta from the fork on.
func TestDeltaFromAFork(t *testing.T) {
	fs := vfs.NewMem()
	f := newFoldingOf(t, fs, deltaLadder, faults{}, 768<<10, 256<<10+512)
	ahead := newFollower(f, "ahead", fs)
	f.write(60, time.Second)
	if err := ahead.follow(); err != nil {
		t.Fatal(err)
	}
	tail, before := f.j.Head().Position, oracle{f.model.sizes, slices.Clone(f.model.log)}
	fork := f.all[len(f.all)-20].Position
	f.fork(fork)
	for range 4 {
		f.write(60, 5*time.Second)
		f.clock.step(time.Hour)
		f.maintain()
	}
	if err := ahead.follow(); err != nil {
		t.Fatal(err)
	}
	if ahead.lands != 1 {
		t.Errorf("%d deltas, want one", ahead.lands)
	}
	for k := range 3 {
		if err := ahead.check(); err != nil {
			t.Fatal(err)
		}
		if err := f.checkImage(ahead.to.Journal, fork); err != nil {
			t.Error(err)
		}
		after := f.model
		f.model = before
		if err := f.checkImage(ahead.to.Journal, tail); err != nil {
			t.Errorf("the tail: %v", err)
		}
		f.model = after
		ahead.reopen(k == 1)
	}
	ahead.to.close()
	f.j.close()
}

// A follower is promoted right behind a delta, with no frame after it: it goes on from
// there, and what it writes and what the delta brought read right ever after.
func TestPromotionRightBehindADelta(t *testing.T) {
	for _, inGap := range []bool{false, true} {
		fs := vfs.NewMem()
		f := newFoldingOf(t, fs, deltaLadder, faults{}, 768<<10, 256<<10+512)
		f.write(60, 3*time.Second)
		if inGap { // what the delta leads to is no point
			mustRecord(t, f.w, cbt.Event{Kind: cbt.EventGap, Volume: f.vols[0].ID, Cause: cbt.CauseStall})
		}
		f.clock.step(time.Hour)
		f.maintain()
		if err := f.w.WaitDurable(soon(t)); err != nil {
			t.Fatal(err)
		}
		p := newFollower(f, "p", fs)
		if err := p.land(soon(t), true); err != nil {
			t.Fatal(err)
		}
		at := p.to.Head().Position
		if at != f.j.Head().Position {
			t.Fatalf("it landed at %v, the source ends at %v", at, f.j.Head().Position)
		}
		if _, err := p.to.Resolve(soon(t), At{kind: atLatest}); (err == nil) == inGap {
			t.Errorf("in a gap %v: the newest point: %v", inGap, err)
		}
		p.reopen(false)
		f.j.close()
		f.j = p.to // the follower is the primary now
		w, err := f.j.BeginEpoch(soon(t), "p", Position{}, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.w = w
		for _, v := range f.vols {
			mustRecord(t, w, cbt.Event{Kind: cbt.EventSynced, Volume: v.ID})
		}
		for k := range 3 {
			f.write(20, time.Second)
			head := f.j.Head().Position
			f.j.close()
			if k == 1 {
				if err := fs.RemoveAll("p/index"); err != nil {
					t.Fatal(err)
				}
			}
			f.j = start(t, "p", p.o)
			if err := f.checkImage(f.j.Journal, head); err != nil {
				t.Errorf("in a gap %v: %v", inGap, err)
			}
			if !inGap {
				if err := f.checkImage(f.j.Journal, at); err != nil {
					t.Errorf("where the delta led: %v", err)
				}
			}
			if f.w, err = f.j.BeginEpoch(soon(t), "p", Position{}, 0); err != nil {
				t.Fatal(err)
			}
			for _, v := range f.vols {
				mustRecord(t, f.w, cbt.Event{Kind: cbt.EventSynced, Volume: v.ID})
			}
		}
		if found, err := f.j.Verify(soon(t), nil); err != nil || len(found) > 0 {
			t.Errorf("verify: %v, %v", found, err)
		}
		f.j.close()
	}
}

// fork begins an epoch at p and forgets what came after it.
func (f *folding) fork(p Position) {
	f.t.Helper()
	w, err := f.j.BeginEpoch(soon(f.t), "here", p, 0)
	if err != nil {
		f.t.Fatal(err)
	}
	f.w = w
	f.model.log = slices.DeleteFunc(f.model.log, func(w oracleWrite) bool { return w.seq > p.Seq })
	f.all = slices.DeleteFunc(f.all, func(c Candidate) bool { return c.Seq > p.Seq })
	for _, v := range f.vols {
		mustRecord(f.t, w, cbt.Event{Kind: cbt.EventSynced, Volume: v.ID})
	}
}

// A delta is taken whole and right or not at all: each planted mistake, and each
// flipped byte, is refused, and the follower is as it was.
func TestDeltaIsVerified(t *testing.T) {
	fs := vfs.NewMem()
	f := newFoldingOf(t, fs, deltaLadder, faults{}, 768<<10, 256<<10+512)
	f.write(120, 3*time.Second)
	f.clock.step(time.Hour)
	f.maintain()
	p := newFollower(f, "p", fs)
	d, err := f.j.OpenDelta(soon(t), Position{}, false)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	take := func(change func([]byte) []byte, to DeltaEnd) error {
		l, err := p.to.OpenLanding(soon(t), Position{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		var b bytes.Buffer
		if err := d.Write(soon(t), &b, l.Place()); err != nil {
			t.Fatal(err)
		}
		_, err = l.Take(soon(t), bytes.NewReader(change(b.Bytes())), to)
		return err
	}
	same := func(b []byte) []byte { return b }
	other := d.To()
	other.Chain[0]++
	if err := take(same, other); err == nil {
		t.Error("another chain value passed")
	}
	if err := take(func(b []byte) []byte { return b[:len(b)-4096] }, d.To()); err == nil {
		t.Error("a delta without its end passed")
	}
	for range 40 {
		if err := take(func(b []byte) []byte {
			at := f.rng.IntN(len(b))
			for b[at] == 0 { // what fills a page up may say anything in a header only
				at = f.rng.IntN(len(b))
			}
			b[at] ^= 1 << f.rng.IntN(8)
			return b
		}, d.To()); err == nil {
			t.Error("a flipped bit passed")
		}
	}
	if h := p.to.Head(); !h.IsZero() || len(p.to.Branches()) > 0 {
		t.Errorf("the follower holds %v", h)
	}
	if err := take(same, d.To()); err != nil {
		t.Fatal(err)
	}
	if err := p.follow(); err != nil {
		t.Fatal(err)
	}
	if err := p.check(); err != nil {
		t.Error(err)
	}
	p.to.close()
	f.j.close()
}
