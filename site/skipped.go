package site

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/site/control"
)

// What a catch-up skipped is no point here, and may be one at the site that it came from
// for as long as the ladder there keeps it. So a replica remembers what a delta led from
// and to, and asks that site what is left of it.

// skippedKey is where the site log keeps what deltas skipped; maxSkipped are kept.
const (
	skippedKey = "site/skipped"
	maxSkipped = 64
)

// skip is one delta, as it was about to land.
type skip struct {
	After journal.Position `json:"after,omitzero"`
	To    journal.Position `json:"to"`
	Time  time.Time        `json:"time"` // of the record that it leads to
	At    time.Time        `json:"at"`
	Peer  string           `json:"peer"`
}

// noteSkipped remembers a delta before it lands: whether it did is seen from the history.
func (l *life) noteSkipped(s skip) error {
	var all []skip
	if _, err := l.j.Recall(skippedKey, &all); err != nil {
		return fmt.Errorf("recall what was skipped: %w", err)
	}
	all = slices.DeleteFunc(all, func(x skip) bool { return x.After == s.After && x.To == s.To })
	all = append(all, s)
	if err := l.j.Remember(skippedKey, all[max(0, len(all)-maxSkipped):]); err != nil {
		return fmt.Errorf("remember what is skipped: %w", err)
	}
	return nil
}

// Take is the journal's, noted first.
func (l guardedLanding) Take(ctx context.Context, r io.Reader, to journal.DeltaEnd) (journal.Cursor, error) {
	s := skip{After: l.Place().After, To: to.Position, Time: to.Time, At: l.life.site.o.Now(), Peer: l.from}
	if err := l.life.noteSkipped(s); err != nil {
		return journal.Cursor{}, err
	}
	return l.Landing.Take(ctx, r, to)
}

// skipped is what the history here lacks between two records, for deltas brought it on.
// Where asking, the sites that they came from say what is left of it.
func (l *life) skipped(ctx context.Context, asking bool) ([]control.Skipped, error) {
	var all []skip
	if _, err := l.j.Recall(skippedKey, &all); err != nil {
		return nil, fmt.Errorf("recall what was skipped: %w", err)
	}
	if len(all) == 0 {
		return nil, nil
	}
	keeps, err := l.j.Points(ctx, time.Time{}, time.Time{})
	if err != nil {
		return nil, err
	}
	var out []control.Skipped
	lineage, numbers := l.j.Lineage(), epochNumbers(l.j)
	for _, s := range all {
		if !lineage.Holds(s.To) || !s.After.IsZero() && !lineage.Holds(s.After) || s.To.Seq <= s.After.Seq+1 || pointsBetween(keeps, s) > 0 {
			continue // it did not land, or was left
		}
		x := control.Skipped{After: uint64(s.After.Seq), To: control.Point{Epoch: numbers[s.To.Epoch], Seq: uint64(s.To.Seq), Time: s.Time}, At: s.At, Peer: s.Peer}
		if asking && s.Peer != "" && l.site.repl != nil {
			once, cancel := context.WithTimeout(ctx, skippedPatience)
			left, err := ask[remaining](once, l, s.Peer, topicRemains, s)
			cancel()
			if err == nil {
				x.Left = &left.Points
			}
			asking = err == nil // who does not answer now is not waited for again
		}
		out = append(out, x)
	}
	return out, nil
}

// skippedPatience bounds how long a list waits for a peer.
const skippedPatience = 2 * time.Second

// remaining answers what is left of records between two.
type remaining struct {
	Points uint64 `json:"points"`
}

// remains counts the points here between the ends of what a peer skipped.
func (l *life) remains(ctx context.Context, s skip) (remaining, error) {
	keeps, err := l.j.Points(ctx, time.Time{}, time.Time{})
	if err != nil {
		return remaining{}, err
	}
	spans, err := l.j.Spans(ctx)
	if err != nil {
		return remaining{}, err
	}
	n := uint64(0)
	within := func(p journal.Seq) bool {
		return slices.ContainsFunc(spans, func(x journal.Span) bool { return x.First.Seq <= p && p <= x.Last.Seq })
	}
	for _, x := range spans {
		first, last := max(x.First.Seq, s.After.Seq+1), min(x.Last.Seq, s.To.Seq-1)
		if first <= last {
			n += uint64(last - first + 1)
		}
	}
	for _, k := range keeps {
		if s.After.Seq < k.Seq && k.Seq < s.To.Seq && !within(k.Seq) {
			n++
		}
	}
	return remaining{Points: n}, nil
}

func pointsBetween(keeps []journal.Keep, s skip) (n int) {
	for _, k := range keeps {
		if s.After.Seq < k.Seq && k.Seq < s.To.Seq {
			n++
		}
	}
	return n
}
