package mode

import (
	"fmt"
	"maps"
	"slices"

	"github.com/novacron/afterimage/cbt"
)

const blocks = 6

// truth is one disk of a machine, the journal of its writes, and everything between
// them that can fail, with no code of the rules in it.
type truth struct {
	disk    [blocks]int // the version of each block
	head    [blocks]int // what the journal knows
	size    int64
	node    string
	bitmaps map[string]*bits // inside the machine
	clock   int

	tapped bool // a mirror runs and the tap takes what it sends

	memory Remembered
	known  bool

	open  bool // by the journal's records alone
	moved bool // a write went unseen since the interval opened
	gaps  []cbt.Cause
	marks int
}

// bits is one bitmap.
type bits struct {
	dirty        [blocks]bool
	inconsistent bool
	recording    bool
	frozen       *[blocks]bool // while an instant is held: what it covers; dirty is its successor
}

func newTruth() *truth {
	return &truth{size: blocks, node: "disk", bitmaps: map[string]*bits{}}
}

// write is the guest's: the disk first, then the bitmaps, then the tap if there is one.
func (w *truth) write(block int) {
	w.clock++
	w.disk[block] = w.clock
	for _, b := range w.bitmaps {
		if b.recording {
			b.dirty[block] = true
		}
	}
	if w.tapped {
		w.head[block] = w.disk[block]
		return
	}
	if w.open {
		w.moved = true
	}
}

// look is what a driver tells Judge.
func (w *truth) look() Disk {
	d := Disk{Node: w.node, Size: w.size}
	for _, name := range slices.Sorted(maps.Keys(w.bitmaps)) {
		b := w.bitmaps[name]
		d.Bitmaps = append(d.Bitmaps, Bitmap{Name: name, Granularity: 1, Recording: b.recording && !b.inconsistent, Inconsistent: b.inconsistent, Busy: b.frozen != nil})
	}
	return d
}

// union is what bitmaps name: what an inconsistent one shows is nothing, as in QEMU.
func (w *truth) union(names []string) (out [blocks]bool) {
	for _, n := range names {
		b := w.bitmaps[n]
		if b == nil || b.inconsistent {
			continue
		}
		for i := range out {
			out[i] = out[i] || b.dirty[i]
		}
	}
	return out
}

// crash ends the machine without notice; persistent bitmaps come back inconsistent.
func (w *truth) crash(persistent bool) {
	w.tapped = false
	for n, b := range w.bitmaps {
		b.frozen = nil
		if !persistent {
			delete(w.bitmaps, n)
			continue
		}
		*b = bits{inconsistent: true}
	}
}

// thawBits ends a held instant: what was not recorded durably counts as dirty again.
func (w *truth) thawBits(done bool) {
	for _, b := range w.bitmaps {
		if b.frozen == nil {
			continue
		}
		if !done {
			for i, was := range *b.frozen {
				b.dirty[i] = b.dirty[i] || was
			}
		}
		b.frozen = nil
	}
}

// check holds the journal to the promise: while an interval is open, its newest
// record is what the disk holds, or held at the instant that the cycle is of.
func (w *truth) check(instant *[blocks]int) error {
	if !w.open {
		return nil
	}
	want := &w.disk
	if instant != nil {
		want = instant
	}
	if w.head != *want {
		return fmt.Errorf("a point shows %v, the disk held %v", w.head, *want)
	}
	if w.moved && instant == nil {
		return fmt.Errorf("an interval went on although a write was not seen")
	}
	return nil
}
