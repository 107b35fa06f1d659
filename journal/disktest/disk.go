// Package disktest is a disk in memory for tests of those who use journals: it loses
// power, is slow to sync and runs full when it is told to.
//
// It can be used inside a bubble of testing/synctest: what it waits for is the bubble's
// clock. For that, a sync is slow only where nothing else can wait for whoever syncs: a
// segment's data, while the next frame is written. What seals a segment syncs it at once.
package disktest

import (
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// Disk is a file system. All methods are safe for concurrent use.
type Disk struct {
	mem *vfs.MemFS
	fs  vfs.FS

	slow atomic.Int64 // nanoseconds that a sync of a segment takes
	full atomic.Bool

	mu   sync.Mutex // guards trap
	trap *trap
}

// trap is a loss of power that is yet to come.
type trap struct {
	ops     int // that change something, until then
	percent int
	rng     *rand.Rand
	sprung  func()
	left    *Disk // nil: not yet
}

// New is an empty disk.
func New() *Disk { return of(vfs.NewCrashableMem()) }

func of(mem *vfs.MemFS) *Disk {
	d := &Disk{mem: mem}
	watched := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsRead {
			return nil
		}
		return d.changing(op)
	}))
	d.fs = &files{watched, d}
	return d
}

// FS is what journal.Options takes.
func (d *Disk) FS() vfs.FS { return d.fs }

// Loss is the disk as the machine finds it when power is back: what was synced, and of
// the rest about so many per cent, drawn from rng. d goes on for who still uses it.
func (d *Disk) Loss(percent int, rng *rand.Rand) *Disk {
	return of(d.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng}))
}

// LoseAfter arms a Loss in the middle of things: after so many operations that change
// the disk, just before the next one; sprung is called then, inside of that operation.
func (d *Disk) LoseAfter(ops, percent int, rng *rand.Rand, sprung func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.trap = &trap{ops: ops, percent: percent, rng: rng, sprung: sprung}
}

// Lost is what LoseAfter's loss left, nil where it has not come; it does not come any more.
func (d *Disk) Lost() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.trap
	d.trap = nil
	if t == nil {
		return nil
	}
	return t.left
}

// changing is called before each operation that changes the disk.
func (d *Disk) changing(errorfs.Op) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if t := d.trap; t != nil && t.left == nil {
		if t.ops--; t.ops < 0 {
			t.left = d.Loss(t.percent, t.rng)
			t.sprung()
		}
	}
	return nil
}

// Slow makes syncs of segments take so long.
func (d *Disk) Slow(by time.Duration) { d.slow.Store(int64(by)) }

// Full makes writes of new data fail for lack of space, or no more.
func (d *Disk) Full(full bool) { d.full.Store(full) }

// IsFull says what Full said last.
func (d *Disk) IsFull() bool { return d.full.Load() }

// Remove removes a directory and all in it.
func (d *Disk) Remove(dir string) error { return d.mem.RemoveAll(dir) }

// files hands out segments that are slow and run full. The index has room: it is what
// everything else needs to go on.
type files struct {
	vfs.FS
	disk *Disk
}

func segment(name string) bool { return strings.HasSuffix(name, ".seg") }

func (f *files) wrap(name string, file vfs.File, err error) (vfs.File, error) {
	if err != nil || !segment(name) {
		return file, err
	}
	return &segmentFile{File: file, disk: f.disk}, nil
}

func (f *files) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if f.disk.full.Load() && (segment(name) || strings.Contains(name, "/runs/")) {
		return nil, syscall.ENOSPC
	}
	file, err := f.FS.Create(name, c)
	return f.wrap(name, file, err)
}

func (f *files) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.FS.OpenReadWrite(name, c, o...)
	return f.wrap(name, file, err)
}

// segmentFile is a segment that is written.
type segmentFile struct {
	vfs.File
	disk *Disk

	mu      sync.Mutex // guards sealing
	sealing bool       // what was written last is a trailer
}

func (f *segmentFile) WriteAt(b []byte, off int64) (int, error) {
	f.mu.Lock()
	f.sealing = len(b) >= 4 && string(b[:4]) == "AiTr"
	sealing := f.sealing
	f.mu.Unlock()
	if f.disk.full.Load() && !sealing {
		return 0, syscall.ENOSPC
	}
	return f.File.WriteAt(b, off)
}

func (f *segmentFile) SyncData() error {
	f.mu.Lock()
	sealing := f.sealing
	f.mu.Unlock()
	if by := time.Duration(f.disk.slow.Load()); by > 0 && !sealing {
		<-time.After(by)
	}
	return f.File.SyncData()
}
