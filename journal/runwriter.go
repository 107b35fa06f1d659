package journal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/zeebo/blake3"
	"golang.org/x/time/rate"

	"github.com/novacron/afterimage/cbt"
)

// pace bounds the bytes that maintenance reads and writes in a second.
type pace struct {
	ctx     context.Context
	limiter *rate.Limiter // nil: no bound
}

const paceBurst = 1 << 20

func newPace(ctx context.Context, bytesPerSecond int64) *pace {
	p := &pace{ctx: ctx}
	if bytesPerSecond > 0 {
		p.limiter = rate.NewLimiter(rate.Limit(bytesPerSecond), paceBurst)
	}
	return p
}

// spend returns when n more bytes may be moved, or with why not.
func (p *pace) spend(n int64) error {
	for p.limiter != nil && n > 0 {
		k := min(n, paceBurst)
		if err := p.limiter.WaitN(p.ctx, int(k)); err != nil {
			return err
		}
		n -= k
	}
	return p.ctx.Err()
}

// syncRunBytes is how much of a run is written before it is synced: what a flush of
// the ingest may find before it in the queue.
const syncRunBytes = 8 << 20

// runWriter writes one run, from front to end.
type runWriter struct {
	f        vfs.File
	pace     *pace
	page     runPage
	buf      []byte // of the open leaf; not yet written
	at       int64  // in the file: of buf
	unsynced int64
	leaves   []Chain
	blocks   []blockPlace

	waiting   []waitingEntry // of the open block
	size      int            // of their keys and values
	pieces    []byte         // to be written before the block
	catalogue blockBuilder
	ordinals  map[uint32]uint32 // what epochs are called in the run; nil: as here
}

// waitingEntry is a version whose block is open. A piece's place is known only when
// its block is written.
type waitingEntry struct {
	key   []byte
	level int
	place place
	piece bool // place.offset counts from where the pieces begin
}

func newRunWriter(fs vfs.FS, path string, number uint64, id Identity, now time.Time, p *pace) (*runWriter, error) {
	f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, fullOr(err)
	}
	return newRunWriterTo(f, number, id, now, p)
}

// newRunWriterTo writes to what is open already.
func newRunWriterTo(f vfs.File, number uint64, id Identity, now time.Time, p *pace) (*runWriter, error) {
	w := &runWriter{f: f, pace: p, page: runPage{Magic: runMagic, Number: number, Identity: id, Created: now}, buf: make([]byte, 0, leafBytes)}
	return w, w.write(w.page.encode())
}

// pos is where the next byte goes.
func (w *runWriter) pos() int64 { return w.at + int64(len(w.buf)) }

func (w *runWriter) write(p []byte) error {
	for len(p) > 0 {
		n := min(len(p), leafBytes-len(w.buf))
		w.buf, p = append(w.buf, p[:n]...), p[n:]
		if len(w.buf) == leafBytes {
			if err := w.flushLeaf(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *runWriter) flushLeaf() error {
	if len(w.buf) == 0 {
		return nil
	}
	w.leaves = append(w.leaves, blake3.Sum256(w.buf))
	return w.flushBuf()
}

func (w *runWriter) flushBuf() error {
	if err := w.pace.spend(int64(len(w.buf))); err != nil {
		return err
	}
	if _, err := w.f.Write(w.buf); err != nil {
		return fullOr(err)
	}
	w.at += int64(len(w.buf))
	if w.unsynced += int64(len(w.buf)); w.unsynced >= syncRunBytes {
		w.unsynced = 0
		if err := synced(w.f.SyncData()); err != nil {
			return fmt.Errorf("sync run: %w", err)
		}
	}
	w.buf = w.buf[:0]
	return nil
}

func (w *runWriter) pad() error {
	return w.write(zeros[:padPage(w.pos())-w.pos()])
}

// location is where stored bytes went that several versions share.
type location struct {
	offset int64
	piece  bool
	block  int // the block that was open: a piece is shared within it alone
}

// store puts stored bytes into the body. Whole cells go to their page at once;
// pieces and packed payloads wait for their block.
func (w *runWriter) store(stored []byte) (location, error) {
	w.page.Payload += int64(len(stored))
	if len(stored)%pageBytes == 0 {
		at := location{offset: w.pos()}
		return at, w.write(stored)
	}
	at := location{offset: int64(len(w.pieces)), piece: true, block: len(w.blocks)}
	w.pieces = append(w.pieces, stored...)
	w.pieces = append(w.pieces, zeros[:-len(w.pieces)&(cbt.SectorBytes-1)]...)
	return at, nil
}

// usable reports that a location may still be shared.
func (w *runWriter) usable(l location) bool { return !l.piece || l.block == len(w.blocks) }

// version adds an entry. Its place says all but file and offset; l is where store
// put its bytes, and is not used for one without payload.
func (w *runWriter) version(e indexEntry, p place, l location) error {
	if p.format != valueZero {
		p.file, p.offset = runID(w.page.Number), l.offset
	}
	ordinal := e.ordinal
	if w.ordinals != nil {
		ordinal = w.ordinals[ordinal]
	}
	key := indexKey(nil, e.volume, e.node, ordinal, e.seq)
	w.waiting = append(w.waiting, waitingEntry{key, e.node.level, p, l.piece && p.format != valueZero})
	w.size += len(key) + 24 + len(p.crcs)
	w.page.Entries++
	if w.size < targetBlock && len(w.pieces) < targetPieces {
		return nil
	}
	return w.flushVersions()
}

// flushVersions writes the open block, the pieces before it.
func (w *runWriter) flushVersions() error {
	if len(w.waiting) == 0 {
		return nil
	}
	base := w.pos()
	if err := errors.Join(w.write(w.pieces), w.pad()); err != nil {
		return err
	}
	var b blockBuilder
	var v []byte
	for _, e := range w.waiting {
		if e.piece {
			e.place.offset += base
		}
		v = e.place.encode(v)
		b.add(e.key, v)
	}
	w.waiting, w.size, w.pieces = w.waiting[:0], 0, w.pieces[:0]
	return w.block(b.finish(blockVersions), blockVersions)
}

func (w *runWriter) block(b []byte, kind uint32) error {
	if len(b) > maxBlockBytes {
		return fmt.Errorf("block of %d bytes: %w", len(b), ErrOutOfRange)
	}
	w.blocks = append(w.blocks, blockPlace{w.pos(), len(b), kind})
	return errors.Join(w.write(b), w.pad())
}

// control adds a pair of the catalogue; all versions come before.
func (w *runWriter) control(k, v []byte) error {
	if len(w.catalogue.b) > 0 && len(w.catalogue.b)+len(k)+len(v) > targetBlock {
		if err := w.flushControl(); err != nil {
			return err
		}
	}
	w.catalogue.add(k, v)
	return nil
}

func (w *runWriter) flushControl() error {
	if w.catalogue.entries == 0 {
		return nil
	}
	return w.block(w.catalogue.finish(blockCatalogue), blockCatalogue)
}

// finish writes tail and footer and makes the file durable; its name is the
// caller's to sync. It returns the footer.
func (w *runWriter) finish(points []runPoint) (runPage, error) {
	if err := errors.Join(w.flushVersions(), w.flushControl(), w.flushLeaf()); err != nil {
		return w.page, err
	}
	var tail []byte
	for _, d := range w.blocks {
		tail = d.encode(tail)
	}
	for _, p := range points {
		tail = p.encode(tail)
	}
	for _, l := range w.leaves {
		tail = append(tail, l[:]...)
	}
	f := w.page
	f.Magic, f.Body = runFooterMagic, w.at
	f.Blocks, f.Points, f.Leaves = int64(len(w.blocks)), int64(len(points)), int64(len(w.leaves))
	f.Root = blake3.Sum256(tail)
	w.buf = append(w.buf, tail...)
	w.buf = append(w.buf, make([]byte, padPage(int64(len(tail)))-int64(len(tail)))...)
	w.buf = append(w.buf, f.encode()...)
	if err := w.flushBuf(); err != nil {
		return f, err
	}
	if err := synced(w.f.Sync()); err != nil {
		return f, fmt.Errorf("sync run: %w", err)
	}
	err := w.f.Close()
	w.f = nil
	return f, err
}

// abandon closes an unfinished run.
func (w *runWriter) abandon() error {
	if w.f == nil {
		return nil
	}
	f := w.f
	w.f = nil
	return f.Close()
}
