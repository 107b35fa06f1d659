package replicator

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"github.com/novacron/afterimage/journal"
)

// Where a replica lacks frames that the source has no more, or is so far behind that
// Options say so, an opening carries a delta (journal.Delta) in place of frames:
//
//	source                                      replica
//	DeltaSource.OpenDelta
//	  ──── control: Offer (after, to) ───────→  DeltaReplica.OpenLanding: folds what it has
//	  ←─── control: Place ───────────────────
//	Delta.Write ──────── lanes, blocks ─ ────→  Landing.Take: writes, verifies, installs
//	  ←─── control: Landed ──────────────────
//
// and the next opening goes on with frames. Nothing between after and to is ever a
// point there, and nothing counts as safe at the replica before it has landed: until
// then the lag is that of after. What is cut off is begun anew. The opening carries
// blocks and an end:
//
//	block:  | length u32, at most 1 MiB | CRC32C u32 over length and bytes | bytes |
//	end:    | 0 u32 | CRC32C u32 over length and total | total bytes of blocks u64 |

// DeltaSource is a Source that makes deltas.
type DeltaSource interface {
	Source
	OpenDelta(ctx context.Context, after journal.Position, newest bool) (Delta, error)
}

// Delta is one that can be made; *journal.Delta is one.
type Delta interface {
	To() journal.DeltaEnd
	Write(ctx context.Context, w io.Writer, at journal.DeltaPlace) error
	Close()
}

// DeltaReplica is a Replica that takes deltas.
type DeltaReplica interface {
	Replica
	OpenLanding(ctx context.Context, after journal.Position) (Landing, error)
}

// Landing is a replica that is ready for one; *journal.Landing is one.
type Landing interface {
	Place() journal.DeltaPlace
	Take(ctx context.Context, r io.Reader, to journal.DeltaEnd) (journal.Cursor, error)
	Close()
}

const (
	maxDeltaBlock   = 1 << 20
	deltaBlockBytes = 8
	deltaTotalBytes = 8
)

// OpenDelta is the journal's, if it makes deltas.
func (s journalSource[F, J]) OpenDelta(ctx context.Context, after journal.Position, newest bool) (Delta, error) {
	j, ok := any(s.j).(interface {
		OpenDelta(ctx context.Context, after journal.Position, newest bool) (*journal.Delta, error)
	})
	if !ok {
		return nil, ErrNoDelta
	}
	d, err := j.OpenDelta(ctx, after, newest)
	if err != nil {
		return nil, err
	}
	return d, nil
}

// landingAt is r, ready for a delta.
func landingAt(ctx context.Context, r Replica, after journal.Position) (Landing, error) {
	switch r := r.(type) {
	case DeltaReplica:
		return r.OpenLanding(ctx, after)
	case interface {
		OpenLanding(ctx context.Context, after journal.Position, refs []journal.Reference) (*journal.Landing, error)
	}:
		l, err := r.OpenLanding(ctx, after, nil)
		if err != nil {
			return nil, err
		}
		return l, nil
	}
	return nil, ErrNoDelta
}

// behindError ends the frames of an opening: the replica needs a delta first.
type behindError struct {
	newest bool  // up to the newest record, for it is far behind
	cause  error // why not frames
}

func (e *behindError) Error() string { return "frames do not reach back: " + e.cause.Error() }
func (e *behindError) Unwrap() error { return e.cause }

// takesDeltas reports that both ends can do with deltas.
func (s *sender) takesDeltas(g *outgroup) bool {
	_, ok := g.Source.(DeltaSource)
	return ok && s.theirs&featureDelta != 0
}

// delta brings the replica from a record on by a delta. It ends with errReopen when
// that has landed.
func (s *sender) delta(ctx context.Context, o *opening, after journal.Position, newest bool, data *flow) error {
	g := o.group
	d, err := g.Source.(DeltaSource).OpenDelta(ctx, after, newest)
	if err != nil {
		return &readError{err}
	}
	defer d.Close()
	to := d.To()
	g.progress.catchUp(to.Position)
	s.r.o.Log.Info("delta begins", "group", g.Tenant+"/"+g.Name, "peer", s.peer.Name, "after", after.String(), "to", to.Position.String())
	id := g.Source.Identity()
	s.send(o.number, id, &offer{after: after, to: to.Cursor, time: to.Time})
	m, err := s.await(ctx, o, data)
	if err != nil {
		return err
	}
	at, ok := m.(*landingPlace)
	if !ok {
		return fmt.Errorf("offer delta: answered with message %d: %w", m.kind(), ErrProtocol)
	}
	if err := s.writeDelta(ctx, o, d, data, journal.DeltaPlace{After: after, Run: at.run, Epochs: int(at.epochs)}); err != nil {
		return err
	}
	if m, err = s.await(ctx, o, data); err != nil {
		return err
	}
	if l, ok := m.(*landedDelta); !ok || l.at != to.Cursor {
		return fmt.Errorf("send delta to %s: not what was answered: %w", to.Position, ErrProtocol)
	}
	s.r.o.Log.Info("delta landed", "group", g.Tenant+"/"+g.Name, "peer", s.peer.Name, "to", to.Position.String())
	return errReopen
}

// await is the peer's next answer about an opening; it may fold or verify for long
// before it, and the connection's own pings tell whether it lives. What was sent before
// and is not taken for the patience of a stall is not on its way any more.
func (s *sender) await(ctx context.Context, o *opening, data *flow) (body, error) {
	patience := s.r.o.StallTimeout
	look := time.NewTicker(max(patience/8, 1))
	defer look.Stop()
	before, since := int64(0), s.r.o.Now()
	for {
		select {
		case m := <-o.replies:
			if no, ok := m.body.(*refuse); ok {
				return nil, &RefusedError{Peer: s.peer.Name, Code: no.code, Text: no.text}
			}
			return m.body, nil
		case <-look.C:
			now := s.r.o.Now()
			if moved, all := data.moves(); all || moved != before {
				before, since = moved, now
			} else if now.Sub(since) > patience {
				return nil, fmt.Errorf("await %s: it took nothing of what was sent for %v: %w", s.peer.Name, patience, ErrStalled)
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// writeDelta sends a delta's bytes. Who refuses it in the middle ends that.
func (s *sender) writeDelta(ctx context.Context, o *opening, d Delta, data *flow, at journal.DeltaPlace) error {
	w := &deltaWriter{ctx: ctx, s: s, o: o, data: data, buf: make([]byte, chunkBytes)}
	err := d.Write(ctx, w, at)
	if err != nil && w.err == nil {
		err = &readError{err}
	}
	if err == nil {
		err = w.end()
	}
	if err == nil {
		return nil
	}
	select {
	case m := <-o.replies: // why it does not go on tells more than that
		if no, ok := m.body.(*refuse); ok {
			return &RefusedError{Peer: s.peer.Name, Code: no.code, Text: no.text}
		}
	default:
	}
	return err
}

// deltaWriter sends what is written to it as blocks, at the allowed rate.
type deltaWriter struct {
	ctx   context.Context
	s     *sender
	o     *opening
	data  *flow
	buf   []byte
	total uint64
	err   error // of the connection
}

func (w *deltaWriter) Write(p []byte) (int, error) {
	n := 0
	for len(p) > 0 {
		part := p[:min(len(p), maxDeltaBlock)]
		if err := w.block(part); err != nil {
			w.err = err
			return n, err
		}
		n, p = n+len(part), p[len(part):]
	}
	return n, nil
}

func (w *deltaWriter) block(p []byte) error {
	if _, err := w.data.Write(deltaBlock(p)); err != nil {
		return fmt.Errorf("write delta: %w", err)
	}
	w.total += uint64(len(p))
	return w.s.limits(w.o.group).copyN(w.ctx, w.data, bytes.NewReader(p), int64(len(p)), w.buf, w.o.group.progress.delta)
}

// deltaBlock is a block's head.
func deltaBlock(p []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(p)))
	return binary.LittleEndian.AppendUint32(b, crc32.Update(crc32.Checksum(b, castagnoli), castagnoli, p))
}

func (w *deltaWriter) end() error {
	if _, err := w.data.Write(w.tail()); err != nil {
		return fmt.Errorf("write delta: %w", err)
	}
	w.data.push()
	return nil
}

// tail is what follows on the last block.
func (w *deltaWriter) tail() []byte {
	total := binary.LittleEndian.AppendUint64(nil, w.total)
	b := binary.LittleEndian.AppendUint32(nil, 0)
	b = binary.LittleEndian.AppendUint32(b, crc32.Update(crc32.Checksum(b, castagnoli), castagnoli, total))
	return append(b, total...)
}

// deltaReader reads the blocks of a delta up to its end. A stream that ends early is
// an error, and kept apart from what the journal says.
type deltaReader struct {
	r     io.Reader
	moved func(int)
	over  func() // all has been read
	block []byte // what is left of it
	total uint64
	ended bool
	err   error
}

func (d *deltaReader) Read(p []byte) (int, error) {
	for len(d.block) == 0 && d.err == nil && !d.ended {
		d.err = d.next()
	}
	if d.err != nil {
		return 0, d.err
	}
	if len(d.block) == 0 {
		return 0, io.EOF
	}
	n := copy(p, d.block)
	d.block = d.block[n:]
	return n, nil
}

// next reads a block, whose length is checked before it takes memory, or the end.
func (d *deltaReader) next() error {
	head := make([]byte, deltaBlockBytes)
	if _, err := io.ReadFull(d.r, head); err != nil {
		return noEnd(err)
	}
	n := int(binary.LittleEndian.Uint32(head))
	if n > maxDeltaBlock {
		return fmt.Errorf("read delta: block of %d bytes: %w", n, ErrProtocol)
	}
	if d.ended = n == 0; d.ended {
		n = deltaTotalBytes
	}
	b, err := readBounded(d.r, n)
	if err != nil {
		return noEnd(err)
	}
	if sum := crc32.Update(crc32.Checksum(head[:4], castagnoli), castagnoli, b); sum != binary.LittleEndian.Uint32(head[4:]) {
		return fmt.Errorf("read delta: checksum differs: %w", ErrProtocol)
	}
	if d.ended {
		if total := binary.LittleEndian.Uint64(b); total != d.total {
			return fmt.Errorf("read delta: %d bytes, of %d: %w", d.total, total, ErrProtocol)
		}
		d.over()
		return nil
	}
	d.block, d.total = b, d.total+uint64(n)
	d.moved(n)
	return nil
}

// noEnd is err, where the end of the stream is none of the delta.
func noEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// land takes the delta that the source offers.
func (in *inbound) land(ctx context.Context, replica Replica, of *offer) error {
	in.mu.Lock()
	from, p := in.durable, in.progress
	in.mu.Unlock()
	if of.after != from.Position || of.to.Seq <= of.after.Seq {
		return fmt.Errorf("take delta: offered from %s to %s, this site holds %s: %w", of.after, of.to.Position, from.Position, ErrProtocol)
	}
	p.catchUp(of.to.Position)
	in.r.o.Log.Info("delta offered", "group", in.tenant+"/"+in.group, "peer", in.peer.Name, "after", of.after.String(), "to", of.to.Position.String())
	at, err := in.takeDelta(ctx, replica, of)
	if err != nil {
		return err
	}
	in.send(in.number, in.id, &landedDelta{at: at})
	<-ctx.Done() // the source opens the group anew
	return context.Cause(ctx)
}

func (in *inbound) takeDelta(ctx context.Context, replica Replica, of *offer) (journal.Cursor, error) {
	l, err := landingAt(ctx, replica, of.after)
	if err != nil {
		return journal.Cursor{}, err
	}
	defer l.Close()
	at := l.Place()
	in.send(in.number, in.id, &landingPlace{run: at.Run, epochs: uint32(at.Epochs)})
	// What it does then may take long, and the source is not to take that for a stall.
	r := &deltaReader{r: in.data, moved: in.progressNow().delta, over: in.data.tell}
	c, err := l.Take(ctx, r, journal.DeltaEnd{Cursor: of.to, Time: of.time})
	if r.err != nil && !errors.Is(r.err, ErrProtocol) {
		return c, &arrivalError{r.err}
	}
	return c, err
}
