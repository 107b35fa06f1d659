package journal

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/cbt"
)

// commit is the records of one frame, from the first Record to the reply.
type commit struct {
	ordinal uint32  // of the epoch
	sealer  *sealer // of its sealed records; nil: it has none
	recs    []*record
	first   Seq
	bytes   int64 // of payloads, and room for each record
	meta    int   // bytes of the encoded records
	data    bool  // some record is refused when the disk is full
	done    chan struct{}
	err     error // set before done is closed
}

func (c *commit) last() Seq { return c.first + Seq(len(c.recs)) - 1 }

// pendingRecord is a record that has its seq.
type pendingRecord struct {
	c   *commit
	seq Seq
}

// Wait returns once the record is safe by the journal's SyncMode.
func (p pendingRecord) Wait(ctx context.Context) error {
	select {
	case <-p.c.done:
		return p.c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// written is a frame in its segment, to be chained and indexed.
type written struct {
	ordinal uint32
	h       frameHeader
	recs    []*record
	segment uint64
	offset  int64
	image   []byte // the frame as stored; nil when chain is known
	held    int64  // bytes of image that count against maxPending
	chain   Chain
	end     time.Time // of the last record
}

// output is the segment being written.
type output struct {
	file    vfs.File // nil until the first frame of this life
	number  uint64   // of the segment that the next frame goes to, unless it is full
	at      int64    // where in it
	fresh   bool     // segment number does not exist yet
	free    int64    // bytes that may be written until disk space is looked at again
	retired []vfs.File
	tail    Position // of the last frame written

	made, madeDurable uint64 // newest segment made, and the newest whose name is durable
}

// enqueueLocked gives r its seq and time and puts it in the open commit. Gaps that
// a failure left owing go first.
func (j *Journal) enqueueLocked(r *record) pendingRecord {
	if r.kind == KindGap {
		delete(j.owed, r.volumeID)
	}
	j.payOwedLocked()
	switch r.kind {
	case KindSynced:
		j.live[r.volumeID] = true
	case KindGap:
		delete(j.live, r.volumeID)
	}
	return j.addLocked(r)
}

// payOwedLocked records the gaps that are owed.
func (j *Journal) payOwedLocked() {
	for v, cause := range j.owed {
		delete(j.owed, v)
		delete(j.live, v)
		if b, ok := j.volumes[v]; ok {
			j.addLocked(&record{kind: KindGap, volume: b.Ordinal, volumeID: v, body: encodeBody(gapBody{Cause: cause})})
		}
	}
}

// oweLocked notes that volume v lost a write. Where that ends an interval the gap
// is recorded at once: nothing may look synced meanwhile.
func (j *Journal) oweLocked(v cbt.VolumeID) {
	j.owed[v] = cbt.CauseDiskFull
	if j.live[v] {
		j.payOwedLocked()
	}
}

func (j *Journal) addLocked(r *record) pendingRecord {
	now := j.o.Now()
	if now.Before(j.lastTime) {
		now = j.lastTime // a label, never decreasing
	}
	j.lastTime, r.time = now, now
	ordinal := uint32(len(j.branches))
	var c *commit
	if n := len(j.queue); n > 0 {
		c = j.queue[n-1]
	}
	size := int64(len(r.data)) + recordRoom
	meta := r.encodedBytes()
	if c == nil || c.ordinal != ordinal || c.sealer != j.sealer || len(c.recs) >= 1024 || (c.bytes > 0 && c.bytes+size > targetFrame) || (c.meta > 0 && c.meta+meta > targetMeta) {
		c = &commit{ordinal: ordinal, sealer: j.sealer, first: j.next, done: make(chan struct{})}
		j.queue = append(j.queue, c)
	}
	c.recs, c.bytes, c.meta = append(c.recs, r), c.bytes+size, c.meta+meta
	c.data = c.data || r.kind.hasExtent()
	p := pendingRecord{c, j.next}
	j.rewrites.note(r, j.next)
	j.next++
	j.pending += size
	select {
	case j.work <- struct{}{}:
	default:
	}
	return p
}

// commitLoop writes queued commits in order until stop is closed and none is left.
func (j *Journal) commitLoop(stop <-chan struct{}) error {
	for {
		c := j.take()
		if c == nil {
			select {
			case <-j.work:
				continue
			case <-stop:
			}
			if c = j.take(); c == nil {
				return nil
			}
		}
		if j.o.faults.replyEarly {
			close(c.done)
		}
		j.mu.Lock()
		err := j.err
		j.mu.Unlock()
		if err == nil {
			err = j.writeCommit(c)
		}
		switch {
		case err == nil:
		case errors.Is(err, ErrFull):
			j.refuse(c, err)
		default:
			err = j.fail(fmt.Errorf("write frame: %w", err))
			j.refuse(c, err)
			return err
		}
	}
}

func (j *Journal) take() *commit {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.queue) == 0 {
		return nil
	}
	c := j.queue[0]
	j.queue = j.queue[1:]
	return c
}

// refuse fails c and all that is queued behind it: their seqs are given anew,
// what they changed is taken back, and a gap is owed for each volume that lost a
// write. c's payloads may be laid out already.
func (j *Journal) refuse(c *commit, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	all := append([]*commit{c}, j.queue...)
	j.queue = nil
	lost := make(map[cbt.VolumeID]bool)
	for i := len(all) - 1; i >= 0; i-- { // the newest is taken back first
		q := all[i]
		for k := len(q.recs) - 1; k >= 0; k-- {
			r := q.recs[k]
			switch {
			case r.kind.hasExtent():
				lost[r.volumeID] = true
			case r.kind == KindGap:
				var b gapBody
				_ = decodeBody(r.body, &b) // encoded by us
				j.owed[r.volumeID] = b.Cause
			case r.undo != nil:
				r.undo()
			}
		}
		j.pending -= q.bytes
	}
	j.next = j.written + 1
	j.refusals++
	if j.err == nil {
		for v := range lost {
			j.oweLocked(v)
		}
	}
	for k, q := range all {
		q.err = err
		if !j.o.faults.replyEarly || k > 0 {
			close(q.done)
		}
	}
	j.broadcastLocked()
}

// writeCommit puts c into a segment, answers it in SyncProcess and hands it on.
func (j *Journal) writeCommit(c *commit) error {
	j.fileMu.Lock()
	defer j.fileMu.Unlock()
	h, image := j.buildFrame(c)
	put := func() error {
		if err := j.makeRoom(h, c.data); err != nil {
			return err
		}
		_, err := j.out.file.WriteAt(image, j.out.at)
		return fullOr(err)
	}
	err := put()
	if errors.Is(err, ErrFull) && j.pool.giveUp() {
		err = put()
	}
	if err != nil {
		return err
	}
	if (j.out.at+h.Bytes)*2 >= j.o.SegmentBytes {
		j.pool.want()
	}
	w := &written{ordinal: c.ordinal, h: h, recs: c.recs, segment: j.out.number, offset: j.out.at, image: image, held: h.Bytes, end: c.recs[len(c.recs)-1].time}
	j.advance(w, c)
	return nil
}

// advance makes w the newest frame. fileMu is held. c is nil for a received frame.
func (j *Journal) advance(w *written, c *commit) {
	j.segs.live.Store(w.segment)
	j.out.at += w.h.Bytes
	j.out.free -= w.h.Bytes
	j.out.tail = Position{w.h.Epoch, w.h.Last}
	j.mu.Lock()
	j.written, j.headTime = w.h.Last, w.end
	j.bytes += w.h.Bytes
	j.lineage[len(j.lineage)-1].Last = w.h.Last
	j.held += w.held
	if c != nil {
		j.pending -= c.bytes
		switch {
		case j.o.faults.replyEarly:
		case j.err != nil: // what the page cache holds after a failed fsync is not known
			c.err = j.err
			close(c.done)
		case j.o.Sync == SyncPower:
			j.awaiting = append(j.awaiting, c)
		default:
			close(c.done)
		}
	}
	j.broadcastLocked()
	j.mu.Unlock()
	j.finish <- w
	select {
	case j.unsynced <- struct{}{}:
	default:
	}
}

// buildFrame lays c out. The image is a copy: the callers' buffers are theirs
// again once they are answered, and the chain is computed after that.
func (j *Journal) buildFrame(c *commit) (frameHeader, []byte) {
	meta := frameHeaderBytes
	for _, r := range c.recs {
		meta += r.encodedBytes()
	}
	at := int64(meta)
	for _, r := range c.recs {
		if r.data == nil {
			continue
		}
		at = r.layAt(at)
	}
	size := (at + pageBytes - 1) &^ (pageBytes - 1)
	j.mu.Lock()
	e := j.branches[c.ordinal-1].Epoch
	known := j.chained[len(j.chained)-1].Cursor
	durable := j.synced
	j.mu.Unlock()
	h := frameHeader{
		MetaBytes: meta, Count: len(c.recs), Bytes: size, First: c.first, Last: c.last(), Time: c.recs[0].time,
		Durable: durable, ChainSeq: known.Seq, Chain: known.Chain, Identity: j.identity, Epoch: e.ID, Number: e.Number, Incarnation: j.inc,
	}
	image := make([]byte, size)
	j.sealInto(&h, c, image)
	h.encode(image)
	b := image[:frameHeaderBytes]
	for _, r := range c.recs {
		b = r.encode(b)
		r.data = nil
	}
	sealMeta(image[:meta])
	return h, image
}

// makeRoom opens the segment that a frame goes to, sealing the full one. fileMu is
// held. data says that the frame may be refused for lack of space.
func (j *Journal) makeRoom(h frameHeader, data bool) error {
	if data && j.o.ReserveBytes > 0 && j.out.free < h.Bytes {
		u, err := j.o.FS.GetDiskUsage(j.dir)
		if err == nil && int64(u.AvailBytes) < j.o.ReserveBytes+h.Bytes {
			return fmt.Errorf("%d bytes free: %w", u.AvailBytes, ErrFull)
		}
		j.out.free = min(int64(u.AvailBytes)-j.o.ReserveBytes, 16<<20)
		if err != nil {
			j.out.free = 16 << 20 // a file system that cannot tell answers with ENOSPC
		}
	}
	if !j.out.fresh && j.out.at > pageBytes && j.out.at+h.Bytes+pageBytes > j.o.SegmentBytes {
		if err := j.seal(); err != nil {
			return err
		}
	}
	if j.out.fresh {
		return j.createSegment(h)
	}
	if j.out.file == nil {
		f, err := j.o.FS.OpenReadWrite(j.segs.path(j.out.number), vfs.WriteCategoryUnspecified)
		if err != nil {
			return err
		}
		j.out.file = f
	}
	return nil
}

// seal writes the trailer and makes the whole segment durable; the next one does
// not exist before that, so a missing trailer is never a torn one.
func (j *Journal) seal() error {
	if j.out.file == nil {
		f, err := j.o.FS.OpenReadWrite(j.segs.path(j.out.number), vfs.WriteCategoryUnspecified)
		if err != nil {
			return err
		}
		j.out.file = f
	}
	t := segmentPage{Magic: trailerMagic, Number: j.out.number, Identity: j.identity, Epoch: j.out.tail.Epoch, Seq: j.out.tail.Seq, Time: j.o.Now()}
	j.mu.Lock()
	known := j.chained[len(j.chained)-1].Cursor
	t.ChainSeq, t.Chain = known.Seq, known.Chain
	if o := j.ordinalLocked(t.Epoch); o > 0 {
		t.EpochNum = j.branches[o-1].Number
	}
	j.mu.Unlock()
	if _, err := j.out.file.WriteAt(t.encode(), j.out.at); err != nil {
		return fullOr(err)
	}
	if err := j.out.file.SyncData(); err != nil {
		return fmt.Errorf("sync segment: %w", err)
	}
	j.out.retired = append(j.out.retired, j.out.file)
	j.out.file, j.out.number, j.out.at, j.out.fresh = nil, j.out.number+1, pageBytes, true
	return nil
}

func (j *Journal) createSegment(h frameHeader) error {
	if j.out.made != j.out.madeDurable { // a segment's name is durable before the next one has any
		if err := j.pool.syncDirs(); err != nil {
			return fmt.Errorf("sync segments' directory: %w", err)
		}
		j.out.madeDurable = j.out.made
	}
	fs, path := j.o.FS, j.segs.path(j.out.number)
	p := segmentPage{Magic: segmentMagic, Number: j.out.number, Identity: j.identity, Epoch: h.Epoch, EpochNum: h.Number, Seq: h.First, ChainSeq: h.ChainSeq, Chain: h.Chain, Time: j.o.Now()}
	taken, err := exists(fs, path) // an empty one that a crash left gets its header again
	if err == nil && !taken {
		taken, err = j.pool.take(j.out.number, p.encode())
	} else {
		taken = false
	}
	if err != nil {
		return fullOr(err)
	}
	f, err := fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return fullOr(err)
	}
	if !taken {
		if err := j.beginFile(f, p, h); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	j.out.file, j.out.at, j.out.fresh, j.out.made = f, pageBytes, false, j.out.number
	return nil
}

// beginFile makes f, which is not from the pool, a segment with header p.
func (j *Journal) beginFile(f vfs.File, p segmentPage, h frameHeader) error {
	err := fullOr(f.Preallocate(0, max(j.o.SegmentBytes, h.Bytes+2*pageBytes)))
	if errors.Is(err, ErrFull) { // a file system that cannot preallocate does without
		return err
	}
	if _, err = f.WriteAt(p.encode(), 0); err != nil {
		return fullOr(err)
	}
	if err = f.Sync(); err != nil {
		return fmt.Errorf("sync new segment: %w", err)
	}
	return nil
}

// fullOr marks a lack of space as ErrFull.
func fullOr(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}
