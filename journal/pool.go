package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// The pool holds files for segments to come. Each has been written once over its
// whole length, so what is written over it takes no new block: fdatasync is then a
// flush of the device and no commit of the file system. They come from reclaimed
// segments, or are written in the background when half of a segment is used.
//
//	pool/N.free  page 0: as a segment's header, but "AiPo" and number 0; then zeros,
//	             or frames of a former life
//
// A file changes its directory by one rename, and a crash may leave it under both
// names until both directories are synced. So page 0 always says what it is:
//
//	take:   header of segment n into page 0, sync | rename to segments/ | sync directories
//	retire: rename to pool/ | sync directories | stamp "AiPo" into page 0, sync
//
// A file in pool/ whose page 0 is no stamp may also be a segment, or is half written:
// opening removes that name and never writes to it. The directories' sync after take
// is the syncer's (durable.go): nothing in the segment counts as durable before it.
//
// (epoch number, seq) rises along the log of a site, and the header of a segment says
// where its life begins: what lies below that is of a former life (stale).
//
// The pool is given up before records are refused for lack of space.
type pool struct {
	fs       vfs.FS
	dir      string
	segments string // their directory
	bytes    int64  // of a file
	reserve  int64  // free disk below which none is written
	target   int    // files that are made ready when it is filled
	keep     int    // files that are kept at most
	identity Identity
	log      *slog.Logger
	dead     func(error) // told of a sync that failed
	skipSync bool        // planted fault: directories are not synced

	wake chan struct{} // the pool may be short of files

	mu      sync.Mutex // guards all below
	free    []uint64
	last    uint64        // number given last
	given   uint64        // times the pool was given up
	filling bool          // to target, as fast as the disk takes it
	changed chan struct{} // closed when a file comes
}

const (
	poolMagic        = "AiPo"
	poolSuffix       = ".free"
	poolChunk        = 1 << 20
	poolKept         = 4         // reclaimed files that are kept by default
	preWriteBytes    = 256 << 20 // a second, at most: guests' writes come first
	poolSpareFactor  = 4         // segments that must fit on the disk before one is written ahead
	poolDirName      = "pool"
	maxPoolFileRatio = 2 // a file longer than so many segments is not kept
)

func (j *Journal) openPool() error {
	o := j.o
	p := &pool{
		fs: o.FS, dir: o.FS.PathJoin(j.dir, poolDirName), segments: j.segs.dir, bytes: (o.SegmentBytes + pageBytes - 1) &^ (pageBytes - 1), reserve: max(o.ReserveBytes, 0),
		target: 1, keep: poolKept, identity: j.identity, log: o.Log, skipSync: o.faults.skipDirSync,
		dead: func(err error) { _ = j.fail(err) },
		wake: make(chan struct{}, 1), changed: make(chan struct{}),
	}
	switch {
	case o.PoolBytes < 0:
		p.target, p.keep = 0, 0
	case o.PoolBytes > 0:
		p.target = int((o.PoolBytes + p.bytes - 1) / p.bytes)
		p.keep, p.filling = max(p.target, poolKept), true
	}
	if o.PoolReclaim {
		p.target = 0
	}
	if err := makeDir(p.fs, p.dir); err != nil {
		return err
	}
	names, err := p.fs.List(p.dir)
	if err != nil {
		return fmt.Errorf("list pool: %w", err)
	}
	for _, name := range names {
		n, ok := parsePoolName(name)
		p.last = max(p.last, n)
		if ok && len(p.free) < p.keep && p.stamped(n) {
			p.free = append(p.free, n)
			continue
		}
		if err := p.fs.Remove(p.fs.PathJoin(p.dir, name)); err != nil {
			return fmt.Errorf("remove pool file: %w", err)
		}
	}
	if err := syncDir(p.fs, p.dir); err != nil { // what was removed must not come back once it is a segment
		return err
	}
	j.pool = p
	return nil
}

func parsePoolName(name string) (uint64, bool) {
	base, ok := strings.CutSuffix(name, poolSuffix)
	if !ok || len(base) != 16 {
		return 0, false
	}
	n, err := strconv.ParseUint(base, 10, 64)
	return n, err == nil
}

func (p *pool) path(n uint64) string {
	return p.fs.PathJoin(p.dir, fmt.Sprintf("%016d%s", n, poolSuffix))
}

func (p *pool) segment(n uint64) string { return p.fs.PathJoin(p.segments, segmentName(n)) }

// stamped reports that file n is free: it says so, and has a segment's length.
func (p *pool) stamped(n uint64) bool {
	f, err := p.fs.Open(p.path(n))
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }() // opened for reading only
	st, err := f.Stat()
	page := make([]byte, pageBytes)
	if err != nil || st.Size() < p.bytes || st.Size() > maxPoolFileRatio*p.bytes {
		return false
	}
	if _, err := f.ReadAt(page, 0); err != nil && !errors.Is(err, io.EOF) {
		return false
	}
	s, err := decodeSegmentPage(page, poolMagic)
	return err == nil && s.Identity == p.identity
}

// stamp marks an open file as free, durably.
func (p *pool) stamp(f vfs.File) error {
	s := segmentPage{Magic: poolMagic, Identity: p.identity}
	if _, err := f.WriteAt(s.encode(), 0); err != nil {
		return err
	}
	return synced(f.SyncData())
}

func (p *pool) syncDirs() error {
	if p.skipSync {
		return nil
	}
	return errors.Join(syncDir(p.fs, p.segments), syncDir(p.fs, p.dir))
}

// take makes a free file segment n, whose header page is given; false when there is
// none. The directories are still to be synced.
func (p *pool) take(n uint64, header []byte) (bool, error) {
	p.mu.Lock()
	if len(p.free) == 0 {
		p.mu.Unlock()
		return false, nil
	}
	k := p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	p.mu.Unlock()
	f, err := p.fs.OpenReadWrite(p.path(k), vfs.WriteCategoryUnspecified)
	if err != nil {
		return false, fmt.Errorf("open pool file: %w", err)
	}
	if _, err = f.WriteAt(header, 0); err == nil {
		err = synced(f.SyncData())
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = p.fs.Rename(p.path(k), p.segment(n))
	}
	if err != nil {
		return false, fmt.Errorf("make pool file a segment: %w", err)
	}
	return true, nil
}

// retire takes segment n, which nothing needs any more, back; one that is too many
// is removed. Done when it returns, power loss included.
func (p *pool) retire(n uint64) error {
	p.mu.Lock()
	p.last++
	k, full := p.last, len(p.free) >= p.keep
	p.mu.Unlock()
	st, err := p.fs.Stat(p.segment(n))
	if err != nil {
		return fmt.Errorf("retire segment: %w", err)
	}
	if full || st.Size() > maxPoolFileRatio*p.bytes {
		if err := p.fs.Remove(p.segment(n)); err != nil {
			return fmt.Errorf("remove segment: %w", err)
		}
		return syncDir(p.fs, p.segments)
	}
	if err := p.fs.Rename(p.segment(n), p.path(k)); err != nil {
		return fmt.Errorf("retire segment: %w", err)
	}
	if err := p.syncDirs(); err != nil {
		return fmt.Errorf("retire segment: %w", err)
	}
	f, err := p.fs.OpenReadWrite(p.path(k), vfs.WriteCategoryUnspecified)
	if err == nil {
		err = p.lengthen(f, st.Size())
		if err == nil {
			err = p.stamp(f)
		}
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("retire segment: %w", err)
	}
	p.add(k)
	return nil
}

// lengthen writes what a segment that was not from the pool lacks in length.
func (p *pool) lengthen(f vfs.File, size int64) error {
	if size >= p.bytes {
		return nil
	}
	zero := make([]byte, min(poolChunk, p.bytes-size))
	for at := size; at < p.bytes; at += int64(len(zero)) {
		if _, err := f.WriteAt(zero[:min(int64(len(zero)), p.bytes-at)], at); err != nil {
			return err
		}
	}
	return synced(f.Sync())
}

func (p *pool) add(k uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = append(p.free, k)
	close(p.changed)
	p.changed = make(chan struct{})
}

// want says that a file will be needed soon.
func (p *pool) want() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// size is the bytes of all free files.
func (p *pool) size() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return int64(len(p.free)) * p.bytes
}

// giveUp removes all free files, and stops the one that is being written: the disk
// is short of space. It reports that there was anything to remove.
func (p *pool) giveUp() bool {
	p.mu.Lock()
	free := p.free
	p.free = nil
	p.given++
	p.mu.Unlock()
	removed := false
	for _, k := range free {
		if err := p.fs.Remove(p.path(k)); err != nil {
			p.log.Warn("give up pool", "err", err)
			continue
		}
		removed = true
	}
	return removed
}

// run writes files ahead until stop is closed.
func (p *pool) run(stop <-chan struct{}) {
	p.mu.Lock()
	if p.filling {
		p.want()
	}
	p.mu.Unlock()
	for {
		select {
		case <-stop:
			return
		case <-p.wake:
		}
		for p.short() {
			if err := p.writeAhead(stop); err != nil {
				if errors.Is(err, errNotSynced) {
					p.dead(fmt.Errorf("write segment ahead: %w", err))
				} else if !errors.Is(err, errGivenUp) { // a segment is then made without it
					p.log.Warn("write segment ahead", "dir", p.dir, "err", err)
				}
				break
			}
		}
	}
}

var errGivenUp = errors.New("the pool was given up")

// short reports that a file is missing and that there is space for it.
func (p *pool) short() bool {
	p.mu.Lock()
	want := min(p.target, 1)
	if p.filling = p.filling && len(p.free) < p.target; p.filling {
		want = p.target
	}
	missing := len(p.free) < want
	p.mu.Unlock()
	if !missing {
		return false
	}
	u, err := p.fs.GetDiskUsage(p.dir)
	return err != nil || int64(u.AvailBytes) >= p.reserve+poolSpareFactor*p.bytes
}

// writeAhead makes one file, no faster than preWriteBytes a second unless the pool is
// being filled.
func (p *pool) writeAhead(stop <-chan struct{}) error {
	p.mu.Lock()
	p.last++
	k, given := p.last, p.given
	p.mu.Unlock()
	f, err := p.fs.OpenReadWrite(p.path(k), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	err = p.fill(f, given, stop)
	if err == nil {
		err = synced(f.Sync())
	}
	if err == nil {
		err = p.stamp(f)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = syncDir(p.fs, p.dir)
	}
	if err != nil {
		return errors.Join(err, p.fs.Remove(p.path(k)))
	}
	p.add(k)
	return nil
}

func (p *pool) fill(f vfs.File, given uint64, stop <-chan struct{}) error {
	direct(f)
	zero := alignedBytes(min(poolChunk, p.bytes))
	begun := time.Now()
	for at := int64(0); at < p.bytes; {
		p.mu.Lock()
		ended, fast := p.given != given, p.filling
		p.mu.Unlock()
		if ended {
			return errGivenUp
		}
		z := zero[:min(int64(len(zero)), p.bytes-at)]
		if err := writeDirect(f, z, at); err != nil {
			return err
		}
		at += int64(len(z))
		ahead := time.Duration(at)*time.Second/preWriteBytes - time.Since(begun)
		if fast || ahead < time.Millisecond {
			ahead = 0
		}
		pause := time.NewTimer(ahead)
		select {
		case <-stop:
			pause.Stop()
			return errGivenUp
		case <-pause.C:
		}
	}
	return nil
}

// stale reports that a frame was written in a former life of the file of the segment
// whose header s is.
func (s segmentPage) stale(h frameHeader) bool {
	return h.Number < s.EpochNum || (h.Number == s.EpochNum && h.First < s.Seq)
}

// pageOf reads the header or trailer of segment n at off; errNoFrame when there is
// none, or one of a former life.
func (j *Journal) pageOf(n uint64, off int64, magic string) (segmentPage, error) {
	b := make([]byte, pageBytes)
	if err := j.segs.readAt(n, b, off); err != nil {
		return segmentPage{}, err
	}
	s, err := decodeSegmentPage(b, magic)
	if err == nil && (s.Number != n || s.Identity != j.identity) {
		err = errNoFrame
	}
	return s, err
}

// retireSegment gives segment n, which holds nothing that is needed, back to the
// pool. The caller has seen to it that no reader is inside.
func (j *Journal) retireSegment(n uint64) error {
	j.segs.drop(n)
	return j.pool.retire(n)
}

// WaitPool fills the pool to Options.PoolBytes, while Run runs, as Run does when it
// begins. Between the two, one segment at a time is written ahead, and slowly.
func (j *Journal) WaitPool(ctx context.Context) error {
	p := j.pool
	for {
		p.mu.Lock()
		ready, ch := len(p.free) >= p.target, p.changed
		p.filling = !ready
		p.mu.Unlock()
		if ready {
			return nil
		}
		p.want()
		select {
		case <-ch:
		case <-ctx.Done():
			return fmt.Errorf("wait for pool: %w", ctx.Err())
		}
	}
}
