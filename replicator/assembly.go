package replicator

import (
	"fmt"
	"io"
	"slices"
	"sync"
)

const (
	tellBytes  = 512 << 10 // that are read, or came, before the source hears of it
	tellPieces = 8
)

// assembly puts the pieces of one opening in order again. It holds at most window
// bytes: the source may send so far beyond what has been read, and no further. Lanes
// therefore never wait for it, and one group's slow journal holds up no other group.
type assembly struct {
	window int64
	moved  func(taken) // told now and then how far reading is, and what came; must not block
	faults *faults

	mu      sync.Mutex // guards all below
	changed *sync.Cond
	next    int64            // position of what Read gives next
	part    []byte           // what is left of the piece that is being read
	whole   []byte           // that piece
	pieces  int              // read, or come, since moved was told
	order   []int64          // of waiting, while it is looked through
	waiting map[int64][]byte // by position, at or after next
	held    int64            // bytes of part and waiting
	come    int64            // bytes of all pieces, also of those that came again
	told    [2]int64         // what moved was told last
	begun   chan struct{}    // closed with the first piece
	last    error            // what Read ends with after what is there in order
	err     error
}

func newAssembly(window int64, f *faults, moved func(taken)) *assembly {
	a := &assembly{window: window, moved: moved, faults: f, waiting: map[int64][]byte{}, begun: make(chan struct{})}
	a.changed = sync.NewCond(&a.mu)
	return a
}

// wants says whether a piece is news, and errs when no correct source sends it. What it
// admits may be put; memory for it is taken after that alone.
func (a *assembly) wants(position int64, bytes int) (bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.wantsLocked(position, bytes)
}

func (a *assembly) wantsLocked(position int64, bytes int) (bool, error) {
	end, read := position+int64(bytes), a.next-int64(len(a.part))
	switch {
	case a.err != nil || a.last != nil:
		return false, nil // the opening has ended, and the source is about to hear
	case end > read+a.window:
		return false, fmt.Errorf("take piece: it ends at %d, the window at %d: %w", end, read+a.window, ErrProtocol)
	case position < a.next && end > a.next:
		return false, fmt.Errorf("take piece: %d..%d goes over the place of another at %d: %w", position, end, a.next, ErrProtocol)
	case position < a.next:
		return false, nil // sent again
	}
	if have, ok := a.waiting[position]; ok {
		if len(have) != bytes {
			return false, fmt.Errorf("take piece: %d bytes at %d, %d before: %w", bytes, position, len(have), ErrProtocol)
		}
		return false, nil
	}
	if len(a.waiting) >= maxPieces {
		return false, fmt.Errorf("take piece: more than %d wait: %w", maxPieces, ErrProtocol)
	}
	if a.held+int64(bytes) > a.window {
		return false, fmt.Errorf("take piece: more than %d bytes overlap: %w", a.window, ErrProtocol)
	}
	return true, nil
}

// put takes a piece, whose bytes are a's from now on.
func (a *assembly) put(position int64, b []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	news, err := a.wantsLocked(position, len(b)) // another lane may have brought it meanwhile
	if err != nil || !news {
		return err
	}
	a.waiting[position] = b
	a.held += int64(len(b))
	a.cameLocked(len(b))
	select {
	case <-a.begun:
	default:
		close(a.begun)
	}
	a.changed.Signal()
	return nil
}

// Read gives bytes in order; it waits for them.
func (a *assembly) Read(b []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.part) == 0 {
		if a.err != nil {
			return 0, a.err
		}
		if p, ok := a.takeLocked(); ok {
			a.part, a.whole = p, p
			a.next += int64(len(p))
			a.pieces++
			break
		}
		if a.last != nil {
			return 0, a.last
		}
		a.changed.Wait()
	}
	n := copy(b, a.part)
	a.part = a.part[n:]
	a.held -= int64(n)
	if len(a.part) == 0 {
		giveBuffer(a.whole)
		a.whole = nil
	}
	a.tellLocked()
	return n, nil
}

// passed counts a piece that came and was not wanted.
func (a *assembly) passed(bytes int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cameLocked(bytes)
}

func (a *assembly) cameLocked(bytes int) {
	a.come += int64(bytes)
	a.pieces++
	a.tellLocked()
}

// tell tells of what was read and came, however little it is: there may be no more.
func (a *assembly) tell() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pieces = tellPieces
	a.tellLocked()
}

// tellLocked tells of what was read and came, where that is much.
func (a *assembly) tellLocked() {
	read, step := a.next-int64(len(a.part)), min(a.window/8, tellBytes)
	if read-a.told[0] < step && a.come-a.told[1] < step && a.pieces < tellPieces {
		return
	}
	a.told, a.pieces = [2]int64{read, a.come}, 0
	a.moved(a.reportLocked(read))
}

// takeLocked gives the piece at next.
func (a *assembly) takeLocked() ([]byte, bool) {
	at := a.next
	if a.faults.anyOrder { // whatever is there
		for p := range a.waiting {
			at = p
		}
	}
	p, ok := a.waiting[at]
	delete(a.waiting, at)
	return p, ok
}

// stop ends reads; the first reason counts.
func (a *assembly) stop(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err == nil {
		a.err = err
		a.waiting, a.part, a.held = nil, nil, 0
	}
	a.changed.Broadcast()
}

// runOut ends reads once all has been read that is there in order: what has come need
// not come again. Nothing more is taken.
func (a *assembly) runOut(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.last == nil {
		a.last = err
	}
	a.changed.Broadcast()
}

var _ io.Reader = (*assembly)(nil)

// reportLocked is what the source hears.
func (a *assembly) reportLocked(read int64) taken {
	t := taken{position: read, come: a.come, known: a.next}
	a.order = a.order[:0]
	for p := range a.waiting {
		a.order = append(a.order, p)
	}
	slices.Sort(a.order)
	for _, p := range a.order {
		if p > t.known {
			if len(t.missing) == maxMissing {
				break
			}
			t.missing = append(t.missing, stretch{t.known, p})
		}
		t.known = max(t.known, p+int64(len(a.waiting[p])))
	}
	return t
}
