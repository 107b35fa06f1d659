package qemu

import (
	"context"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
)

// A guest's write that meets nothing in its way, which is nearly every one, costs no
// goroutine and no waiting: whoever reads the socket gives it its place (Begin), makes it
// safe together with those that came with it (Settle), and answers. All else goes the
// way of WriteAt: what is not made of sectors, comes before the head knows the disk, or
// would have to wait for another change, the gate, or room in the sink.
//
// Settle may be held up by the storage, and with it the socket's reader. The stall budget
// holds all the same: letting go ends live, and nbd then has another goroutine read on.

var _ nbd.Prompt = (*tap)(nil)

// begun is a write that has its place.
type begun struct {
	t       *tap
	op      uint64
	span    *span
	pending cbt.Pending
}

// Begin implements nbd.Prompt.
func (t *tap) Begin(p []byte, off int64) (nbd.Begun, bool) {
	e := cbt.Extent{Offset: off, Length: int64(len(p))}
	if t.prompt == nil || !e.Aligned() || !t.known() || !t.gate.isOpen() {
		return nil, false
	}
	op, admitted := t.begin()
	if !admitted {
		return nil, false
	}
	s := t.seq.enterNow(e)
	if s == nil {
		t.give(op) // it comes again, as WriteAt
		return nil, false
	}
	var pending cbt.Pending
	recorded := false
	t.mask.Wrote(e, func() {
		pending, recorded = t.prompt.RecordNow(cbt.Event{Kind: cbt.EventWrite, Volume: t.volume.ID, Extent: e, Data: p})
	})
	if !recorded {
		t.seq.leave(s)
		t.give(op) // it comes again, as WriteAt
		return nil, false
	}
	t.journaled.Add(e.Length)
	t.seq.place(s)
	return &begun{t, op, s, pending}, true
}

// known reports that the head knows every sector, and nothing is compared any more.
func (t *tap) known() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.complete && t.comparing == nil
}

// Settle implements nbd.Prompt. Once the tap has let go nobody is held up for it.
func (t *tap) Settle() {
	if t.live.Err() != nil {
		go t.prompt.Commit()
		return
	}
	t.prompt.Commit()
}

// LetGo implements nbd.Prompt.
func (t *tap) LetGo(f func()) (stop func() bool) { return context.AfterFunc(t.live, f) }

// Wait returns once the write is safe, or the tap has let go.
func (b *begun) Wait() error {
	err := b.pending.Wait(b.t.live)
	b.t.seq.leave(b.span)
	b.t.finish(b.op)
	return b.t.answer(err)
}
