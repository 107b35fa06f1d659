package journal

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Maintenance is what one call of Maintain is asked to do.
type Maintenance struct {
	Retention
	References []Reference // beside pins and open views, which the journal knows itself
	Now        time.Time   // zero: Options.Now
	// TrustClock is a person's word that the wall clock is right: see clock.go.
	TrustClock bool
	// TrustSiteLog is a person's word that pins and peers are right again after entries
	// of the site log were lost: see sitecopy.go.
	TrustSiteLog bool
	// BytesPerSecond bounds what is read and written for it; 0: no bound.
	BytesPerSecond int64
	// FoldBytes is how much history that may be folded must have gathered before it
	// is: the larger, the fewer bytes are written in a journal's life. More than a
	// segment grows to a quarter of what the runs take. 0: 1 GiB, or a quarter of
	// the quota where that is less.
	FoldBytes int64
	// Progress, if not nil, is told what is being done and how far it is, in bytes.
	Progress func(stage string, done, total int64)
}

// Maintained is what one call of Maintain did, and how the journal stands after it.
type Maintained struct {
	Folded  int64 // bytes of segments that were rewritten into runs
	Merged  int64 // bytes of runs that were rewritten into others
	Written int64 // bytes of the runs that were made of both
	Freed   int64 // bytes of segments and runs that were given back
	// ClockLeap is how far the wall clock is ahead of what is witnessed: nothing was
	// folded, merged or thinned. 0: it is not.
	ClockLeap time.Duration
	// SiteLogLost says that nothing was for want of Maintenance.TrustSiteLog.
	SiteLogLost bool
	Usage
}

// Usage is what a journal's history takes on disk, and how far back it goes.
type Usage struct {
	Segments     int    `json:"segments"` // files
	Runs         int    `json:"runs"`
	SegmentBytes int64  `json:"segment_bytes"`
	RunBytes     int64  `json:"run_bytes"`
	PoolBytes    int64  `json:"pool_bytes"`       // free files, for segments to come; not in Used
	Used         int64  `json:"used"`             // both; what the quota is compared with
	Quota        int64  `json:"quota,omitempty"`  // 0: none
	Oldest       *Point `json:"oldest,omitempty"` // point; nil when there is none
	// FramesFrom is the first record that can still be streamed as it was written.
	FramesFrom Position `json:"frames_from"`
	// Warning says which of Retention.WarnAt Used has passed, or that Maintain does not
	// trust the clock; "" for none.
	Warning string `json:"warning,omitempty"`
}

// Usage tells what the history takes on disk, by the quota of Options.
func (j *Journal) Usage() Usage {
	u := j.usage(j.o.QuotaBytes, nil)
	if l := j.Lineage(); len(l) > 0 {
		if spans, err := j.spans(l); err == nil && len(spans) > 0 {
			if pt, err := j.describe(context.Background(), spans[0], spans[0].First); err == nil {
				u.Oldest = &pt
			}
		}
	}
	return u
}

func (j *Journal) usage(quota int64, warnAt []int) Usage {
	ns, err := j.segmentList()
	if err != nil {
		j.o.Log.Warn("count segments", "err", err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	s := &j.past.state
	u := Usage{Segments: len(ns), Runs: len(s.Runs), RunBytes: s.bytes(), Used: j.usedLocked(), Quota: quota, FramesFrom: j.framesFromLocked()}
	u.SegmentBytes, u.PoolBytes = u.Used-u.RunBytes, j.pool.size()
	for _, w := range slices.Sorted(slices.Values(warnAt)) {
		if quota > 0 && float64(u.Used) >= float64(quota)*float64(w)/100 {
			u.Warning = fmt.Sprintf("the history takes %d %% of its quota of %d bytes", int64(float64(u.Used)*100/float64(quota)), quota)
		}
	}
	return u
}

// references is what keeps points and frames now: those of m, the pins, the views.
func (j *Journal) references(m Maintenance) ([]Reference, error) {
	refs := slices.Clone(m.References)
	if !j.o.faults.trimPastPin {
		pins, err := j.pinReferences()
		if err != nil {
			return nil, err
		}
		refs = append(refs, pins...)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.o.faults.dropViewed {
		return refs, nil
	}
	return append(refs, j.usersLocked()...), nil
}

// Maintain thins the history by the ladder: it folds what every reference allows
// into runs, merges runs, and gives back segments and runs that nothing needs. It
// works beside everything else; a second call at the same time is ErrBusy. What it
// was doing when ctx ends, or the process dies, the next call finishes or takes
// back: no point that is kept is ever missing in between. It refuses to fold what
// does not verify: a *DamageError names it, and nothing is given back. While the wall
// clock is ahead of what is witnessed (clock.go) it does no more than finish.
func (j *Journal) Maintain(ctx context.Context, m Maintenance) (Maintained, error) {
	if err := m.Validate(); err != nil {
		return Maintained{}, fmt.Errorf("maintain journal: %w", err)
	}
	if !j.maintaining.TryLock() {
		return Maintained{}, fmt.Errorf("maintain journal: %w", ErrBusy)
	}
	defer j.maintaining.Unlock()
	if m.Now.IsZero() {
		m.Now = j.o.Now()
	}
	t := &maintainer{j: j, m: m, now: m.Now, pace: newPace(ctx, m.BytesPerSecond)}
	err := t.run(ctx)
	t.done.Usage = j.usage(m.QuotaBytes, m.WarnAt)
	if t.done.ClockLeap > 0 {
		t.done.Warning = leapWarning(t.done.ClockLeap)
	}
	if l, unknown, lerr := j.SiteLogLoss(); lerr == nil && unknown {
		t.done.Warning = l.Warning()
	}
	if l := j.Lineage(); err == nil && len(l) > 0 {
		t.done.Oldest = j.Usage().Oldest
	}
	if err = j.endIfUnsynced(err); err != nil {
		return t.done, fmt.Errorf("maintain journal: %w", err)
	}
	return t.done, nil
}

// Points lists the points of the head's lineage between two times (zero: no bound),
// oldest first, and why each is kept, by the retention of the last Maintain. Where
// history is folded these are all there are. Elsewhere every record of a Span is a
// point; of those it lists the first and the last of a span, and the ones that a
// mark or a pin names.
func (j *Journal) Points(ctx context.Context, from, to time.Time) ([]Keep, error) {
	out, err := steady(j, func() ([]Keep, error) { return j.points(ctx, from, to) })
	if err != nil {
		return nil, fmt.Errorf("list points: %w", err)
	}
	return out, nil
}

func (j *Journal) points(ctx context.Context, from, to time.Time) ([]Keep, error) {
	spans, err := j.Spans(ctx)
	if err != nil {
		return nil, err
	}
	var r Retention
	if _, err := j.site.recall(retentionKey, &r); err != nil {
		return nil, err
	}
	refs, err := j.references(Maintenance{})
	if err != nil {
		return nil, err
	}
	at, err := j.listed(ctx, spans, refs)
	if err != nil {
		return nil, err
	}
	var cands []Candidate
	for _, s := range at {
		pt, err := j.describe(ctx, s, s.First)
		if err != nil {
			return nil, err
		}
		cands = append(cands, Candidate{Point: pt})
	}
	why := make(map[Position][]string)
	for _, k := range Choose(cands, r, refs, j.o.Now()) {
		why[k.Position] = k.Reasons
	}
	var out []Keep
	for _, c := range cands {
		if c.Time.Before(from) || (!to.IsZero() && c.Time.After(to)) {
			continue
		}
		k := Keep{c.Point, why[c.Position]}
		if _, folded, _ := j.keptPoint(c.Position); !folded && !slices.Contains(k.Reasons, everyWrite) {
			k.Reasons = append([]string{everyWrite}, k.Reasons...) // its frame is still there
		}
		out = append(out, k)
	}
	return out, nil
}

// listed is the points that Points names, each as a span of one record.
func (j *Journal) listed(ctx context.Context, spans []Span, refs []Reference) ([]Span, error) {
	l, err := j.settled(ctx)
	if err != nil {
		return nil, err
	}
	named := make(map[Seq]bool)
	for _, r := range refs {
		if (r.Kind == ReferencePin || r.Kind == ReferenceView) && l.Holds(r.At) {
			named[r.At.Seq] = true
		}
	}
	err = j.eachHappening(KindMark, l, func(_ Interval, s Seq, _ happening) error {
		named[s] = true
		return nil
	})
	var out []Span
	for _, s := range spans {
		named[s.First.Seq], named[s.Last.Seq] = true, true
		seqs := []Seq{}
		for q := range named {
			if s.First.Seq <= q && q <= s.Last.Seq {
				seqs = append(seqs, q)
			}
		}
		slices.Sort(seqs)
		for _, q := range seqs {
			i, ok := l.Owner(q)
			if !ok {
				continue
			}
			one := s
			one.First, one.Last, one.Number = Position{i.Epoch, q}, Position{i.Epoch, q}, i.Number
			out = append(out, one)
		}
		delete(named, s.First.Seq)
		delete(named, s.Last.Seq)
	}
	return out, err
}
