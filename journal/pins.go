package journal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
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

// viewing counts the open views of each point: Maintain keeps what they show.
type viewing struct {
	mu   sync.Mutex // guards open
	open map[Position]int
}

func (v *viewing) enter(p Position) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.open == nil {
		v.open = make(map[Position]int)
	}
	v.open[p]++
}

func (v *viewing) leave(p Position) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.open[p]--; v.open[p] <= 0 {
		delete(v.open, p)
	}
}

// openViews is a reference for every point that a view is open at.
func (j *Journal) openViews() []Reference {
	j.views.mu.Lock()
	defer j.views.mu.Unlock()
	var out []Reference
	for p := range j.views.open {
		out = append(out, Reference{Kind: ReferenceView, At: p})
	}
	return out
}
