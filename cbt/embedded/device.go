package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
)

// NewJournaled is a disk that lives in the journal alone: reads come from the
// head, writes are recorded. It is what a promoted machine starts from; its caller
// opens the volume's interval. A full journal refuses its writes with ENOSPC.
func NewJournaled(v cbt.Volume, sink cbt.Sink) *Device {
	return &Device{o: Options{Volume: v, Sink: sink}, store: &lodging{head: headStore{sink, v}}, synced: true, wake: make(chan struct{}, 1), moved: make(chan struct{})}
}

// ReadAt reads the image, or the head.
func (d *Device) ReadAt(ctx context.Context, p []byte, off int64) error {
	return d.store.readAt(ctx, p, off)
}

// WriteAt records p, then writes the image; with fua it is durable on return.
func (d *Device) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	ev := cbt.Event{Kind: cbt.EventWrite, Extent: cbt.Extent{Offset: off, Length: int64(len(p))}, Data: p}
	return d.write(ctx, ev, fua)
}

// Zero makes e read as zeros. The image may hold it as a hole either way.
func (d *Device) Zero(ctx context.Context, e cbt.Extent, fua, _ bool) error {
	return d.write(ctx, cbt.Event{Kind: cbt.EventZero, Extent: e}, fua)
}

// Trim discards e, which reads as zeros from then on.
func (d *Device) Trim(ctx context.Context, e cbt.Extent, fua bool) error {
	return d.write(ctx, cbt.Event{Kind: cbt.EventTrim, Extent: e}, fua)
}

// Flush returns once all that was answered survives the loss of power.
func (d *Device) Flush(ctx context.Context) error {
	var err error
	if d.Protected() {
		err = d.o.Sink.WaitDurable(ctx)
	} else { // the image holds everything, the journal does not
		err = d.store.sync(ctx)
	}
	if err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}

// Status tells holes of the image; a disk in the journal alone is all data.
func (d *Device) Status(ctx context.Context, e cbt.Extent) ([]nbd.StatusExtent, error) {
	return d.store.status(ctx, e)
}

// write takes one request through journal and image.
func (d *Device) write(ctx context.Context, ev cbt.Event, fua bool) error {
	ev.Volume = d.o.Volume.ID
	if ev.Extent.Length == 0 {
		return nil
	}
	unlock, err := d.locks.lock(ctx, ev.Extent.Round())
	if err != nil {
		return err
	}
	evs, err := d.complete(ctx, ev)
	if err == nil {
		err = d.writeThrough(ctx, evs)
	}
	unlock()
	if err != nil {
		return fmt.Errorf("write volume %s: %w", d.o.Volume.Name, err)
	}
	if fua {
		return d.Flush(ctx)
	}
	return nil
}

// complete turns a request that is not made of whole sectors into ones that are.
// The extent is locked, so what is read around it stays.
func (d *Device) complete(ctx context.Context, ev cbt.Event) ([]cbt.Event, error) {
	if ev.Extent.Aligned() {
		return []cbt.Event{ev}, nil
	}
	if ev.Data != nil {
		return d.patch(ctx, ev.Extent, ev.Data)
	}
	// Whole sectors stay a zero or trim; the ragged ends are written.
	first := (ev.Extent.Offset + cbt.SectorBytes - 1) &^ (cbt.SectorBytes - 1)
	last := ev.Extent.End() &^ (cbt.SectorBytes - 1)
	if first >= last {
		return d.patch(ctx, ev.Extent, make([]byte, ev.Extent.Length))
	}
	var out []cbt.Event
	if n := first - ev.Extent.Offset; n > 0 {
		head, err := d.patch(ctx, cbt.Extent{Offset: ev.Extent.Offset, Length: n}, make([]byte, n))
		if err != nil {
			return nil, err
		}
		out = append(out, head...)
	}
	mid := ev
	mid.Extent = cbt.Extent{Offset: first, Length: last - first}
	out = append(out, mid)
	if n := ev.Extent.End() - last; n > 0 {
		tail, err := d.patch(ctx, cbt.Extent{Offset: last, Length: n}, make([]byte, n))
		if err != nil {
			return nil, err
		}
		out = append(out, tail...)
	}
	return out, nil
}

// patch is data at e as a write of whole sectors.
func (d *Device) patch(ctx context.Context, e cbt.Extent, data []byte) ([]cbt.Event, error) {
	whole := e.Round()
	buf := make([]byte, whole.Length)
	if err := d.store.readAt(ctx, buf, whole.Offset); err != nil {
		return nil, err
	}
	copy(buf[e.Offset-whole.Offset:], data)
	return []cbt.Event{{Kind: cbt.EventWrite, Volume: d.o.Volume.ID, Extent: whole, Data: buf}}, nil
}

// writeThrough records evs and applies them to the image. When the journal has no
// room, a volume with an image goes on without it.
func (d *Device) writeThrough(ctx context.Context, evs []cbt.Event) error {
	d.gate.RLock()
	defer d.gate.RUnlock()
	for _, ev := range evs {
		d.mu.Lock()
		skip := d.unprotected
		d.mu.Unlock()
		if !skip {
			err := d.record(ctx, ev)
			if errors.Is(err, cbt.ErrDiskFull) {
				if !d.store.standsAlone() {
					return fmt.Errorf("%w: %w", nbd.ENOSPC, err)
				}
				d.o.Log.Error("journal is full; the volume goes on unprotected", "volume", d.o.Volume.Name, "err", err)
				err = d.setUnprotected()
			}
			if err != nil {
				return err
			}
		}
		if err := applyTo(d.store, ev); err != nil {
			d.mu.Lock()
			d.torn = err
			d.mu.Unlock()
			return err
		}
	}
	return nil
}

// differing is the cells of have that differ from want, neighbours joined.
func differing(have, want []byte) []cbt.Extent {
	var out []cbt.Extent
	for at := 0; at < len(have); at += cbt.CellBytes {
		end := min(at+cbt.CellBytes, len(have))
		if bytes.Equal(have[at:end], want[at:end]) {
			continue
		}
		out = append(out, cbt.Extent{Offset: int64(at), Length: int64(end - at)})
	}
	return cbt.Union(out)
}

var zeroCell [cbt.CellBytes]byte

func isZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeroCell))
		if !bytes.Equal(p[:n], zeroCell[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}
