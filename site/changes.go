package site

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// Changes implements control.API.
func (s *Site) Changes(ctx context.Context, q control.ChangesRequest) (control.Changes, error) {
	what := "compare points of " + q.Group
	out := control.Changes{Group: q.Group, Volumes: []control.VolumeChange{}}
	g, err := s.group(q.Group)
	if err != nil {
		return out, err
	}
	out.Group = g.cfg.Ref()
	l, release, err := s.open(ctx, g)
	if err != nil {
		return out, err
	}
	defer release()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(l.ctx, func() { cancel(errDetached) })()
	from, err := resolveForDiff(ctx, l.j, q.From)
	if err != nil {
		return out, err
	}
	to, err := resolveForDiff(ctx, l.j, q.To)
	if err != nil {
		return out, err
	}
	out.From, out.To = pointOf(from), pointOf(to)
	changed, err := l.j.Diff(ctx, from.Position, to.Position)
	if err != nil {
		return out, explain(what, err)
	}
	exact, err := l.j.Unthinned(from.Position, to.Position)
	if err != nil {
		return out, explain(what, err)
	}
	out.Thinned = !exact
	volumes := map[cbt.VolumeID]cbt.Volume{}
	for _, p := range []journal.Point{from, to} {
		vs, err := l.j.Volumes(p)
		if err != nil {
			return out, explain(what, err)
		}
		for _, v := range vs {
			v.Size = max(v.Size, volumes[v.ID].Size)
			volumes[v.ID] = v
		}
	}
	for id, es := range changed {
		v := volumes[id]
		if q.Volume != "" && v.Name != q.Volume {
			continue
		}
		c := control.VolumeChange{Volume: v.Name, Size: v.Size, Extents: make([]control.Extent, 0, len(es))}
		for _, e := range es {
			c.Extents = append(c.Extents, control.Extent{Offset: e.Offset, Length: e.Length})
			c.Bytes += e.Length
		}
		out.Volumes, out.Bytes = append(out.Volumes, c), out.Bytes+c.Bytes
	}
	if q.Volume != "" && len(out.Volumes) == 0 {
		return out, fault.New(fault.VolumeUnknown, what, "neither point has a volume %q", q.Volume)
	}
	slices.SortFunc(out.Volumes, func(a, b control.VolumeChange) int { return strings.Compare(a.Volume, b.Volume) })
	return out, nil
}

// resolveForDiff finds the moment that at means: a point, or one that only a diff pin
// is left of, by the pin's name or by its seq.
func resolveForDiff(ctx context.Context, j *journal.Journal, at string) (journal.Point, error) {
	p, err := resolve(ctx, j, at)
	if err == nil || !fault.Is(err, fault.PointUnknown) && !fault.Is(err, fault.HistoryThinned) {
		return p, err
	}
	pins, perr := j.Pins()
	if perr != nil {
		return p, err
	}
	numbers := epochNumbers(j)
	name, named := strings.CutPrefix(at, "name:")
	seq, counted := seqIn(at)
	for _, pin := range pins {
		match := named && pin.Name == name
		if counted {
			match = pin.At.Seq == seq && (!strings.Contains(at, ".") || strings.HasPrefix(at, "#"+strconv.FormatUint(numbers[pin.At.Epoch], 10)+"."))
		}
		if match {
			return journal.Point{Position: pin.At, Number: pin.Number, Time: pin.Time}, nil
		}
	}
	return p, err
}
