package journal

import (
	"errors"
	"fmt"
	"slices"
)

// Where a run is lost and the index that knew its places as well, no image behind the
// run's beginning can be made: whatever a later version does not cover would read as
// of an earlier time. A person who accepts that (Options.AcceptLoss) keeps the history
// up to the last run before it; what lies behind goes to lost/, as where the end of
// the log is cut (salvage.go):
//
//  1. the evidence goes into the site log;
//  2. all segments, highest first, and the runs from the lost one on move to lost/;
//  3. the site log lists the runs that are left, and the anchor is their end, which
//     is a point from then on.
//
// A crash in between leaves a journal that refuses again. Where the oldest run is the lost
// one it stays refused, though later runs and segments are whole: a block that none of
// them holds would read as zeros, at every point, and which blocks those are is not
// known without the run's table or the index. A peer, or a new journal, is the way.
// While the index is there nothing of this is needed: the journal opens, and only what
// lies in the run does not read (runtail.go).

// loseRuns cuts folded history where it last verifies; cause is why it does not open.
func (j *Journal) loseRuns(cause error) error {
	s := j.past.state
	whole, err := j.wholeRuns()
	if err != nil {
		return err
	}
	listed := false
	for ; whole > 0; whole-- {
		var ok bool
		if ok, listed = j.endsWhole(whole - 1); ok {
			break
		}
	}
	if whole == 0 {
		return fmt.Errorf("%w; it is the oldest: of every later image the blocks that nothing has written since are in it alone, and which those are only its table or the index said, so no point is left that could be kept", cause)
	}
	last := s.Runs[whole-1]
	var known Cursor
	if _, err := j.site.recall(anchorKey, &known); err != nil {
		return err
	}
	ns, err := j.segmentList()
	if err != nil {
		return err
	}
	var files []string // as they move
	for _, n := range slices.Backward(ns) {
		files = append(files, j.o.FS.PathJoin(j.segs.dir, segmentName(n)))
	}
	names, err := j.o.FS.List(j.runs.dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if n, ok := parseRunName(name); ok && !slices.ContainsFunc(s.Runs[:whole], func(m manifest) bool { return m.Run == n }) {
			files = append(files, j.o.FS.PathJoin(j.runs.dir, name))
		}
	}
	l := Loss{Time: j.o.Now(), After: last.Last, Known: known.Position, Cause: cause.Error()}
	for _, path := range files {
		l.Kept = append(l.Kept, j.lostName(j.o.FS.PathBase(path)))
	}
	ls, err := j.Losses()
	if err != nil {
		return err
	}
	if err := j.site.remember(lossesKey, append(ls, l)); err != nil {
		return err
	}
	if err := j.moveLost(files, l.Kept); err != nil {
		return fmt.Errorf("cut journal: %w", err)
	}
	end := max(s.floor(), 1)
	if len(ns) > 0 {
		end = max(end, ns[len(ns)-1]+1)
	}
	if err := j.endWithRun(s, whole, listed, end); err != nil {
		return err
	}
	j.o.Log.Error("loss accepted", "dir", j.dir, "after", last.Last.String(), "cause", cause, "kept", l.Kept)
	return nil
}

// endsWhole reports that the image at the end of run i is there: because the history
// went on from it in the same epoch, or as a point that is kept, which listed says. An
// abandoned branch may end there of which nothing is.
func (j *Journal) endsWhole(i int) (whole, listed bool) {
	runs := j.past.state.Runs
	m := runs[i]
	whole = i+1 < len(runs) && runs[i+1].First == (Position{m.Last.Epoch, m.Last.Seq + 1})
	r, err := j.openRun(m)
	if err != nil || len(r.points) == 0 || r.points[len(r.points)-1].order != m.To {
		return whole, false
	}
	dropped, err := decodeBits(m.Dropped, len(r.points))
	listed = err == nil && !dropped[len(dropped)-1]
	return whole || listed, listed
}

// wholeRuns is how many runs, from the oldest on, could be put into a new index.
func (j *Journal) wholeRuns() (int, error) {
	for i, m := range j.past.state.Runs {
		if err := j.canTake(m); errors.Is(err, ErrRunLost) {
			return i, nil
		} else if err != nil {
			return i, err
		}
	}
	return len(j.past.state.Runs), nil
}

func (j *Journal) moveLost(files, names []string) error {
	fs, dir := j.o.FS, j.o.FS.PathJoin(j.dir, lostDir)
	if err := makeDir(fs, dir); err != nil {
		return err
	}
	for i, path := range files {
		if err := fs.Rename(path, fs.PathJoin(dir, names[i])); err != nil {
			return err
		}
	}
	j.segs.forget()
	j.runs.forget()
	return errors.Join(syncDir(fs, dir), syncDir(fs, j.segs.dir), syncDir(fs, j.runs.dir))
}

// endWithRun makes the first runs of s all of the history; the next frame goes into a
// new segment.
func (j *Journal) endWithRun(s runState, runs int, listed bool, segment uint64) error {
	s.Runs = slices.Clone(s.Runs[:runs])
	last := &s.Runs[runs-1]
	end := frameEnd{Cursor: Cursor{last.Last, last.Out}, Segment: segment, Offset: pageBytes, Bytes: s.End.Bytes, Epochs: int(last.To.Ordinal)}
	r, err := j.openRun(*last)
	if err != nil {
		return err
	}
	end.Time = r.page.Created // no record of it is later
	if !listed {              // the next epoch forks from there
		last.Ends = &end.Time
	}
	s.End, s.Recent, s.Change, s.Given = end, nil, nil, s.End.Bytes
	if err := s.check(); err != nil {
		return err
	}
	var ds []Damage
	if _, err := j.site.recall(damageKey, &ds); err != nil {
		return err
	}
	ds = slices.DeleteFunc(ds, func(d Damage) bool {
		return !slices.ContainsFunc(s.Runs, func(m manifest) bool { return runName(m.Run) == d.File })
	})
	if err := errors.Join(j.site.remember(damageKey, ds), j.site.remember(anchorKey, end.Cursor), j.site.remember(runStateKey, s)); err != nil {
		return err
	}
	j.past = &folds{state: s, to: s.to()}
	return j.loadKept()
}
