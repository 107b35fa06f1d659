package journal

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// output is the segment being written.
type output struct {
	file   vfs.File // nil until the first frame of this life
	direct bool     // file is written past the page cache
	ready  bool     // it was written before over its whole length: no frame lacks space
	deep   bool     // the kernel may write to it while nobody waits in a call
	number uint64   // of the segment that the next frame goes to, unless it is full
	at     int64    // where in it
	fresh  bool     // segment number does not exist yet
	free   int64    // bytes that may be written until disk space is looked at again
	wanted bool     // the pool was told that the next segment is near
	tail   Position // of the last frame written
}

// unsynced is what the next sync of a segment has to do. It is guarded by mu: a frame
// is made durable while the one after it is being written.
type unsynced struct {
	file    vfs.File   // of the frame written last
	bytes   int64      // written since a sync began
	retired []vfs.File // of segments that are sealed, to be closed

	made, madeDurable uint64 // newest segment made, and the newest whose name is durable
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
	return j.reopen()
}

// reopen opens the segment that a former life of the journal ended in.
func (j *Journal) reopen() error {
	if j.out.file != nil {
		return nil
	}
	f, err := j.o.FS.OpenReadWrite(j.segs.path(j.out.number), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	j.out.file, j.out.direct, j.out.ready, j.out.deep = f, false, false, false
	return nil
}

// passCache makes writes to the segment pass the page cache, or not: its own pages do in
// SyncPower, where the reply waits for the device anyway. In SyncProcess the cache is
// what outlives the process. fileMu is held.
func (j *Journal) passCache(past bool) {
	if past = past && j.o.Sync == SyncPower; past == j.out.direct {
		return
	}
	if j.out.direct, j.out.deep = past, false; past {
		j.out.deep = direct(j.out.file) && j.out.ready && passes(j.o.FS, j.out.file)
		j.toDevice.Store(j.out.deep)
	} else {
		buffered(j.out.file)
	}
}

// seal writes the trailer and makes the whole segment durable; the next one does
// not exist before that, so a missing trailer is never a torn one.
func (j *Journal) seal() error {
	j.awaitFlights(0)
	if err := j.reopen(); err != nil {
		return err
	}
	t := segmentPage{Magic: trailerMagic, Number: j.out.number, Identity: j.identity, Epoch: j.out.tail.Epoch, Seq: j.out.tail.Seq, Time: j.o.Now()}
	j.mu.Lock()
	known := j.chained[len(j.chained)-1].Cursor
	t.ChainSeq, t.Chain = known.Seq, known.Chain
	if o := j.ordinalLocked(t.Epoch); o > 0 {
		t.EpochNum = j.branches[o-1].Number
	}
	j.mu.Unlock()
	page := takePages(pageBytes)
	defer page.free()
	copy(page.b, t.encode())
	if err := writeDirect(j.out.file, page.b, j.out.at); err != nil {
		return fullOr(err)
	}
	if err := j.out.file.SyncData(); err != nil {
		return fmt.Errorf("sync segment: %w", err)
	}
	j.mu.Lock()
	j.unsynced.retired = append(j.unsynced.retired, j.out.file)
	j.unsynced.file, j.unsynced.bytes = nil, 0
	j.mu.Unlock()
	j.out.file, j.out.number, j.out.at, j.out.fresh = nil, j.out.number+1, pageBytes, true
	return nil
}

func (j *Journal) createSegment(h frameHeader) error {
	// A segment's name is durable before the next one has any.
	j.mu.Lock()
	made, durable := j.unsynced.made, j.unsynced.madeDurable
	j.mu.Unlock()
	if err := j.nameDurable(made, durable); err != nil {
		return err
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
	j.out.file, j.out.direct, j.out.ready, j.out.deep = f, false, taken, false
	j.out.at, j.out.fresh, j.out.wanted = pageBytes, false, false
	j.mu.Lock()
	j.unsynced.made = j.out.number
	j.mu.Unlock()
	return nil
}

// nameDurable syncs the directory that the newest segment was made in, unless that
// is done.
func (j *Journal) nameDurable(made, durable uint64) error {
	if made == durable {
		return nil
	}
	if err := j.pool.syncDirs(); err != nil {
		return fmt.Errorf("sync segments' directory: %w", err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.unsynced.madeDurable = max(j.unsynced.madeDurable, made)
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
