package site

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/site/control"
)

// history is the points of a group as they are listed.
type pastOf struct {
	spans  []journal.Span
	keeps  []journal.Keep
	times  map[journal.Position]journal.Point
	spoilt []journal.InvalidRange
	names  map[cbt.VolumeID]string
}

// past reads the points between two times; zero: no bound.
func (l *life) past(ctx context.Context, from, to time.Time) (pastOf, error) {
	out := pastOf{times: map[journal.Position]journal.Point{}, names: map[cbt.VolumeID]string{}}
	var err error
	if out.keeps, err = l.j.Points(ctx, from, to); err != nil {
		return out, err
	}
	if out.spans, err = l.j.Spans(ctx); err != nil {
		return out, err
	}
	if out.spoilt, err = l.j.Invalid(ctx); err != nil {
		return out, err
	}
	for _, k := range out.keeps {
		out.times[k.Position] = k.Point
	}
	for _, v := range l.j.Parts() {
		out.names[v.ID] = v.Name
	}
	return out, nil
}

// point is the point at p, from the list where it is there.
func (o *pastOf) point(ctx context.Context, j *journal.Journal, p journal.Position) (journal.Point, error) {
	if pt, ok := o.times[p]; ok {
		return pt, nil
	}
	return pointAt(ctx, j, 0, p.Seq)
}

// ranges are the spans, with the times of their ends; those outside the bounds are left out.
func (o *pastOf) ranges(ctx context.Context, j *journal.Journal, from, to time.Time, growing bool) ([]control.Span, error) {
	out := []control.Span{}
	for _, sp := range o.spans {
		first, err := o.point(ctx, j, sp.First)
		if err != nil {
			return out, err
		}
		last, err := o.point(ctx, j, sp.Last)
		if err != nil {
			return out, err
		}
		if last.Time.Before(from) || !to.IsZero() && first.Time.After(to) {
			continue
		}
		out = append(out, control.Span{First: bare(first), Last: bare(last), Open: sp.Open && growing, Ended: string(sp.Ended)})
	}
	return out, nil
}

// stretches are the points and why they are kept, oldest first: a range in which
// every record is a point is one, and a point that is kept for a reason of its own.
// spans are those of ranges.
func (o *pastOf) stretches(spans []control.Span) []control.Stretch {
	out := []control.Stretch{}
	covered := func(k journal.Keep) *control.Span {
		for i, s := range spans {
			if s.First.Seq != s.Last.Seq && s.First.Seq <= uint64(k.Seq) && uint64(k.Seq) <= s.Last.Seq {
				return &spans[i]
			}
		}
		return nil
	}
	volumes := map[uint64][]string{}
	for _, k := range o.keeps {
		s := control.Stretch{First: bare(k.Point), Last: bare(k.Point), Points: 1, Reasons: k.Reasons, Volumes: o.volumes(k.Volumes)}
		if within := covered(k); within != nil {
			volumes[within.First.Seq] = s.Volumes
			if s.Reasons = own(k.Reasons); len(s.Reasons) == 0 {
				continue
			}
		}
		out = append(out, s)
	}
	for _, sp := range spans {
		if sp.First.Seq == sp.Last.Seq {
			continue
		}
		out = append(out, control.Stretch{First: sp.First, Last: sp.Last, Points: sp.Last.Seq - sp.First.Seq + 1, Reasons: []string{everyWrite}, Open: sp.Open, Ended: sp.Ended, Volumes: volumes[sp.First.Seq]})
	}
	out = o.spoil(out)
	slices.SortStableFunc(out, func(a, b control.Stretch) int {
		return cmp.Or(cmp.Compare(a.First.Seq, b.First.Seq), -cmp.Compare(a.Points, b.Points))
	})
	return out
}

// spoil says of points that damage spoils why they cannot be restored: of a single
// one in its place, of a part of a range in a stretch of its own.
func (o *pastOf) spoil(all []control.Stretch) []control.Stretch {
	out := slices.Clone(all)
	for _, r := range o.spoilt {
		first, last := uint64(r.First.Seq), uint64(r.Last.Seq)
		for i, s := range all {
			switch from, to := max(first, s.First.Seq), min(last, s.Last.Seq); {
			case from > to:
			case from == s.First.Seq && to == s.Last.Seq:
				out[i].Invalid = r.Damage.String()
			default:
				out = append(out, control.Stretch{First: o.known(s, from), Last: o.known(s, to), Points: to - from + 1, Reasons: s.Reasons, Volumes: s.Volumes, Invalid: r.Damage.String()})
			}
		}
	}
	return out
}

// known is the point at seq within s, with its time if the list has it.
func (o *pastOf) known(s control.Stretch, seq uint64) control.Point {
	for p, pt := range o.times {
		if uint64(p.Seq) == seq {
			return bare(pt)
		}
	}
	switch seq {
	case s.First.Seq:
		return s.First
	case s.Last.Seq:
		return s.Last
	}
	return control.Point{Epoch: s.Last.Epoch, Seq: seq}
}

const everyWrite = "every write"

// own are the reasons of a point that those around it do not share.
func own(reasons []string) []string {
	var out []string
	for _, r := range reasons {
		kind, _, _ := strings.Cut(r, " ")
		switch kind {
		case string(journal.ReferencePin), string(journal.ReferenceView), "mark":
			out = append(out, r)
		}
	}
	return out
}

func (o *pastOf) volumes(ids []cbt.VolumeID) []string {
	var out []string
	for _, id := range ids {
		name := o.names[id]
		if name == "" {
			name = cbt.ID(id).Short()
		}
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// forecast says which points the ladder and the references keep as of now, and
// which the next maintenances will drop, once enough of them has gathered.
func (l *life) forecast(ctx context.Context) (control.Maintained, error) {
	what := "maintain " + l.cfg.Ref()
	now := l.site.o.Now()
	out := control.Maintained{Group: l.cfg.Ref(), DryRun: true, Time: now, Usage: usageOf(l.j.Usage())}
	refs, _, err := l.references(ctx, now)
	if err != nil {
		return out, explain(what, err)
	}
	o, err := l.past(ctx, time.Time{}, time.Time{})
	if err != nil {
		return out, explain(what, err)
	}
	spans, err := o.ranges(ctx, l.j, time.Time{}, time.Time{}, true)
	if err != nil {
		return out, err
	}
	// The journal answers for pins and views itself: what they keep is among the
	// reasons of its points already.
	chosen := map[journal.Position]bool{}
	r := retentionOf(l.cfg)
	for _, k := range journal.Choose(candidatesOf(o.keeps), r, refs, now) {
		chosen[k.Position] = true
	}
	dense := denseReach(r)
	for _, s := range o.stretches(spans) {
		if s.Points > 1 && dense > 0 && now.Sub(s.First.Time) > dense && now.Sub(s.Last.Time) <= dense && !heldBy(refs, s, now) {
			if old, ok := l.olderPart(ctx, s, now.Add(-dense)); ok {
				out.Gone = append(out.Gone, old)
				s.First, s.Points = control.Point{Epoch: s.Last.Epoch, Seq: old.Last.Seq + 1, Time: old.Last.Time}, s.Points-old.Points
			}
		}
		switch {
		case s.Points == 1 && (chosen[positionIn(o.keeps, s.First)] || len(own(s.Reasons)) > 0):
			out.Kept = append(out.Kept, s)
		case s.Points == 1 || dense > 0 && now.Sub(s.Last.Time) > dense && !heldBy(refs, s, now):
			out.Gone = append(out.Gone, s)
		default:
			out.Kept = append(out.Kept, s)
		}
	}
	return out, nil
}

// olderPart is the part of a range that is not younger than t.
func (l *life) olderPart(ctx context.Context, s control.Stretch, t time.Time) (control.Stretch, bool) {
	p, err := resolve(ctx, l.j, t.Format(time.RFC3339Nano))
	if err != nil || uint64(p.Seq) < s.First.Seq || uint64(p.Seq) >= s.Last.Seq {
		return s, false
	}
	s.Last, s.Points, s.Open = bare(p), uint64(p.Seq)-s.First.Seq+1, false
	return s, true
}

func candidatesOf(keeps []journal.Keep) []journal.Candidate {
	var out []journal.Candidate
	for _, k := range keeps {
		out = append(out, journal.Candidate{Point: k.Point})
	}
	return out
}

func positionIn(keeps []journal.Keep, p control.Point) journal.Position {
	for _, k := range keeps {
		if k.Number == p.Epoch && uint64(k.Seq) == p.Seq {
			return k.Position
		}
	}
	return journal.Position{}
}

// denseReach is the age up to which every write is a point; 0: there is no such end.
func denseReach(r journal.Retention) time.Duration {
	d := r.Lock
	for _, g := range r.Ladder {
		if g.Every == 0 && g.For == 0 {
			return 0
		}
		if g.Every == 0 {
			d = max(d, g.For)
		}
	}
	if len(r.Ladder) == 0 {
		return 0
	}
	return max(d, 1)
}

// heldBy reports that a reference keeps all records of a range.
func heldBy(refs []journal.Reference, s control.Stretch, now time.Time) bool {
	for _, r := range refs {
		if uint64(r.At.Seq) < s.First.Seq && (r.Until.IsZero() || !r.Until.Before(now)) && r.Kind != journal.ReferencePin && r.Kind != journal.ReferenceView {
			return true
		}
	}
	return false
}
