package site

import (
	"context"
	"sync"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/replicator"
)

var (
	_ replicator.DeltaSource  = guard{}
	_ replicator.DeltaReplica = guard{}
)

// guardedDelta counts as a user of the journal until Close.
type guardedDelta struct {
	*journal.Delta
	leave func()
}

func (d guardedDelta) Close() {
	d.Delta.Close()
	d.leave()
}

// OpenDelta opens a delta from the life's journal, which is not closed before the
// delta is.
func (g guard) OpenDelta(ctx context.Context, after journal.Position, newest bool) (replicator.Delta, error) {
	ctx, leave, err := g.enter(ctx)
	if err != nil {
		return nil, err
	}
	d, err := g.l.j.OpenDelta(ctx, after, newest)
	if err != nil {
		leave()
		return nil, err
	}
	return guardedDelta{d, sync.OnceFunc(leave)}, nil
}

// guardedLanding counts as a user of the journal until Close.
type guardedLanding struct {
	*journal.Landing
	life  *life
	from  string // who sends it
	leave func()
}

func (l guardedLanding) Close() {
	l.Landing.Close()
	l.leave()
}

// OpenLanding makes the life's journal ready for a delta. Beside pins and views, what
// this site's marks and failovers refer to is kept.
func (g guard) OpenLanding(ctx context.Context, after journal.Position) (replicator.Landing, error) {
	ctx, leave, err := g.enter(ctx)
	if err != nil {
		return nil, err
	}
	l, err := g.land(ctx, after)
	if err != nil {
		leave()
		return nil, err
	}
	return guardedLanding{l, g.l, g.from, sync.OnceFunc(leave)}, nil
}

func (g guard) land(ctx context.Context, after journal.Position) (*journal.Landing, error) {
	if g.l.roleNow().Role.Captures() {
		return nil, replicator.ErrNotReplica
	}
	refs, err := g.l.ownReferences(ctx)
	if err != nil {
		return nil, err
	}
	l, err := g.l.j.OpenLanding(ctx, after, refs)
	return l, g.l.stuck(err)
}
