package journal

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/novacron/afterimage/cbt"
)

// commit is the records of one frame, from the first Record to the reply.
type commit struct {
	ordinal  uint32  // of the epoch
	sealer   *sealer // of its sealed records; nil: it has none
	recs     []*record
	first    Seq
	bytes    int64 // of payloads, and room for each record
	meta     int   // bytes of the encoded records
	data     bool  // some record is refused when the disk is full
	payloads int   // records that have one
	payload  area
	done     chan struct{}
	err      error // set before done is closed
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
	mem     *pages // that image lies in
	held    int64  // bytes of image that count against maxPending
	chain   Chain
	end     time.Time // of the last record
	after   frameEnd  // where it ends, once its chain value is published
	// received is of a frame that counts in Journal.unindexed.
	received bool
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
	if !r.time.IsZero() && r.time.Before(now) {
		now = r.time // it tells of a moment that is past
	}
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
	if c == nil || !c.payload.fits(r) || c.ordinal != ordinal || c.sealer != j.sealer || len(c.recs) >= 1024 || (c.bytes > 0 && c.bytes+size > groupBytes) || (len(r.data) > 0 && c.payloads >= groupRecords) || (c.meta > 0 && c.meta+meta > targetMeta) {
		c = &commit{ordinal: ordinal, sealer: j.sealer, first: j.next, done: make(chan struct{})}
		c.payload.epoch = j.branches[ordinal-1].ID
		j.queue = append(j.queue, c)
	}
	c.payload.placeLocked(r)
	c.recs, c.bytes, c.meta = append(c.recs, r), c.bytes+size, c.meta+meta
	c.data = c.data || r.kind.hasExtent()
	if len(r.data) > 0 {
		c.payloads++
	}
	p := pendingRecord{c, j.next}
	j.rewrites.note(r, j.next)
	j.next++
	j.pending += size
	if r.stored == 0 { // else when the payload is in its place
		j.wakeCommitter()
	}
	return p
}

func (j *Journal) wakeCommitter() {
	select {
	case j.work <- struct{}{}:
	default:
	}
}

// commitLoop writes queued commits in order until stop is closed and none is left.
func (j *Journal) commitLoop(stop <-chan struct{}) error {
	defer j.awaitFlights(0)
	for {
		j.awaitFlights(maxFlights - 1)
		j.committing.Lock()
		c := j.gather()
		if c == nil {
			j.committing.Unlock()
			select {
			case <-j.work:
				continue
			case <-stop:
			}
			j.committing.Lock() // what somebody writes in our place is written then
			if c = j.take(); c == nil {
				j.committing.Unlock()
				return nil
			}
		}
		err := j.commitOne(c)
		j.committing.Unlock()
		if err != nil {
			return err
		}
	}
}

// commitHere writes what is queued in the caller's goroutine, which saves a writer the
// way over commitLoop; that is woken where somebody else writes, or a reply waits for
// the disk.
func (j *Journal) commitHere() {
	if j.o.Sync != SyncProcess || !j.committing.TryLock() {
		j.wakeCommitter()
		return
	}
	defer j.committing.Unlock()
	for c := j.take(); c != nil; c = j.take() {
		if j.commitOne(c) != nil {
			return // the journal has failed, which ends Run
		}
	}
}

// commitOne writes c, or refuses it and all behind it; an error is the journal's end.
// committing is held.
func (j *Journal) commitOne(c *commit) error {
	if j.o.faults.replyEarly {
		close(c.done)
	}
	j.mu.Lock()
	err := j.err
	j.mu.Unlock()
	if err == nil {
		err = j.writeCommit(c)
	}
	if err == nil {
		return nil
	}
	full := errors.Is(err, ErrFull)
	if !full {
		err = j.fail(fmt.Errorf("write frame: %w", err))
	}
	j.awaitFlights(0) // what is refused comes after them
	if j.refuse(c, err); !full {
		return err
	}
	return nil
}

// gatherFor bounds how long the committer waits for records to come together.
const gatherFor = 100 * time.Microsecond

// gather takes the next commit, once no record came between two turns of everybody
// else who can run: whoever was answered together then shares the next frame. With
// one writer it takes the record that is there. With some frames under way it takes
// full ones only: who lands wakes the committer again.
func (j *Journal) gather() *commit {
	var begun time.Time
	for last := Seq(0); ; {
		j.mu.Lock()
		n, next := len(j.queue), j.next
		full := n > 1 || n == 1 && j.queue[0].full()
		many := j.aloft >= fewFlights
		j.mu.Unlock()
		if n == 0 || many && !full {
			return nil
		}
		if full || next == last {
			return j.take()
		}
		if begun.IsZero() {
			begun = time.Now()
		} else if time.Since(begun) > j.o.gatherFor {
			return j.take()
		}
		last = next
		runtime.Gosched()
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
	for _, q := range all {
		q.err = err
		if !j.o.faults.replyEarly || q != c {
			close(q.done)
		}
	}
	j.broadcastLocked()
}

// writeCommit puts c into a segment, answers it in SyncProcess and hands it on. In
// SyncPower it flies (flight.go), or is made durable at once, which saves a lone writer
// the way over others.
func (j *Journal) writeCommit(c *commit) error {
	if j.flies(c) {
		return j.launch(c)
	}
	w, err := j.putCommit(c)
	if err != nil {
		return err
	}
	if j.o.Sync == SyncProcess {
		j.handOn(w)
		j.wakeSyncer()
		return nil
	}
	handed := !j.syncing.tryLock()
	if handed { // nobody else's sync holds up the index
		j.finish <- w
		j.syncing.lock()
	}
	f, err := j.flush()
	if !handed {
		j.finish <- w // before the answer: whoever is woken last runs first
	}
	if err != nil {
		_ = j.fail(err) // that answers c; what is queued behind it is refused next
	} else {
		j.answer(f)
	}
	j.syncing.unlock()
	return nil
}

// putCommit writes c's frame.
func (j *Journal) putCommit(c *commit) (*written, error) {
	j.fileMu.Lock()
	defer j.fileMu.Unlock()
	w, err := j.putFrame(c, func(image []byte) error { return writeDirect(j.out.file, image, j.out.at) })
	if err == nil {
		j.advance(w, c)
	}
	return w, err
}

// putFrame builds c's frame and has write put it where the segment ends; the pool is
// given up before it is refused. fileMu is held.
func (j *Journal) putFrame(c *commit, write func(image []byte) error) (*written, error) {
	h, image, mem := j.buildFrame(c)
	put := func() error {
		if err := j.makeRoom(h, c.data); err != nil {
			return err
		}
		j.passCache(true)
		return fullOr(write(image))
	}
	err := put()
	if errors.Is(err, ErrFull) && j.pool.giveUp() {
		err = put()
	}
	if err != nil {
		return nil, err
	}
	if !j.out.wanted && (j.out.at+h.Bytes)*2 >= j.o.SegmentBytes {
		j.out.wanted = true
		j.pool.want()
	}
	w := &written{ordinal: c.ordinal, h: h, recs: c.recs, segment: j.out.number, offset: j.out.at, image: image, mem: mem, held: h.Bytes, end: c.recs[len(c.recs)-1].time}
	j.goOn(w)
	return w, nil
}

// goOn has the next frame follow w. fileMu is held.
func (j *Journal) goOn(w *written) {
	j.segs.live.Store(w.segment) // before anybody can read w (fileread.go)
	j.out.at += w.h.Bytes
	j.out.free -= w.h.Bytes
	j.out.tail, j.newest = Position{w.h.Epoch, w.h.Last}, FramePlace{w.segment, w.offset}
}

// arriveLocked makes w the newest frame.
func (j *Journal) arriveLocked(w *written) {
	j.written, j.headTime = w.h.Last, w.end
	j.bytes += w.h.Bytes
	j.lineage[len(j.lineage)-1].Last = w.h.Last
	j.held += w.held
}

// advance makes w, which goOn was called for, the newest frame, to be synced. fileMu
// is held.
func (j *Journal) advance(w *written, c *commit) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.arriveLocked(w)
	j.unsynced.file = j.out.file
	if j.unsynced.bytes += w.h.Bytes; j.unsynced.bytes >= restBytes {
		endRest(j.urgent.sync)
	}
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
	j.broadcastLocked()
}

func (j *Journal) wakeSyncer() {
	select {
	case j.sync <- struct{}{}:
	default:
	}
}
