package replicator

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/novacron/afterimage/journal"
)

// unsentBytes of a flow wait for a lane at most, so that what a replica cannot take
// yet stays in the journal.
const unsentBytes = 1 << 20

// flow is what one opening carries, on its way: a writer whose bytes are kept until the
// replica has read them, so that what a lane loses goes over another one. All fields
// are guarded by lanes.mu.
type flow struct {
	lanes  *lanes
	open   uint64
	group  journal.Identity
	weight float64
	window int64 // bytes beyond taken that the replica has room for

	made    int64    // bytes that Write took
	taken   int64    // bytes that the replica has read
	moved   int64    // bytes that lanes took, for figures
	come    int64    // bytes that have come; comeUnknown: the replica does not tell
	under   int64    // bytes of flight that are not known to have come
	tail    *piece   // that grows; nil: none
	due     bool     // tail may go as it is
	unsent  []*piece // whole ones, by position
	flight  []*piece // given to lanes and not taken yet, by position
	again   []*piece // of those, what is late and to be sent once more
	virtual float64  // bytes sent by weight: who has the least goes first
	err     error
}

// Write takes bytes for the replica; it waits while it has no room, or lanes none. It
// fails when that lasts for patience.
func (f *flow) Write(p []byte) (int, error) {
	l := f.lanes
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for n < len(p) {
		if err := f.waitLocked(); err != nil {
			return n, err
		}
		size := l.pieceBytesLocked(f)
		if f.tail == nil {
			f.tail, f.due = newPiece(f.made, min(int(size), max(len(p)-n, 8<<10))), false
		}
		room := min(int64(len(p)-n), f.roomLocked(), max(size-f.tail.bytes(), 1))
		f.tail.buf = append(f.tail.buf, p[n:n+int(room)]...)
		n, f.made = n+int(room), f.made+room
		if f.tail.bytes() >= size {
			f.unsent, f.tail = append(f.unsent, f.tail), nil
			l.work.Signal()
		}
	}
	return n, nil
}

// push lets go what has been written.
func (f *flow) push() {
	f.lanes.mu.Lock()
	defer f.lanes.mu.Unlock()
	if f.tail != nil && !f.due {
		f.due = true
		f.lanes.work.Signal()
	}
}

func (f *flow) roomLocked() int64 {
	unsent := int64(0)
	for _, p := range f.unsent {
		unsent += p.bytes()
	}
	if len(f.flight)+len(f.unsent) >= maxPieces {
		return 0
	}
	return min(f.window-(f.made-f.taken), unsentBytes-unsent)
}

// waitLocked waits for room. What waits for the window goes, however little it is.
func (f *flow) waitLocked() error {
	l := f.lanes
	if f.err != nil || f.roomLocked() > 0 {
		return f.err
	}
	f.due = f.tail != nil
	before, since := f.taken+f.moved, l.now()
	for f.err == nil && f.roomLocked() <= 0 {
		if now := f.taken + f.moved; now != before {
			before, since = now, l.now()
		}
		left := l.patience - l.now().Sub(since)
		if left <= 0 {
			return fmt.Errorf("send frames: the peer took nothing for %v: %w", l.patience, ErrStalled)
		}
		timer := time.AfterFunc(left, l.look)
		l.work.Signal()
		l.room.Wait()
		timer.Stop()
	}
	return f.err
}

// moves counts what was sent and what was taken, and says whether that is all there is.
func (f *flow) moves() (n int64, all bool) {
	f.lanes.mu.Lock()
	defer f.lanes.mu.Unlock()
	return f.taken + f.moved, f.taken == f.made
}

// heard takes in what the replica says of what it has.
func (f *flow) heard(t *taken) error {
	l := f.lanes
	l.mu.Lock()
	defer l.mu.Unlock()
	sent := f.made
	if f.tail != nil {
		sent = f.tail.position
	}
	if t.position > sent {
		return fmt.Errorf("handle progress: read up to %d of %d: %w", t.position, sent, ErrProtocol)
	}
	if t.come > f.come || t.come == comeUnknown {
		f.come = t.come
	}
	defer f.freedLocked(f.under)
	f.missedLocked(t)
	if t.position <= f.taken {
		return nil
	}
	f.taken = t.position
	read := func(p *piece) bool {
		if p.end() > t.position {
			return false
		}
		if p.writers == 0 {
			giveBuffer(p.buf)
		}
		return true
	}
	f.again = slices.DeleteFunc(f.again, func(p *piece) bool { return p.end() <= t.position })
	f.flight = slices.DeleteFunc(f.flight, read)
	f.unsent = slices.DeleteFunc(f.unsent, read) // it was to be sent again
	l.room.Broadcast()
	return nil
}

// end drops what is left.
func (f *flow) end(err error) {
	l := f.lanes
	l.mu.Lock()
	defer l.mu.Unlock()
	f.stopLocked(err)
	l.read += f.broughtLocked()
	l.flows = slices.DeleteFunc(l.flows, func(x *flow) bool { return x == f })
}

func (f *flow) stopLocked(err error) {
	if f.err == nil {
		f.err = err
	}
	f.unsent, f.flight, f.again, f.tail = nil, nil, nil, nil
	f.lanes.wakeAllLocked()
}

// underWayLocked is what lanes took and is not known to have come.
func (f *flow) underWayLocked() int64 {
	if f.come == comeUnknown {
		return 0
	}
	return f.under
}

// freedLocked wakes lanes for what is no longer under way.
func (f *flow) freedLocked(before int64) {
	l := f.lanes
	f.countLocked()
	if room := before - f.under; room > 0 {
		for range min(room/minPieceBytes+1, int64(len(l.live))) {
			l.work.Signal()
		}
	}
}

// countLocked finds out what is under way.
func (f *flow) countLocked() {
	f.under = 0
	for _, p := range f.flight {
		if !p.here {
			f.under += p.bytes()
		}
	}
}

// broughtLocked is what has come, as far as is known.
func (f *flow) broughtLocked() uint64 { return uint64(max(f.taken, f.come)) }

func (f *flow) readyLocked() bool { return len(f.unsent) > 0 || f.tail != nil && f.due }

// nextLocked gives the piece to send next, nil when there is none.
func (f *flow) nextLocked(to *lane) *piece {
	var p *piece
	switch {
	case len(f.unsent) > 0:
		p = f.unsent[0]
		f.unsent = f.unsent[1:]
	case f.tail != nil && f.due:
		p, f.tail, f.due = f.tail, nil, false
	default:
		return nil
	}
	p.lane = to
	if !p.sealed {
		pieceHeader{open: f.open, group: f.group, position: p.position, bytes: int(p.bytes())}.put(p.buf)
		p.sealed = true
	}
	at, _ := slices.BinarySearchFunc(f.flight, p.position, func(q *piece, position int64) int { return int(q.position - position) })
	f.flight = slices.Insert(f.flight, at, p)
	f.under += p.bytes()
	f.sentLocked(p)
	return p
}

func (f *flow) sentLocked(p *piece) {
	f.moved += p.bytes()
	p.sentAt = f.lanes.now()
	f.virtual += float64(p.bytes()) / f.weight
}

// lateLocked gives the oldest piece of a flow that can go no further for want of it: it
// is sent once more over a lane that has nothing else to do.
func (f *flow) lateLocked(to *lane) *piece {
	if len(f.flight) == 0 || f.window-(f.made-f.taken) > f.window/4 {
		return nil
	}
	p := f.flight[0]
	if p.twice || p.lane == to || p.lane == nil {
		return nil
	}
	p.twice, p.lane = true, to
	f.sentLocked(p)
	return p
}

// lostLocked puts back what a lane took and the replica is not known to have.
func (f *flow) lostLocked(by *lane) {
	var back []*piece
	f.flight = slices.DeleteFunc(f.flight, func(p *piece) bool {
		if p.lane != by {
			return false
		}
		p.lane, p.twice, p.queued, p.here = nil, false, false, false
		back = append(back, p)
		return true
	})
	f.again = slices.DeleteFunc(f.again, func(p *piece) bool { return !p.queued })
	f.countLocked()
	f.unsent = append(back, f.unsent...)
	slices.SortFunc(f.unsent, func(a, b *piece) int { return int(a.position - b.position) })
}

// stopWith ends f when ctx does.
func (f *flow) stopWith(ctx context.Context) func() bool {
	return context.AfterFunc(ctx, func() {
		f.lanes.mu.Lock()
		defer f.lanes.mu.Unlock()
		f.stopLocked(context.Cause(ctx))
	})
}
