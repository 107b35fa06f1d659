package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/novacron/afterimage/cbt"
)

// ErrWriteLost says that the image did not hold what was written to it when it was
// read back.
var ErrWriteLost = errors.New("the image does not hold what was written to it")

// levelStep is how much of an image is read, compared and written at once.
const levelStep = 1 << 20

// bootOf names this run of the host; empty where the kernel does not say.
func bootOf() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}

// crashed reports that the host went down after the memo was written, with the image
// in use. A memo of before hosts were named says nothing.
func (m memo) crashed(boot string) bool { return m.Boot != "" && m.Boot != boot && !m.Ended }

func (d *Device) whole() []cbt.Extent { return []cbt.Extent{{Length: d.o.Volume.Size}} }

// changeBranch brings an image that was left with another history, or is half-way
// from there to here, to the head: where the two differ, as the journal knows. It may
// be repeated from any moment of itself, for the memo stays the old one until the end.
// Where the journal cannot tell, or the image holds what it lacks, or the host went
// down, all of it is compared.
func (d *Device) changeBranch(ctx context.Context, m memo) error {
	es, err := d.o.History.Changed(ctx, m.Place, d.o.Volume.ID)
	switch {
	case err != nil && ctx.Err() != nil:
		return err
	case err != nil, m.Unprotected, m.Boot == "", m.crashed(d.o.Boot):
		d.o.Log.Warn("image belongs to another branch; all of it is compared with the head", "volume", d.o.Volume.Name, "err", err)
		es = d.whole()
	}
	wrote, err := d.level(ctx, es)
	if err == nil {
		d.o.Log.Info("image brought from another branch to the head", "volume", d.o.Volume.Name, "compared", lengthOf(es), "written", lengthOf(wrote))
	}
	return err
}

// level makes the image equal to the head in es: it writes what differs, makes that
// durable, reads it back past the page cache and compares again.
func (d *Device) level(ctx context.Context, es []cbt.Extent) (wrote []cbt.Extent, err error) {
	have, want := make([]byte, levelStep), make([]byte, levelStep)
	err = d.inSteps(ctx, "compare", es, have, want, func(off int64, have, want []byte) error {
		for _, e := range differing(have, want) {
			p := want[e.Offset:e.End()]
			at := cbt.Extent{Offset: off + e.Offset, Length: e.Length}
			ev := cbt.Event{Kind: cbt.EventWrite, Extent: at, Data: p}
			if isZero(p) {
				ev.Kind, ev.Data = cbt.EventZero, nil
			}
			if err := applyTo(d.store, ev); err != nil {
				return err
			}
			wrote = append(wrote, at)
		}
		return nil
	})
	wrote = cbt.Union(wrote)
	if err == nil {
		err = d.store.sync(ctx)
	}
	if err == nil {
		err = d.store.forget()
	}
	if err == nil {
		err = d.inSteps(ctx, "read back", wrote, have, want, func(off int64, have, want []byte) error {
			if !bytes.Equal(have, want) {
				return ErrWriteLost
			}
			return nil
		})
	}
	if err != nil {
		return nil, fmt.Errorf("bring image to the head: %w", err)
	}
	return wrote, nil
}

// inSteps reads es from image and head, step by step.
func (d *Device) inSteps(ctx context.Context, step string, es []cbt.Extent, have, want []byte, f func(off int64, have, want []byte) error) error {
	done, total := int64(0), lengthOf(es)
	for _, e := range es {
		e.Length = min(e.End(), d.o.Volume.Size) - e.Offset
		for off := e.Offset; off < e.End(); off += levelStep {
			n := min(levelStep, e.End()-off)
			err := d.store.readAt(ctx, have[:n], off)
			if err == nil {
				err = d.o.Sink.ReadHead(ctx, d.o.Volume.ID, off, want[:n])
			}
			if err == nil {
				err = f(off, have[:n], want[:n])
			}
			if err != nil {
				return fmt.Errorf("at %d: %w", off, err)
			}
			if done += n; d.o.Progress != nil {
				d.o.Progress(step, done, total)
			}
		}
	}
	return nil
}

func lengthOf(es []cbt.Extent) (n int64) {
	for _, e := range es {
		n += e.Length
	}
	return n
}
