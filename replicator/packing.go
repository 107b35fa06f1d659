package replicator

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"

	"github.com/novacron/afterimage/journal"
)

// packing sends the frames of one opening, as they lie in the journal or in parts: what
// the replica takes, what pays, and what is not sealed decides for each. One goroutine
// uses it.
type packing struct {
	s       *sender
	o       *opening
	economy economy
	packer  *framePacker // nil until the first frame is packed
	table   tableName    // that was begun for this opening
	sent    journal.Seq  // of the last frame, or held by the replica at the start
	buf     []byte
	whole   []byte // of a frame, as it lies
	bundle  bundle
}

func (s *sender) newPacking(o *opening, from journal.Seq) *packing {
	return &packing{s: s, o: o, economy: economy{mode: cmp.Or(s.peer.Packing, s.r.o.Packing)}, sent: from, buf: make([]byte, chunkBytes)}
}

// next is the next frame, and how long nothing was to be done counts.
func (k *packing) next(ctx context.Context, frames Frames) (journal.Frame, error) {
	began := k.s.r.o.Now()
	f, err := frames.Next(ctx)
	k.economy.waited(k.s.r.o.Now().Sub(began))
	return f, err
}

// forms is what the next frame may be packed into; 0: it goes as it lies.
func (k *packing) forms(f journal.Frame) uint32 {
	t := k.o.takes.Load()
	if t == nil || k.s.theirs&featurePacked == 0 || f.Sealed || !k.economy.pays() {
		return 0
	}
	forms := t.forms & (takesLZ4 | takesHeld | takesBundles)
	if !k.economy.looks() {
		forms &^= takesHeld
	}
	if of := (tableName{k.s.instance, t.table}); k.table != of {
		k.o.group.sent.begin(of, k.sent)
		k.table = of
	}
	return forms
}

// send writes a frame with its header, or has it wait for those that follow: more says
// that one does at once, and is sent next.
func (k *packing) send(ctx context.Context, data io.Writer, f journal.Frame, more bool) error {
	forms := k.forms(f)
	h := frameHeader{bytes: f.Bytes, first: f.First.Seq, last: f.Last.Seq, epoch: f.Last.Epoch, chain: f.Chain, packed: forms != 0}
	var err error
	if k.bundles(forms, f.Bytes, more) {
		if err = k.add(ctx, data, h, f.Reader, forms); err == nil && !more {
			err = k.flush(ctx, data)
		}
	} else if err = k.flush(ctx, data); err == nil {
		if err = k.sendAlone(ctx, data, h, f.Reader, forms); err == nil {
			k.o.group.progress.frame(f.Bytes)
		}
	}
	if err == nil {
		k.sent = f.Last.Seq
	}
	return err
}

// sendAlone writes a frame that is in no bundle.
func (k *packing) sendAlone(ctx context.Context, data io.Writer, f frameHeader, r io.Reader, forms uint32) error {
	if _, err := data.Write(f.encode()); err != nil {
		return fmt.Errorf("write data stream: %w", err)
	}
	g := k.o.group
	if forms == 0 {
		began := k.s.r.o.Now()
		err := k.s.limits(g).copyN(ctx, data, r, f.bytes, k.buf, g.progress.carried)
		k.economy.wrote(f.bytes, k.s.r.o.Now().Sub(began))
		return err
	}
	return k.pack(f, r, forms, func(wire []byte) error { return k.write(ctx, data, wire) })
}

// write writes what was packed, within the limits.
func (k *packing) write(ctx context.Context, data io.Writer, wire []byte) error {
	g, began := k.o.group, k.s.r.o.Now()
	err := k.s.limits(g).copyN(ctx, data, bytes.NewReader(wire), int64(len(wire)), k.buf, g.progress.carried)
	k.economy.wrote(int64(len(wire)), k.s.r.o.Now().Sub(began))
	return err
}

// pack hands the parts of a frame on.
func (k *packing) pack(f frameHeader, r io.Reader, forms uint32, each func(wire []byte) error) error {
	if k.packer == nil {
		k.packer, k.whole = newFramePacker(&k.o.group.sent), make([]byte, maxPartBytes)
	}
	k.packer.begin(forms)
	// Also where the connection ends: the replica may have got all of it by then.
	defer k.packer.end(f.last)
	for at, n := int64(0), int64(0); at < f.bytes; at += n {
		n = min(int64(len(k.whole)), f.bytes-at)
		if at == 0 { // header and records shrink, whatever the payloads behind them are
			n = min(n, blockBytes)
		}
		chunk := k.whole[:n]
		if _, err := io.ReadFull(r, chunk); err != nil {
			return &readError{err}
		}
		began := k.s.r.o.Now()
		wire := k.packer.chunk(chunk, at)
		k.economy.packed(k.s.r.o.Now().Sub(began))
		if err := each(wire); err != nil {
			return err
		}
	}
	return nil
}

// arrival reads the bytes of one frame, whatever they came as, and remembers how that
// failed.
type arrival struct {
	r    io.Reader
	left int64
	err  error
	news []arrived // blocks to be remembered once the frame is appended
}

type arrived struct {
	hash blockHash
	at   int64
}

func (a *arrival) Read(b []byte) (int, error) {
	if a.left == 0 {
		return 0, io.EOF
	}
	n, err := a.r.Read(b[:min(int64(len(b)), a.left)])
	a.left -= int64(n)
	if err == io.EOF && a.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && a.left > 0 {
		a.err = err
		return n, err
	}
	return n, nil
}

// carrier counts what comes over the wire; of bundles that is counted as they come.
type carrier struct {
	r *unbundler
	p *progress
}

func (c carrier) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	if !c.r.inside {
		c.p.carried(n)
	}
	return n, err
}

// arrivalOf is the frame of a header, off data.
func (in *inbound) arrivalOf(ctx context.Context, replica Replica, h frameHeader, data *unbundler) *arrival {
	wire := carrier{data, in.progressNow()}
	a := &arrival{r: wire, left: h.bytes}
	if !h.packed {
		return a
	}
	u := newUnpacker(wire, h.bytes)
	a.r = u
	if from, ok := replica.(BlockReplica); ok {
		u.seen = func(hash blockHash, at int64) { a.news = append(a.news, arrived{hash, at}) }
		u.held = func(hash blockHash, block []byte) error { return in.blocks.fill(from, hash, block, &in.r.faults) }
	}
	u.whole = func() ([]byte, error) { return in.whole(ctx, replica, h) }
	return a
}

// keep remembers the blocks of a frame that was appended.
func (in *inbound) keep(replica Replica, a *arrival) {
	from, ok := replica.(BlockReplica)
	if !ok || len(a.news) == 0 {
		return
	}
	place := from.NewestFrame()
	for _, n := range a.news {
		in.blocks.note(n.hash, place, uint32(n.at))
	}
}

// whole asks the source for a frame in full, and tells it that what it took for held is
// not.
func (in *inbound) whole(ctx context.Context, replica Replica, h frameHeader) ([]byte, error) {
	in.blocks.forget(in.r.missed())
	in.tellTakes(replica)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(in.asking, cancel)()
	at := journal.Position{Epoch: h.epoch, Seq: h.last}
	if in.link.theirs&featureFetch == 0 {
		return nil, fmt.Errorf("follow reference in frame %d..%d: %w", h.first, h.last, errNotHeld)
	}
	in.r.o.Log.Info("reference not held, frame is asked for in full", "group", in.tenant+"/"+in.group, "peer", in.peer.Name, "record", at.String())
	b, err := in.ask(ctx, question{most: h.bytes, group: in.id, at: at})
	if err != nil {
		return nil, fmt.Errorf("ask for frame %d..%d in full: %w", h.first, h.last, err)
	}
	return b, nil
}

// tellTakes tells the source which packed frames this replica takes.
func (in *inbound) tellTakes(replica Replica) {
	if in.link.theirs&featurePacked == 0 || in.r.faults.noPacking {
		return
	}
	t := &takes{forms: takesLZ4 | takesBundles, table: in.blocks.number}
	if _, ok := replica.(BlockReplica); ok {
		t.forms |= takesHeld
	}
	in.send(in.number, in.id, t)
}

// missed counts a reference that was not held, and gives the number of the table that
// is begun.
func (r *Replicator) missed() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.misses++
	return r.newTableLocked()
}

// newTableLocked is a number that no table of this process's life has.
func (r *Replicator) newTableLocked() uint64 {
	r.tables++
	return r.tables
}

// heldBy is the table of the blocks that came with a peer's group. The session that
// claimed the group uses it.
func (r *Replicator) heldBy(in *inbound) *heldBlocks {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := inKey{in.peer.Name, in.id}
	if r.held[k] == nil {
		r.held[k] = &heldBlocks{number: r.newTableLocked()}
	}
	return r.held[k]
}
