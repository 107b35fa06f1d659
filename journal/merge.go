package journal

import (
	"context"
	"maps"
	"slices"
)

// mergeRuns rewrites the runs from number i to k of the list as one.
func (t *maintainer) mergeRuns(ctx context.Context, i, k int) error {
	j := t.j
	p := j.history()
	if err := t.takeLeaves(); err != nil {
		return err
	}
	old := p.state.Runs[i : k+1]
	var runs []*run
	c := change{After: old[0].After, To: old[len(old)-1].To}
	for _, m := range old {
		r, err := j.openRun(m)
		if err != nil {
			return err
		}
		runs, c.Runs, c.RunBytes = append(runs, r), append(c.Runs, m.Run), c.RunBytes+m.Bytes
	}
	in, nodes, err := j.runTouched(runs)
	if err != nil {
		return err
	}
	var points []runPoint
	for _, pt := range p.kept {
		if pt.after(c.After) && !pt.after(c.To) {
			points = append(points, pt)
		}
	}
	m, err := t.writeRun(ctx, &c, in, nodes, points, func(w *runWriter) error {
		for _, r := range runs {
			if err := r.each(blockCatalogue, w.control); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	m.In, m.Out, m.First, m.Last = old[0].In, old[len(old)-1].Out, old[0].First, old[len(old)-1].Last
	state := p.state
	state.Runs = slices.Concat(p.state.Runs[:i], []manifest{m}, p.state.Runs[k+1:])
	state.Next, state.Change = m.Run+1, &c
	if err := j.install(state, p.kept); err != nil {
		return err
	}
	t.done.Merged += c.RunBytes
	t.done.Written += m.Bytes
	return t.finishChange(ctx)
}

// install makes a state of folded history durable, and then what readers go by.
func (j *Journal) install(s runState, kept []runPoint) error {
	if err := s.check(); err != nil {
		return err
	}
	if err := j.site.remember(runStateKey, s); err != nil {
		return fullOr(err)
	}
	j.mu.Lock()
	j.past = &folds{state: s, to: s.to(), kept: kept, lame: s.stillLame(j.past.lame)}
	j.broadcastLocked()
	j.mu.Unlock()
	return nil
}

// thin drops the points of folded history that are kept no more. Their bytes go
// when their run is merged.
func (t *maintainer) thin(keep map[order]bool) error {
	j := t.j
	p := j.history()
	if err := j.doomAllBut(p.to, keep); err != nil {
		return err
	}
	defer j.undoom()
	var kept []runPoint
	drop := make(map[order]bool)
	for _, pt := range p.kept {
		if keep[pt.order] {
			kept = append(kept, pt)
		} else {
			drop[pt.order] = true
		}
	}
	if len(drop) == 0 {
		return nil
	}
	state := p.state
	state.Runs = slices.Clone(state.Runs)
	for i := range state.Runs {
		if err := j.dropPoints(&state.Runs[i], drop); err != nil {
			return err
		}
	}
	return j.install(state, kept)
}

// doomAllBut has nobody begin to use a point up to a record that is not in keep,
// into which it puts what is in use or pinned.
func (j *Journal) doomAllBut(to order, keep map[order]bool) error {
	j.pinning.Lock() // nobody has seen a point and not pinned it yet
	defer j.pinning.Unlock()
	pins, err := j.Pins()
	if err != nil {
		return err
	}
	j.fileMu.Lock() // no epoch is about to begin at a point
	defer j.fileMu.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, at := range j.heldLocked(pins) {
		keep[j.orderLocked(at)] = true
	}
	j.doom = &doomed{to: to, keep: keep}
	return nil
}

// dropPoints marks points of a run as kept no more.
func (j *Journal) dropPoints(m *manifest, drop map[order]bool) error {
	hit := false
	for o := range maps.Keys(drop) {
		hit = hit || (o.after(m.After) && !o.after(m.To))
	}
	if !hit {
		return nil
	}
	if drop[m.To] {
		m.Ends = nil
	}
	r, err := j.openRun(*m)
	if err != nil {
		return err
	}
	bits, err := decodeBits(m.Dropped, len(r.points))
	if err != nil {
		return err
	}
	for i, pt := range r.points {
		if drop[pt.order] && !bits[i] {
			bits[i] = true
			m.Garbage += pt.only
		}
	}
	m.Dropped = encodeBits(bits)
	return nil
}
