package qemu

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/novacron/afterimage/cbt"
)

// zeroedAtOnce is the longest stretch of zeros that is compared with the head
// while writes to it wait.
const zeroedAtOnce = 16 << 20

// wholeCopy is why an attachment by a copy reads everything.
const wholeCopy = "a copy begins with the whole disk"

// comparison drops, from what arrives while a copy sends the disk whole, the
// cells that the head has already.
//
// Zeros are only noted, and settled at the end: a copy whose destination can
// unmap zeroes all of it before it sends what the disk holds (QEMU,
// mirror_dirty_init), and recorded at once that would make everything differ.
// Until then the volume is not synced, so the head owes nobody those zeros; what
// reads it for the tap's own needs blanks it.
type comparison struct {
	show func(cbt.Resync) // with mu held

	mu    sync.Mutex // guards what follows
	cost  cbt.Resync
	zeros []cbt.Extent // whole sectors that the head may not know to be zero
	over  bool         // no zeros are noted any more
}

// compareWith makes the tap compare what arrives with the head; nothing of the
// volume's edges will have to be read again, for the copy sends all of it.
func (t *tap) compareWith(size int64, show func(cbt.Resync)) {
	c := &comparison{show: show}
	t.mu.Lock()
	t.comparing, t.complete = c, true
	t.mu.Unlock()
	c.account(func(r *cbt.Resync) {
		*r = cbt.Resync{Full: true, Why: wholeCopy, BytesToRead: size, Began: time.Now()}
	})
}

// endComparing settles the zeros and makes the tap record every write. A request
// that began before is still compared: what it leaves out is what the head holds.
func (t *tap) endComparing(ctx context.Context) error {
	c := t.comparison()
	for !c.end() {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := t.settleZeros(c); err != nil {
			return t.journalBreak(err)
		}
	}
	t.mu.Lock()
	t.comparing = nil
	t.mu.Unlock()
	c.account(func(r *cbt.Resync) { r.Ended = time.Now() })
	return nil
}

// settleZeros records the first of the noted zeros where the head has others.
func (t *tap) settleZeros(c *comparison) error {
	e := c.first()
	s, err := t.seq.enter(t.live, e, true)
	if err != nil {
		return err
	}
	defer t.seq.leave(s)
	var pending []cbt.Pending
	for _, part := range c.take(e) {
		diffs, err := t.differs(cbt.Event{Extent: part})
		if err != nil {
			return err
		}
		if err := t.gate.pass(t.live); err != nil {
			return err
		}
		for _, x := range diffs {
			p, err := t.sink.Record(t.live, cbt.Event{Kind: cbt.EventZero, Volume: t.volume.ID, Extent: x})
			if err != nil {
				return err
			}
			pending = append(pending, p)
		}
	}
	return wait(t.live, pending)
}

func (t *tap) comparison() *comparison {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.comparing
}

func (c *comparison) account(change func(*cbt.Resync)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.cost)
	c.show(c.cost)
}

// end reports whether there is nothing to settle; then zeros are noted no more.
func (c *comparison) end() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = len(c.zeros) == 0
	return c.over
}

// first is where to begin to settle.
func (c *comparison) first() cbt.Extent {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.zeros[0]
	e.Length = min(e.Length, zeroedAtOnce)
	return e
}

// take is what of e is noted, and is not any more.
func (c *comparison) take(e cbt.Extent) []cbt.Extent {
	c.mu.Lock()
	defer c.mu.Unlock()
	parts := overlap(e, c.zeros)
	c.forget(e)
	return parts
}

// forget drops e from the noted zeros; c.mu is held.
func (c *comparison) forget(e cbt.Extent) {
	var left []cbt.Extent
	for _, z := range c.zeros {
		left = append(left, cbt.Subtract(z, []cbt.Extent{e})...)
	}
	c.zeros = left
}

// note adds zeros, unless it is too late for that.
func (c *comparison) note(e cbt.Extent) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.over {
		c.zeros = cbt.Union(append(c.zeros, e))
	}
	return !c.over
}

// blank clears what of p, the head's content from off on, is noted as zeros.
func (c *comparison) blank(off int64, p []byte) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, z := range overlap(cbt.Extent{Offset: off, Length: int64(len(p))}, c.zeros) {
		clear(p[z.Offset-off:][:z.Length])
	}
}

// reduce is what of evs has to be recorded now: data that differs from the head,
// which must hold all that came before at their extents. A nil comparison leaves
// everything.
func (c *comparison) reduce(t *tap, evs []cbt.Event) ([]cbt.Event, error) {
	if c == nil {
		return evs, nil
	}
	var out []cbt.Event
	var read, journaled int64
	for _, ev := range evs {
		if ev.Data == nil {
			if !c.note(ev.Extent) {
				out = append(out, ev)
			}
			continue
		}
		read += int64(len(ev.Data))
		diffs, err := t.differs(ev)
		if err != nil {
			return nil, err
		}
		c.take(ev.Extent)
		for _, x := range diffs {
			part := ev
			part.Extent, part.Kind = x, cbt.EventFill
			part.Data = ev.Data[x.Offset-ev.Extent.Offset:][:x.Length:x.Length]
			out = append(out, part)
			journaled += int64(len(part.Data))
		}
	}
	c.account(func(r *cbt.Resync) {
		r.BytesRead += read
		r.BytesJournaled += journaled
	})
	return out, nil
}

// differs is where ev would change the head.
func (t *tap) differs(ev cbt.Event) ([]cbt.Extent, error) {
	var out []cbt.Extent
	head := make([]byte, min(ev.Extent.Length, fillBytes))
	var zeros []byte
	if ev.Data == nil {
		zeros = make([]byte, len(head))
	}
	for at := ev.Extent.Offset; at < ev.Extent.End(); {
		n := min(ev.Extent.End()-at, fillBytes)
		if err := t.sink.ReadHead(t.live, t.volume.ID, at, head[:n]); err != nil {
			return nil, fmt.Errorf("read head: %w", err)
		}
		now := zeros
		if ev.Data != nil {
			now = ev.Data[at-ev.Extent.Offset:]
		}
		out = append(out, differing(at, now[:n], head[:n])...)
		at += n
	}
	return cbt.Union(out), nil
}
