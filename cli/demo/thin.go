package demo

import (
	"context"
	"fmt"

	"github.com/novacron/afterimage/site/control"
)

// The ladder of site b: short enough to be seen at work. Maintenance waits to be asked.
const ladder = `    quota: 128MiB
    history: [{every: write, for: 2s}, {every: 1s, for: 1h}]
    maintenance: {every: 1h}
`

// thin folds the history at b by its ladder and proves that what is kept is whole:
// the pinned moment, and the disk that is served since the failover.
func (s *story) thin(ctx context.Context) error {
	before, err := s.b.points(ctx)
	if err != nil {
		return err
	}
	r, err := s.b.api.Maintain(ctx, control.MaintainRequest{Group: "demo"}, func(control.Progress) {})
	if err != nil {
		return fmt.Errorf("thin the history: %w", err)
	}
	after, err := s.b.points(ctx)
	if err != nil {
		return err
	}
	s.say("\nSite b keeps every write for 2 s, then a moment a second: %d moments become %d.", before, after)
	s.check(r.Folded > 0 && r.Freed > 0 && after < before && after > 1, "old history is thinned and its space given back", "%d MiB folded into %d MiB, %d MiB freed", r.Folded>>20, r.Written>>20, r.Freed>>20)
	s.recheck(ctx, "the pinned moment is still there, and whole")
	left, err := s.survivors(ctx, s.done)
	if err != nil {
		return err
	}
	s.check(left.Torn == 0 && left.Missing == 0 && left.Foreign == 0, "so is the disk that is served", "max %d, torn %d, foreign %d, missing %d", left.Max, left.Torn, left.Foreign, left.Missing)
	return nil
}

// points is how many moments there are at the daemon's site.
func (d *daemon) points(ctx context.Context) (n uint64, err error) {
	ps, err := d.api.Points(ctx, control.PointsQuery{Group: "demo"})
	for _, k := range ps.Spans {
		n += k.Last.Seq - k.First.Seq + 1
	}
	return n, err
}
