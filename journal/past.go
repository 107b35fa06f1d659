package journal

import (
	"context"
	"fmt"
)

// A journal cannot go on from a record that it has folded away. What goes on there can go
// on from an earlier one that is a point still: a journal that begins with that point, and
// lacks all that followed, takes what came after it as frames or as a delta like one that
// was away. It takes its beginning from the journal that cannot go on, over no link.

// OpenPast opens a delta that leads from nothing to a point, with which an empty journal
// can begin. The point stays readable until Close. Errors: ErrUnknownParent where the
// record is not held, ErrReclaimed where it is folded and not kept.
func (j *Journal) OpenPast(ctx context.Context, at Position) (*Delta, error) {
	d, err := j.openPast(ctx, at)
	if err != nil {
		return nil, fmt.Errorf("open the past up to %s: %w", at, err)
	}
	return d, nil
}

func (j *Journal) openPast(ctx context.Context, at Position) (*Delta, error) {
	if _, err := j.settled(ctx); err != nil {
		return nil, err
	}
	if _, err := j.lineageAt(at); err != nil {
		return nil, err
	}
	if err := j.use(at); err != nil {
		return nil, err
	}
	d := &Delta{j: j, to: DeltaEnd{Cursor: Cursor{Position: at}}}
	if err := d.describe(ctx); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}
