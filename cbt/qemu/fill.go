package qemu

import (
	"bytes"
	"context"
	"fmt"

	"github.com/novacron/afterimage/cbt"
)

// fill looks at one piece of the live disk and records where it differs from
// the head. The head's answer holds although writes go on: what was recorded
// before the tap is durable, and each later write to the piece either had
// reached the disk before it was read, or masks the fill.
func (r *resync) fill(ctx context.Context, p stretch) error {
	t := r.a.tap
	f := t.mask.Begin(p.Extent)
	done := false
	defer func() {
		if !done {
			t.mask.Cancel(f)
		}
	}()
	zero, err := r.readsZero(ctx, p)
	if err != nil {
		return err
	}
	if p.hole && !zero { // written since it was looked at
		t.mask.Cancel(f)
		done = true
		for _, q := range pieces([]stretch{{Extent: p.Extent}}, p.End()) {
			if err := r.fill(ctx, q); err != nil {
				return err
			}
		}
		return nil
	}
	var live []byte // nil: zeros
	if !zero {
		if err := r.limit.WaitN(ctx, int(p.Length)); err != nil {
			return err
		}
		live = make([]byte, p.Length)
		if err := r.read(ctx, live, p.Offset); err != nil {
			return fmt.Errorf("read live disk at %v: %w", p.Extent, err)
		}
		r.count(p.Length)
		if h := r.a.disk.opts.faults.afterRead; h != nil {
			h(p.Extent)
		}
	}
	diffs, err := r.compare(ctx, p.Extent, live)
	if err != nil {
		return err
	}
	pending, err := r.record(f, p.Extent, live, diffs)
	done = true
	if err != nil {
		return t.journalBreak(err)
	}
	if err := wait(ctx, pending); err != nil {
		return t.journalBreak(err)
	}
	return nil
}

// read is from the live disk, or from a held instant of it.
func (r *resync) read(ctx context.Context, p []byte, off int64) error {
	if r.held != nil && !r.fromLive {
		_, err := r.held.ReadAt(p, off)
		return err
	}
	return r.live.ReadAt(ctx, p, off)
}

// readsZero asks whether all of p reads as zeros now.
func (r *resync) readsZero(ctx context.Context, p stretch) (bool, error) {
	if r.held != nil || (r.bitmap == "" && !p.hole) {
		return false, nil // it was data a moment ago, or is a file of ours: reading is cheaper than asking
	}
	parts, err := r.live.Status(ctx, p.Extent)
	if err != nil {
		return false, fmt.Errorf("read allocation: %w", err)
	}
	left := p.Length
	for _, s := range parts {
		if !s.Zero {
			return false, nil
		}
		left -= s.Length
	}
	return left <= 0, nil
}

// compare is where the head differs from live (nil: zeros) inside e.
func (r *resync) compare(ctx context.Context, e cbt.Extent, live []byte) ([]cbt.Extent, error) {
	var out []cbt.Extent
	head := make([]byte, min(e.Length, fillBytes))
	for at := e.Offset; at < e.End(); {
		n := min(e.End()-at, fillBytes)
		if err := r.a.tap.sink.ReadHead(ctx, r.a.tap.volume.ID, at, head[:n]); err != nil {
			return nil, r.a.tap.journalBreak(fmt.Errorf("read head: %w", err))
		}
		now := r.full[:n]
		if live != nil {
			now = live[at-e.Offset:][:n]
		}
		out = append(out, differing(at, now, head[:n])...)
		at += n
	}
	return cbt.Union(out), nil
}

// record gives what is left of the fill its place in the order.
func (r *resync) record(f *cbt.Fill, e cbt.Extent, live []byte, diffs []cbt.Extent) (pending []cbt.Pending, err error) {
	t := r.a.tap
	t.mask.Finish(f, func(left cbt.Extent) {
		for _, x := range overlap(left, diffs) {
			if err != nil {
				return
			}
			ev := cbt.Event{Kind: cbt.EventZero, Volume: t.volume.ID, Extent: x, At: r.at}
			if live != nil {
				data := live[x.Offset-e.Offset:][:x.Length:x.Length]
				if !bytes.Equal(data, r.zeros(len(data))) {
					ev.Kind, ev.Data = cbt.EventFill, data
				}
			}
			var p cbt.Pending
			if p, err = t.sink.Record(t.live, ev); err != nil {
				return
			}
			pending = append(pending, p)
			n := int64(len(ev.Data))
			r.account(func(c *cbt.Resync) { c.BytesJournaled += n })
			if h := r.a.disk.opts.Events.BytesJournaled; h != nil {
				h(t.volume.ID, n)
			}
		}
	})
	return pending, err
}

func (r *resync) zeros(n int) []byte { return r.full[:n] }

func (r *resync) count(n int64) {
	r.account(func(c *cbt.Resync) { c.BytesRead += n })
	if h := r.a.disk.opts.Events.BytesRead; h != nil {
		h(r.a.tap.volume.ID, n)
	}
}
