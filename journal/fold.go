package journal

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Folding rewrites whole segments as a run that holds only what kept points see:
//
//  1. read the segments, verify every byte and the chain, note which MiBs they
//     changed and which records a ladder may keep (foldscan.go);
//  2. choose the points (retention.go) and doom the others: from here on nobody may
//     begin to use them (manifest.go);
//  3. MiB by MiB, take the versions from the index, decide which survive (sweep.go),
//     copy their stored bytes as they are, and write the run (foldcopy.go); sync it;
//  4. remember the manifest: from here on the change is finished, whatever happens;
//  5. MiB by MiB, let the index name the run instead of the segments; flush it;
//  6. wait for those who read by the old index, give the segments back, and remember
//     that (swap.go).
//
// A crash before 4 leaves a run that no manifest names, removed at the next opening.
// After it both forms are there, the index may name either, and Maintain goes on
// with 5; what rebuilds the index takes the run. Merging runs is the same from 3 on.

// maintainer is one Maintain.
type maintainer struct {
	j      *Journal
	m      Maintenance
	now    time.Time
	pace   *pace
	done   Maintained
	leaves []lineagePart
	newest EpochID // branch when leaves was taken
}

func (t *maintainer) progress(stage string, done, total int64) {
	if t.m.Progress != nil {
		t.m.Progress(stage, done, total)
	}
}

// takeLeaves takes the lineages as they are now.
func (t *maintainer) takeLeaves() (err error) {
	t.j.mu.Lock()
	defer t.j.mu.Unlock()
	t.newest = EpochID{}
	if n := len(t.j.branches); n > 0 {
		t.newest = t.j.branches[n-1].ID
	}
	t.leaves, err = t.j.leavesLocked()
	return err
}

// branchOf is the leaf of the abandoned branch that o lies on; zero on the head's
// lineage. ok is false where no lineage holds it.
func (t *maintainer) branchOf(o order) (leaf EpochID, ok bool) {
	for i := range t.leaves {
		if t.leaves[i].holds(o) {
			return t.leaves[i].leaf, true
		}
	}
	return EpochID{}, false
}

// positionOf is the full name of o.
func (t *maintainer) positionOf(o order) Position {
	t.j.mu.Lock()
	defer t.j.mu.Unlock()
	if o.Ordinal == 0 || int(o.Ordinal) > len(t.j.branches) {
		return Position{}
	}
	return Position{t.j.branches[o.Ordinal-1].ID, o.Seq}
}

// fold rewrites the segments from the first that is left to to, or fewer.
func (t *maintainer) fold(ctx context.Context, to uint64, refs []Reference) error {
	j := t.j
	p := j.history()
	if err := t.takeLeaves(); err != nil {
		return err
	}
	s := &foldScan{j: j, pace: t.pace, touched: make(touched), end: p.state.End, recent: recent{slices.Clone(p.state.Recent)}, check: true}
	cands, points, pick, err := t.pickers(refs)
	if err != nil {
		return err
	}
	s.frame = func(w *written) { pick(w) }
	from := p.state.floor()
	if to, err = s.segments(ctx, from, to); err != nil {
		return err
	}
	pick(nil)
	upTo := j.orderOf(s.end.Position)
	if err := t.checkJoint(ctx, s); err != nil {
		return err
	}
	kept, err := t.choose(ctx, p, upTo, *cands, *points, refs)
	if err != nil {
		return err
	}
	kept, err = t.doomRest(ctx, p.to, upTo, kept)
	defer j.undoom()
	if err != nil {
		return err
	}
	c := change{Segments: []uint64{from, to}, After: p.to, To: upTo}
	m, err := t.writeRun(ctx, &c, s.touched, s.nodes, kept, func(w *runWriter) error { return t.copyCatalogue(w, c, s.end) })
	if err != nil {
		return err
	}
	m.In, m.Out, m.First, m.Last = Chain{}, s.end.Chain, s.first, s.end.Position
	if n := len(p.state.Runs); n > 0 {
		m.In = p.state.Runs[n-1].Out
	}
	state := p.state
	state.Runs = append(slices.Clone(state.Runs), m)
	state.Next, state.End, state.Change = m.Run+1, s.end, &c
	state.Recent = slices.Clone(s.recent.ends[max(0, len(s.recent.ends)-maxStateRecent):])
	if err := j.install(state, append(slices.Clone(p.kept), kept...)); err != nil {
		return err
	}
	t.done.Folded += s.bytes
	t.done.Written += m.Bytes
	return t.finishChange(ctx)
}

// pickers is what gathers candidates from the frames that it is told, nil for the
// end. The two lists go together.
func (t *maintainer) pickers(refs []Reference) (*[]Candidate, *[]runPoint, func(*written), error) {
	j := t.j
	var cands []Candidate
	var points []runPoint
	wanted := make(map[order]bool)
	for _, r := range refs {
		wanted[j.orderOf(r.At)] = true
	}
	var ps []*slotPicker
	dense, forEver := t.m.dense()
	for i := range t.leaves {
		spans, err := j.allSpans(t.leaves[i].lineage)
		if err != nil {
			return nil, nil, nil, err
		}
		ps = append(ps, &slotPicker{rungs: t.m.Ladder, branch: t.leaves[i].leaf, spans: spans, wanted: wanted, dense: t.now.Add(-dense), every: forEver, offer: func(c Candidate, p runPoint) {
			cands, points = append(cands, c), append(points, p)
		}})
	}
	pick := func(w *written) {
		if w == nil {
			for _, p := range ps {
				p.flush()
			}
			return
		}
		for k, r := range w.recs {
			o := order{w.ordinal, w.h.First + Seq(k)}
			for i := range t.leaves {
				if t.leaves[i].holds(o) {
					ps[i].record(Position{w.h.Epoch, o.Seq}, w.h.Number, o, r.time, w.chain)
					break
				}
			}
		}
	}
	return &cands, &points, pick, nil
}

// checkJoint compares the chain value after the last folded frame with what the
// index says precedes the first that stays.
func (t *maintainer) checkJoint(ctx context.Context, s *foldScan) error {
	j := t.j
	if there, err := exists(j.o.FS, j.segs.path(s.end.Segment)); err != nil || !there {
		return err // nothing is written behind them (landing.go)
	}
	if j.endsAt(s.end.Position) {
		return nil // the segment was made for a frame that did not come whole
	}
	h, _, err := j.segs.frameAt(s.end.Segment, pageBytes)
	if err != nil || h.Epoch != s.end.Epoch {
		return err
	}
	sm, ok, err := j.sampleBefore(ctx, j.ordinalOf(h.Epoch), h.First)
	if err != nil || !ok || sm.segment != s.end.Segment || sm.offset != pageBytes || sm.before == s.end.Chain {
		return err
	}
	return &DamageError{Hop: "fold", Epoch: h.Epoch, Seq: h.First, File: segmentName(s.end.Segment), Offset: pageBytes,
		What: "the index names another chain value before the frame"}
}

// endsAt reports that nothing is written after the record at p.
func (j *Journal) endsAt(p Position) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return int(j.ordinalLocked(p.Epoch)) == len(j.branches) && j.written == p.Seq
}

// choose is the points of the range that the policy keeps.
func (t *maintainer) choose(ctx context.Context, p *folds, to order, cands []Candidate, points []runPoint, refs []Reference) ([]runPoint, error) {
	byPlace := make(map[Position]runPoint, len(points))
	for i, c := range cands {
		byPlace[c.Position] = points[i]
	}
	all := t.keptCandidates(p)
	all = append(all, cands...)
	after, err := t.firstAfter(ctx, to)
	if err != nil {
		return nil, err
	}
	var out []runPoint
	for _, k := range Choose(append(all, after...), t.m.Retention, refs, t.now) {
		if pt, ok := byPlace[k.Position]; ok {
			out = append(out, pt)
		}
	}
	slices.SortFunc(out, func(a, b runPoint) int {
		if a.after(b.order) {
			return 1
		}
		return -1
	})
	return out, nil
}

// keptCandidates is the points that are kept of what is folded already.
func (t *maintainer) keptCandidates(p *folds) []Candidate {
	var out []Candidate
	for _, pt := range p.kept {
		leaf, _ := t.branchOf(pt.order)
		out = append(out, Candidate{Point: Point{Position: t.positionOf(pt.order), Time: pt.time}, Branch: leaf})
	}
	return out
}

// firstAfter is the first point behind a record on every branch: the one that shows
// whether the last before it ends its slot.
func (t *maintainer) firstAfter(ctx context.Context, to order) ([]Candidate, error) {
	var out []Candidate
	for i := range t.leaves {
		l := &t.leaves[i]
		spans, err := t.j.allSpans(l.lineage)
		if err != nil {
			return nil, err
		}
		for _, s := range spans {
			first := s.First
			if !t.j.orderOf(s.Last).after(to) {
				continue
			}
			if !t.j.orderOf(first).after(to) {
				first = t.nextIn(l.lineage, to)
			}
			if o := t.j.orderOf(first); !o.after(to) || first.IsZero() {
				continue
			}
			at, err := t.j.timeAt(ctx, first)
			if err != nil {
				return nil, err
			}
			out = append(out, Candidate{Point: Point{Position: first, Time: at}, Branch: l.leaf})
			break
		}
	}
	return out, nil
}

// nextIn is the first record of l behind to.
func (t *maintainer) nextIn(l Lineage, to order) Position {
	for _, i := range l {
		o := t.j.ordinalOf(i.Epoch)
		if o > to.Ordinal {
			return Position{i.Epoch, i.First}
		}
		if o == to.Ordinal && i.Last > to.Seq {
			return Position{i.Epoch, max(i.First, to.Seq+1)}
		}
	}
	return Position{}
}

// doomRest has nobody begin to use a point of the range that is not kept. What came
// into use since the policy was asked is kept too.
func (t *maintainer) doomRest(ctx context.Context, after, to order, kept []runPoint) ([]runPoint, error) {
	j := t.j
	for range 16 {
		d := &doomed{to: to, keep: make(map[order]bool)}
		for _, p := range kept {
			d.keep[p.order] = true
		}
		missing, err := j.tryDoom(d, after, t.newest)
		if err != nil || len(missing) == 0 {
			return kept, err
		}
		for _, p := range missing {
			at, err := j.timeAt(ctx, p)
			if err != nil {
				return kept, err
			}
			chain, err := j.chainOf(ctx, p)
			if err != nil {
				return kept, err
			}
			kept = append(kept, runPoint{order: j.orderOf(p), time: at, chain: chain})
		}
		slices.SortFunc(kept, func(a, b runPoint) int {
			if a.after(b.order) {
				return 1
			}
			return -1
		})
	}
	return kept, fmt.Errorf("points came into use faster than they are kept: %w", ErrBusy)
}

// tryDoom sets d unless points are in use or pinned that it does not keep, which it
// returns. It is ErrBusy when newest is not the newest epoch any more: by its id, for
// one that was refused leaves its number to the next.
func (j *Journal) tryDoom(d *doomed, after order, newest EpochID) (missing []Position, err error) {
	j.pinning.Lock() // nobody has seen a point and not pinned it yet
	defer j.pinning.Unlock()
	pins, err := j.Pins()
	if err != nil {
		return nil, err
	}
	j.fileMu.Lock() // no epoch is about to begin at a point
	defer j.fileMu.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	if n := len(j.branches); n == 0 || j.branches[n-1].ID != newest {
		return nil, fmt.Errorf("an epoch began: %w", ErrBusy)
	}
	for _, p := range j.heldLocked(pins) {
		if o := j.orderLocked(p); o.after(after) && !o.after(d.to) && !d.keep[o] {
			d.keep[o] = true // once, though several hold it
			missing = append(missing, p)
		}
	}
	if len(missing) == 0 {
		for _, p := range j.past.kept {
			d.keep[p.order] = true
		}
		j.doom = d
	}
	return missing, nil
}

// heldLocked is the points that are in use or have one of pins now: what came since
// the references were asked for must not go either.
func (j *Journal) heldLocked(pins []Pin) []Position {
	var out []Position
	if !j.o.faults.dropViewed {
		out = slices.AppendSeq(out, maps.Keys(j.users))
	}
	for _, p := range pins {
		if !p.Diff && !j.o.faults.trimPastPin {
			out = append(out, p.At)
		}
	}
	return out
}

func (j *Journal) undoom() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.doom = nil
}
