package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// What one Maintain does, in order: it finishes what the last one began, holds the wall
// clock to what is witnessed (clock.go) and ends there if it has leapt, folds the
// segments that retention and references allow once enough have gathered, drops
// points that the ladder keeps no more, and merges runs. Under pressure of the quota
// it folds what there is, and if that is not enough climbs down the ladder: the
// oldest rung is shortened step by step, then the next, at last the time in which
// every write is kept, never below Lock.

// retentionKey is where the site log keeps the retention of the last Maintain.
const retentionKey = "journal/retention"

const (
	defaultFoldBytes = 1 << 30
	maxFoldBytes     = 4 << 30
	pressurePercent  = 90 // of the quota
	foldShare        = 4  // a fold takes as much as this part of the runs
)

func (t *maintainer) run(ctx context.Context) error {
	j := t.j
	j.mu.Lock()
	readOnly, failed := j.readOnly, j.err
	if j.freed && failed == nil {
		failed = ErrClosed
	}
	j.mu.Unlock()
	if readOnly || failed != nil {
		return errors.Join(failed, map[bool]error{true: ErrReadOnly}[readOnly])
	}
	err := t.finishChange(ctx)
	if err != nil {
		return err
	}
	if t.done.SiteLogLost, err = j.checkSiteLoss(t.m.TrustSiteLog); err != nil || t.done.SiteLogLost {
		return err
	}
	leap, err := j.checkClock(t.m.TrustClock)
	if err != nil || leap > 0 {
		t.done.ClockLeap = leap
		return err
	}
	var known Retention
	if _, err := j.site.recall(retentionKey, &known); err != nil {
		return err
	}
	if a, b := encodeBody(known), encodeBody(t.m.Retention); string(a) != string(b) {
		if err := j.site.remember(retentionKey, t.m.Retention); err != nil {
			return fullOr(err)
		}
	}
	if err := t.pass(ctx, t.foldBytes()); err != nil {
		return err
	}
	for step := 0; t.pressed() && step < 64; step++ {
		if step > 0 { // the first step is to fold what there is
			r, ok := t.m.Retention.squeezed(t.now, t.oldest())
			if !ok {
				break
			}
			t.m.Retention = r
		}
		if err := t.pass(ctx, 1); err != nil {
			return err
		}
	}
	return nil
}

// pass folds, thins and merges once. What the disk has no room to fold is said at the
// end: thinning and merging may make some.
func (t *maintainer) pass(ctx context.Context, foldBytes int64) (err error) {
	var full error
	defer func() { err = errors.Join(err, full) }()
	for {
		refs, err := t.j.references(t.m)
		if err != nil {
			return err
		}
		to, ok, err := t.foldable(refs, foldBytes)
		if errors.Is(err, ErrFull) {
			full = err
			break
		}
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		if err := t.fold(ctx, to, refs); err != nil {
			return err
		}
	}
	if err := t.thinNow(ctx); err != nil {
		return err
	}
	for {
		past := t.j.history()
		i, k, ok := planMerge(past.state.Runs, past.keptPerRun(), t.pressed())
		if !ok {
			return nil
		}
		if size, room := liveBytes(past.state.Runs[i:k+1]), t.j.roomForRun(); size > room {
			t.j.o.Log.Warn("runs are not merged: the disk has no room", "bytes", size, "room", room)
			return nil
		}
		if err := t.mergeRuns(ctx, i, k); err != nil {
			return err
		}
	}
}

// foldBytes is how much must have gathered. Where it is more than a segment it grows
// with what the runs take: the end of a fold is one more image to be kept until runs
// are merged, and what is given up before it is folded is never written again.
func (t *maintainer) foldBytes() int64 {
	n := t.m.FoldBytes
	if n == 0 {
		n = defaultFoldBytes
	}
	if n > t.j.o.SegmentBytes {
		n = max(n, t.j.history().state.bytes()/foldShare)
	}
	if t.m.QuotaBytes > 0 && (t.m.FoldBytes == 0 || n > t.m.FoldBytes) {
		n = min(n, max(t.m.FoldBytes, t.m.QuotaBytes/4))
	}
	return min(n, maxFoldBytes)
}

// pressed reports that the quota calls for less history than the ladder.
func (t *maintainer) pressed() bool {
	t.j.mu.Lock()
	defer t.j.mu.Unlock()
	return t.m.QuotaBytes > 0 && t.j.usedLocked() > t.m.QuotaBytes/100*pressurePercent
}

// oldest is the age of the oldest point that is kept.
func (t *maintainer) oldest() time.Duration {
	if p := t.j.history(); len(p.kept) > 0 {
		return t.now.Sub(p.kept[0].time)
	}
	return 0
}

// foldable is the last segment that may be folded, if enough bytes have gathered: of
// those that are sealed, durable and indexed, behind the time in which every write is
// kept and in front of what cursors and failovers need.
func (t *maintainer) foldable(refs []Reference, atLeast int64) (to uint64, ok bool, err error) {
	j := t.j
	dense, forEver := t.m.dense()
	if err := j.restated(); err != nil {
		return 0, false, err
	}
	raw, closer, err := j.db.Get([]byte(keyThrough))
	if forEver || errors.Is(err, pebble.ErrNotFound) {
		return 0, false, errors.Join(closeIf(closer))
	}
	if err != nil {
		return 0, false, fmt.Errorf("read index: %w", err)
	}
	var known through
	if err := errors.Join(json.Unmarshal(raw, &known), closer.Close()); err != nil {
		return 0, false, fmt.Errorf("read index: %w", err)
	}
	from, room := j.history().state.floor(), j.roomForRun()
	var bytes int64 // that may be folded; up to to they fit
	for n := from; n < known.Durable.Segment && bytes < maxFoldBytes; n++ {
		next, err := j.pageOf(n+1, 0, segmentMagic)
		if err != nil || // it has no header yet
			t.now.Sub(j.begun(next)) < dense || !t.unreferenced(refs, Position{next.Epoch, next.Seq}) {
			break
		}
		size, err := j.segs.size(n)
		if err != nil {
			return 0, false, err
		}
		if bytes += size; bytes <= room {
			to = n
		}
	}
	if enough := bytes > 0 && bytes >= atLeast; to > 0 || !enough {
		return to, to > 0 && enough, nil
	}
	return 0, false, fmt.Errorf("no room to fold a segment, %d bytes free beside the reserve: %w", room, ErrFull)
}

// begun is when a segment began: no record before it is later. Records' times do not go
// back, so they may be ahead of a clock that did.
func (j *Journal) begun(s segmentPage) time.Time {
	h, meta, err := j.segs.frameAt(s.Number, pageBytes)
	if err != nil {
		return s.Time
	}
	rs, err := decodeRecords(h, meta)
	if err != nil || len(rs) == 0 {
		return s.Time
	}
	return later(s.Time, rs[0].time)
}

// roomForRun is how large a run may become: what the disk has beside its reserve, for
// what the run replaces goes only after it is written.
func (j *Journal) roomForRun() int64 {
	u, err := j.o.FS.GetDiskUsage(j.dir)
	if err != nil { // a file system that cannot tell answers with ENOSPC
		return math.MaxInt64
	}
	return int64(min(u.AvailBytes, math.MaxInt64)) - max(j.o.ReserveBytes, 0)
}

func closeIf(c interface{ Close() error }) error {
	if c == nil {
		return nil
	}
	return c.Close()
}

// unreferenced reports that no cursor or failover needs a frame before next, the
// first record of a segment.
func (t *maintainer) unreferenced(refs []Reference, next Position) bool {
	j := t.j
	j.mu.Lock()
	defer j.mu.Unlock()
	end := j.orderLocked(next)
	if end.Ordinal == 0 {
		return false
	}
	if end.Seq--; end.Seq < j.branches[end.Ordinal-1].First() { // it begins an epoch
		if end.Ordinal--; end.Ordinal == 0 {
			return false
		}
		end.Seq = j.branches[end.Ordinal-1].Last.Seq
	}
	return !slices.ContainsFunc(refs, func(r Reference) bool {
		if r.Kind == ReferenceCursor && !r.Until.IsZero() && r.Until.Before(t.now) {
			return false
		}
		return (r.Kind == ReferenceCursor || r.Kind == ReferenceUncommitted) && (j.ordinalLocked(r.At.Epoch) == 0 || end.after(j.orderLocked(r.At)))
	})
}

// thinNow drops the points of folded history that the policy keeps no more.
func (t *maintainer) thinNow(ctx context.Context) error {
	p := t.j.history()
	if len(p.kept) == 0 || len(t.m.Ladder) == 0 {
		return nil
	}
	if err := t.takeLeaves(); err != nil {
		return err
	}
	refs, err := t.j.references(t.m)
	if err != nil {
		return err
	}
	after, err := t.firstAfter(ctx, p.to)
	if err != nil {
		return err
	}
	keep := make(map[order]bool)
	for _, k := range Choose(append(t.keptCandidates(p), after...), t.m.Retention, refs, t.now) {
		keep[t.j.orderOf(k.Position)] = true
	}
	return t.thin(keep)
}

// squeezed is r with less reach: the last rung is halved, and goes when it reaches no
// further than the one before. The first is not shortened below Lock. ok is false
// when nothing is left to shorten. oldest is the age of the oldest point.
func (r Retention) squeezed(now time.Time, oldest time.Duration) (Retention, bool) {
	n := len(r.Ladder)
	if n == 0 {
		return r, false
	}
	r.Ladder = slices.Clone(r.Ladder)
	last := &r.Ladder[n-1]
	reach := last.For
	if reach == 0 || (oldest > 0 && oldest < reach) {
		reach = oldest
	}
	if n > 1 {
		if last.For = reach / 2; last.For <= r.Ladder[n-2].For || last.For == 0 {
			r.Ladder = r.Ladder[:n-1]
		}
		return r, true
	}
	least := max(r.Lock, 1)
	if last.For != 0 && last.For <= least {
		return r, false
	}
	if last.For == 0 {
		last.For = max(oldest, 2*least, time.Hour)
	}
	last.For = max(last.For/2, least)
	return r, true
}
