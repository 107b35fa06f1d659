package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sync/errgroup"

	"github.com/novacron/afterimage/cbt"
)

// Journal is one group's history at one site. All methods are safe for concurrent
// use. Reading works from Open to Close; writing only while Run runs.
type Journal struct {
	dir      string
	o        Options
	lock     io.Closer
	identity Identity
	inc      cbt.Incarnation
	db       *pebble.DB
	site     *siteLog
	segs     *segments
	deep     deepReader // of reads that somebody waits for
	bulk     deepReader // of whole images: no more than the disk needs
	writes   deepWriter // of frames
	chunks   chunkCache
	pool     *pool
	runs     *segments
	keys     *dataKeys
	packer   *packer

	viewsOpened atomic.Uint64
	// reading is held shared from when a place is looked up until its last byte is
	// read, and alone by who takes files away once nothing points to them. foldGen
	// counts how often it was: a place that was found in another one is looked up anew.
	reading sync.RWMutex
	foldGen atomic.Uint64

	maintaining sync.Mutex // held by the one Maintain at a time
	pinning     sync.Mutex // held while pins change

	syncing patientLock // held by whoever syncs a segment
	fileMu  sync.Mutex  // held by whoever writes a frame; guards out and newest
	out     output
	newest  FramePlace

	toDevice atomic.Bool // frames go past the page cache to a device

	decoded   atomic.Int64 // records of the catalogue read: what look-ups cost
	scrubbing sync.Mutex   // held by the one scrub or repair

	mu        sync.Mutex // guards all below
	retained             // what folding left, and who uses it (manifest.go)
	changed   chan struct{}
	err       error // terminal: set once
	running   bool
	closing   bool
	ends      bool // ending is closed
	readOnly  bool
	branches  []Branch // index + 1 is the epoch's ordinal in the index
	lineage   Lineage  // of the newest epoch; its last interval ends at written
	volumes   map[cbt.VolumeID]volumeBody
	ordinals  uint32                  // highest volume ordinal given
	names     map[uint32]cbt.VolumeID // by ordinal, in any branch: for errors at open
	reread    int64                   // bytes of frames that the opening read again
	writer    *Writer
	rewrites  rewrites
	sealer    *sealer // what the newest epoch of this process seals with; nil: it does not
	next      Seq     // seq of the next record
	lastTime  time.Time
	queue     []*commit             // not yet written; the last one is open
	pending   int64                 // payload bytes of what is not yet written, and room for each record
	held      int64                 // frame bytes written, kept for the chain
	refusals  int                   // how often ErrFull emptied the queue
	live      map[cbt.VolumeID]bool // volumes whose newest record of the two is synced, not gap
	freed     bool                  // Close has begun to free
	readers   int                   // iterators of the index that are open
	owed      map[cbt.VolumeID]cbt.Cause
	written   Seq        // newest record in a segment file
	bytes     int64      // frame bytes written in this life and before
	synced    Seq        // newest record that survives power loss
	awaiting  []*commit  // written, to be answered once durable
	aloft     int        // flights
	landed    sync.Cond  // one fewer
	chained   []frameEnd // frames whose chain value is known, from the durable one on
	indexed   Seq        // newest record that reads see
	unindexed int64      // bytes of header and records of received frames that the index lacks
	levels    map[uint32]uint16
	recent    recent  // chain values of the newest frame ends
	through   through // owned by finishLoop while Run runs, as are entries and rolled
	entries   entryMaker
	rolled    int       // segments ended since the index was flushed
	headTime  time.Time // of written
	torn      bool      // the opening cut off half a frame
	damages   []Damage  // that scrubs found and nothing mended
	resync    Cursor    // the next chain value that is known behind damage; while opening

	committing sync.Mutex // held from taking a commit to its end; before fileMu

	ending    chan struct{} // closed when Run must end
	unsynced  unsynced
	restating               // what is durable, to be said anew (restate.go)
	sync      chan struct{} // wakes the syncer
	urgent    hurried       // ends its rest, and finishLoop's
	followed  followed      // makes its rest short
	work      chan struct{} // wakes the committer
	restate   chan struct{} // wakes finishLoop for it
	finish    chan *written // frames to chain and index, in order
	flights   chan *flight  // frames under way to the disk, in order
}

const identityName = "identity.json"

type identityFile struct {
	Format   int      `json:"format"`
	Identity Identity `json:"identity"`
}

// Open opens the journal in dir, alone (ErrLocked), and recovers its tail. It
// starts nothing: Run does. Errors: ErrNotFound, ErrWrongJournal, ErrIncompatible,
// ErrTailLost, *DamageError.
func Open(dir string, o Options) (*Journal, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	j := &Journal{
		dir: dir, o: o, inc: cbt.Incarnation(cbt.NewID()),
		segs:   newSegments(o.FS, o.FS.PathJoin(dir, "segments"), segmentName),
		runs:   newSegments(o.FS, o.FS.PathJoin(dir, "runs"), runName),
		keys:   newDataKeys(),
		packer: newPacker(o.Compress, o.Sync),
		chunks: chunkCache{limit: o.chunkBytes},
		deep:   deepReader{depth: deepReads}, bulk: deepReader{depth: bulkReads},
		retained: newRetained(),
		changed:  make(chan struct{}),
		ending:   make(chan struct{}),
		volumes:  make(map[cbt.VolumeID]volumeBody),
		owed:     make(map[cbt.VolumeID]cbt.Cause),
		levels:   make(map[uint32]uint16),
		live:     make(map[cbt.VolumeID]bool),
		names:    make(map[uint32]cbt.VolumeID),
		restate:  make(chan struct{}, 1),
		urgent:   hurried{make(chan struct{}, 1), make(chan struct{}, 1)},
		syncing:  newPatientLock(),
		sync:     make(chan struct{}, 1), work: make(chan struct{}, 1), finish: make(chan *written, maxUnfinished), flights: make(chan *flight, maxFlights),
	}
	j.landed.L = &j.mu
	if err := j.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open journal %s: %w", dir, err), j.free())
	}
	return j, nil
}

func (j *Journal) open() error {
	fs := j.o.FS
	here, err := exists(fs, fs.PathJoin(j.dir, identityName))
	if err != nil {
		return err
	}
	if !here && j.o.Create == nil {
		return ErrNotFound
	}
	if err := errors.Join(makeDir(fs, j.segs.dir), makeDir(fs, j.runs.dir)); err != nil {
		return err
	}
	if j.lock, err = fs.Lock(fs.PathJoin(j.dir, "LOCK")); err != nil {
		j.lock = nil
		return fmt.Errorf("%w: %w", ErrLocked, err)
	}
	if err := j.identify(here); err != nil {
		return err
	}
	if err := j.openSite(); err != nil {
		return err
	}
	if err := j.openPool(); err != nil {
		return err
	}
	if err := errors.Join(j.loadPast(), j.loadRewrapped()); err != nil {
		return err
	}
	err = j.openIndex()
	if errors.Is(err, ErrRunLost) && j.o.AcceptLoss {
		if err = j.loseRuns(err); err == nil {
			err = j.openIndex()
		}
	}
	if err != nil {
		return err
	}
	if err := errors.Join(j.checkSiteLog(), j.loadKept()); err != nil {
		return err
	}
	if err := errors.Join(j.recover(), j.loadDamage()); err != nil {
		return err
	}
	return errors.Join(j.removeStrays(), j.settleTails())
}

// identify reads the identity file or, in a new directory, writes it.
func (j *Journal) identify(here bool) error {
	fs, path := j.o.FS, j.o.FS.PathJoin(j.dir, identityName)
	if here {
		id, err := readIdentity(fs, j.dir)
		if err != nil {
			return err
		}
		if j.o.Create != nil && *j.o.Create != id {
			return fmt.Errorf("%w: group %s", ErrWrongJournal, id.Group)
		}
		j.identity = id
		return nil
	}
	if ns, err := j.segmentList(); err != nil || len(ns) > 0 {
		return errors.Join(fmt.Errorf("%w: segments without %s", ErrWrongJournal, identityName), err)
	}
	j.identity = *j.o.Create
	tmp := path + ".new"
	f, err := fs.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(append(encodeBody(identityFile{1, j.identity}), '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := fs.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(fs, j.dir)
}

// readIdentity reads the identity file of the journal in dir.
func readIdentity(fs vfs.FS, dir string) (Identity, error) {
	f, err := fs.Open(fs.PathJoin(dir, identityName))
	if err != nil {
		return Identity{}, err
	}
	b, err := io.ReadAll(io.LimitReader(f, 1<<16))
	if err = errors.Join(err, f.Close()); err != nil {
		return Identity{}, err
	}
	var id identityFile
	if err := json.Unmarshal(b, &id); err != nil || id.Format != 1 {
		return Identity{}, &DamageError{Hop: "open", File: identityName, What: "not an identity of this format"}
	}
	return id.Identity, nil
}

// Identity says whose journal this is.
func (j *Journal) Identity() Identity { return j.identity }

// Run writes, syncs, chains and indexes until ctx ends, then finishes what was
// begun. A failed fsync or a damaged index ends it with an error that wraps
// ErrFailed; the journal takes no more records then.
func (j *Journal) Run(ctx context.Context) error {
	j.mu.Lock()
	if j.err != nil || j.running || j.closing {
		err := errors.Join(ErrClosed, j.err)
		j.mu.Unlock()
		return err
	}
	j.running = true
	j.broadcastLocked()
	j.mu.Unlock()
	var g errgroup.Group
	stop := make(chan struct{})     // no more commits will be queued
	drained := make(chan struct{})  // all commits are written
	finished := make(chan struct{}) // and indexed
	g.Go(func() error { defer close(drained); return j.commitLoop(stop) })
	g.Go(func() error { return j.syncLoop(drained) })
	g.Go(func() error { return j.landLoop(drained) })
	g.Go(func() error { j.pool.run(stop); return nil })
	g.Go(func() error { defer close(finished); return j.finishLoop(drained) })
	g.Go(func() error {
		select {
		case <-ctx.Done():
		case <-j.ending:
		}
		j.fileMu.Lock() // a frame that is being received or an epoch that begins is in before
		j.mu.Lock()
		j.closing = true
		j.broadcastLocked()
		j.mu.Unlock()
		j.fileMu.Unlock()
		close(stop)
		return nil
	})
	err := g.Wait()
	<-finished
	j.mu.Lock()
	j.running = false
	err = errors.Join(err, j.err)
	j.broadcastLocked()
	j.mu.Unlock()
	if err != nil {
		return fmt.Errorf("run journal: %w", err)
	}
	return j.closeCleanly()
}

// Close frees what Open took. Call it after Run has returned; reads that are under
// way end first, later ones are refused.
func (j *Journal) Close() error {
	j.mu.Lock()
	j.closing = true
	j.endLocked()
	j.broadcastLocked()
	j.mu.Unlock()
	return j.free()
}

func (j *Journal) free() error {
	j.mu.Lock()
	j.freed = true
	for j.readers > 0 {
		ch := j.changed
		j.mu.Unlock()
		<-ch
		j.mu.Lock()
	}
	j.mu.Unlock()
	j.maintaining.Lock() // a Maintain ends at its next look into the index
	defer j.maintaining.Unlock()
	var errs []error
	if j.db != nil {
		errs = append(errs, j.db.Close())
		j.db = nil
	}
	if j.out.file != nil {
		errs = append(errs, j.out.file.Close())
		j.out.file = nil
	}
	for _, f := range j.unsynced.retired {
		errs = append(errs, f.Close())
	}
	j.unsynced = unsynced{}
	j.segs.close()
	j.runs.close()
	j.deep.close()
	j.bulk.close()
	j.writes.close()
	if j.site != nil {
		errs = append(errs, j.site.close())
	}
	if j.lock != nil {
		errs = append(errs, j.lock.Close())
		j.lock = nil
	}
	return errors.Join(errs...)
}

// broadcastLocked wakes everybody who waits for a change of state.
func (j *Journal) broadcastLocked() {
	close(j.changed)
	j.changed = make(chan struct{})
}

// waitFor returns when ok, called under mu, reports true; or with what ended the
// journal, or with ctx.
func (j *Journal) waitFor(ctx context.Context, ok func() bool) error {
	j.mu.Lock()
	for !ok() {
		if err := j.stoppedLocked(); err != nil {
			j.mu.Unlock()
			return err
		}
		ch := j.changed
		j.mu.Unlock()
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		}
		j.mu.Lock()
	}
	j.mu.Unlock()
	return nil
}

// stoppedLocked is why nothing will change any more, or nil.
func (j *Journal) stoppedLocked() error {
	switch {
	case j.err != nil:
		return j.err
	case j.closing && !j.running:
		return ErrClosed
	}
	return nil
}

// fail makes err terminal.
func (j *Journal) fail(err error) error {
	err = fmt.Errorf("%w: %w", ErrFailed, err)
	j.mu.Lock()
	if j.err == nil {
		j.err = err
		for _, c := range j.awaiting {
			c.err = err
			close(c.done)
		}
		j.awaiting = nil
		j.o.Log.Error("journal failed", "dir", j.dir, "err", err)
		j.endLocked()
	}
	j.broadcastLocked()
	j.mu.Unlock()
	return err
}

// endLocked has Run end.
func (j *Journal) endLocked() {
	if !j.ends {
		j.ends = true
		close(j.ending)
	}
}

// endIfUnsynced makes err terminal if it is of a sync that failed.
func (j *Journal) endIfUnsynced(err error) error {
	if errors.Is(err, errNotSynced) && !errors.Is(err, ErrFailed) {
		return j.fail(err)
	}
	return err
}

// Remember makes v the value of key in the site log, durably.
func (j *Journal) Remember(key string, v any) error { return j.site.remember(key, v) }

// Recall reads the newest value of key into v and reports whether there is one.
func (j *Journal) Recall(key string, v any) (bool, error) { return j.site.recall(key, v) }
