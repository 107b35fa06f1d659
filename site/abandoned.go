package site

import (
	"context"
	"errors"
	"fmt"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/site/control"
)

// abandoned is what lies beside the lineage: whole epochs that it does not go through,
// and the tails of those that it left before their end. Each tells its newest point, by
// which it is served; one without has no point, or none that is kept.
func (l *life) abandoned(ctx context.Context) ([]control.Abandoned, error) {
	left := map[journal.EpochID]journal.Seq{} // the newest record of the lineage's in it
	for _, i := range l.j.Lineage() {
		left[i.Epoch] = i.Last
	}
	head := l.j.Head()
	out := []control.Abandoned{}
	for _, b := range l.j.Branches() {
		first := b.First()
		if last, ok := left[b.ID]; ok {
			first = last + 1
		}
		if b.ID == head.Epoch || b.Last.Epoch != b.ID || b.Last.Seq < first {
			continue
		}
		a := control.Abandoned{Epoch: b.Number, ID: b.ID.String(), Site: b.Site, Begun: b.Begun, First: uint64(first), Last: uint64(b.Last.Seq)}
		newest, err := l.newestIn(ctx, b, first)
		if err != nil {
			return nil, err
		}
		if newest != nil {
			told := bare(*newest)
			a.Newest, a.At = &told, fmt.Sprintf("#%d.%d", newest.Number, newest.Seq)
		}
		out = append(out, a)
	}
	return out, nil
}

// newestIn is the newest point of a branch from first on; nil if there is none.
func (l *life) newestIn(ctx context.Context, b journal.Branch, first journal.Seq) (*journal.Point, error) {
	a, err := parseAt(fmt.Sprintf("#%d.%d", b.Number, b.Last.Seq))
	if err != nil {
		return nil, err
	}
	p, err := l.j.Resolve(ctx, a)
	var nowhere *journal.NoPointError
	if errors.As(err, &nowhere) && nowhere.Before != nil {
		p, err = *nowhere.Before, nil
	}
	switch {
	case err == nil && p.Epoch == b.ID && p.Seq >= first:
		return &p, nil
	case err == nil, errors.Is(err, journal.ErrNoPoint), errors.Is(err, journal.ErrReclaimed):
		return nil, nil
	}
	return nil, err
}
