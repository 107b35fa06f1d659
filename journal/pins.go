package journal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Pin keeps a point at this site until Unpin. A diff pin does not keep the point
// itself, only the ability to list what changed since it (Diff).
type Pin struct {
	Name   string    `json:"name"`
	At     Position  `json:"at"`
	Number uint64    `json:"epoch_number"`
	Time   time.Time `json:"time"` // of the point
	Made   time.Time `json:"made"`
	Diff   bool      `json:"diff,omitempty"`
}

// pinsKey is where the site log keeps the pins.
const pinsKey = "journal/pins"

// Pin makes p kept under a name, durably; a pin of that name is replaced. Errors:
// ErrNoPoint when p is no point any more, ErrOutOfRange for an unusable name.
func (j *Journal) Pin(ctx context.Context, name string, p Point, diff bool) (Pin, error) {
	pin, err := j.pin(ctx, name, p, diff)
	if err != nil {
		return Pin{}, fmt.Errorf("pin %s: %w", p, err)
	}
	return pin, nil
}

func (j *Journal) pin(ctx context.Context, name string, p Point, diff bool) (Pin, error) {
	if name == "" || len(name) > 255 {
		return Pin{}, fmt.Errorf("name of %d bytes: %w", len(name), ErrOutOfRange)
	}
	v, err := j.View(ctx, p) // keeps the point while it is being pinned
	if err != nil {
		return Pin{}, err
	}
	pt, err := j.pointAt(ctx, p.Position)
	if err == nil {
		pin := Pin{Name: name, At: pt.Position, Number: pt.Number, Time: pt.Time, Made: j.o.Now(), Diff: diff}
		err = j.changePins(func(pins []Pin) []Pin {
			return append(slices.DeleteFunc(pins, func(o Pin) bool { return o.Name == name }), pin)
		})
		return pin, errors.Join(err, v.Close())
	}
	return Pin{}, errors.Join(err, v.Close())
}

// Unpin takes a pin away, durably; ErrNoPin when there is none of that name. The
// point goes with the next Maintain unless something else keeps it.
func (j *Journal) Unpin(name string) error {
	there := false
	err := j.changePins(func(pins []Pin) []Pin {
		return slices.DeleteFunc(pins, func(o Pin) bool { there = there || o.Name == name; return o.Name == name })
	})
	if err == nil && !there {
		err = ErrNoPin
	}
	if err != nil {
		return fmt.Errorf("unpin %s: %w", name, err)
	}
	return nil
}

// Pins lists the pins of this site in the order they were made.
func (j *Journal) Pins() ([]Pin, error) {
	var pins []Pin
	_, err := j.site.recall(pinsKey, &pins)
	return pins, err
}

// pinReferences is the points that pins of this site and marks of the stream keep.
func (j *Journal) pinReferences() ([]Reference, error) {
	pins, err := j.Pins()
	if err != nil {
		return nil, err
	}
	var out []Reference
	for _, p := range pins {
		if !p.Diff {
			out = append(out, Reference{Kind: ReferencePin, Name: p.Name, At: p.At})
		}
	}
	var all Lineage // marks on branches that were left keep their points too
	for _, b := range j.Branches() {
		all = append(all, Interval{b.ID, b.Number, b.First(), b.Last.Seq})
	}
	err = j.eachHappening(KindMark, all, func(i Interval, s Seq, h happening) error {
		var m Mark
		if err := decodeBody(h.Body, &m); err != nil {
			return fmt.Errorf("read catalogue: mark record %d: %w", s, err)
		}
		if m.Pin {
			out = append(out, Reference{Kind: ReferencePin, Name: m.Name, At: Position{i.Epoch, s}})
		}
		return nil
	})
	return out, err
}

func (j *Journal) changePins(f func([]Pin) []Pin) error {
	j.pinning.Lock()
	defer j.pinning.Unlock()
	pins, err := j.Pins()
	if err != nil {
		return err
	}
	n := len(pins)
	if pins = f(pins); len(pins) == 0 && n == 0 {
		return nil
	}
	return fullOr(j.site.remember(pinsKey, pins))
}
