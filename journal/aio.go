package journal

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// deepReader reads files past the page cache with many requests under way at once,
// by the kernel's asynchronous I/O (io_submit(2)). A goroutine that waits for each
// read in pread(2) holds a thread, and for a while a processor of the scheduler: on
// two cores 32 of them reach 0.6 of what one that collects completions does, with
// ten times the latency.
//
//	read alone ── none beside it of late ──► pread on the caller's goroutine
//	     └─ else, or several at once ──────► io_submit by the caller; what finds no slot
//	                                         waits in queue
//	collect: io_getevents ─► io_submit of what waited ─► wake the readers
//
// Of late matters: a pread holds its processor, so those who would read beside it do
// not come to ask, and each of them would find itself alone in its turn.
//
// collect is one goroutine that lives while reads are with the kernel, which are at
// most depth. Where the kernel has no asynchronous I/O to give, every read is a pread.
//
// A buffer belongs to the kernel until its read is done: read never returns before.
type deepReader struct {
	depth int // reads that the kernel holds at once

	inside atomic.Int32 // callers of read
	deeper atomic.Int32 // single reads to come that queue all the same

	mu         sync.Mutex // guards all below
	context    uintptr    // of io_setup; 0: not yet, or refused
	refused    bool
	shut       bool
	collecting bool
	queue      []*diskRead
	flying     []*diskRead // by slot
	free       []int       // slots
}

// Reads that the kernel holds at once, for all views of a journal together.
const (
	deepReads = 128
	bulkReads = 32
)

// staysDeep is how many single reads after the last that met another one still queue.
const staysDeep = 256

// diskRead is one read: of a file descriptor opened with O_DIRECT, into page-aligned
// memory, at a multiple of pageBytes.
type diskRead struct {
	fd   int
	buf  []byte
	off  int64
	got  int
	err  error
	wait *readGroup
	slot int
}

func (r *diskRead) plain() { r.got, r.err = unix.Pread(r.fd, r.buf, r.off) }

// readGroup wakes who waits for several reads when the last one is done.
type readGroup struct {
	left atomic.Int32
	wake chan struct{}
}

var readGroups = sync.Pool{New: func() any { return &readGroup{wake: make(chan struct{}, 1)} }}

// read fills the buffers of rs and returns when all are done; each has its own err.
func (d *deepReader) read(rs []*diskRead) {
	if len(rs) == 0 {
		return
	}
	if d.inside.Add(1) > 1 {
		d.deeper.Store(staysDeep)
	}
	defer d.inside.Add(-1)
	if len(rs) == 1 && d.deeper.Add(-1) < 0 {
		d.deeper.Store(0)
		rs[0].plain()
		return
	}
	d.mu.Lock()
	if d.refused || d.shut || !d.openLocked() {
		d.mu.Unlock()
		for _, r := range rs {
			r.plain()
		}
		return
	}
	g := readGroups.Get().(*readGroup)
	g.left.Store(int32(len(rs)))
	for _, r := range rs {
		r.wait = g
	}
	d.queue = append(d.queue, rs...)
	h := d.handLocked()
	if !d.collecting {
		d.collecting = true
		go d.collect()
	}
	d.mu.Unlock()
	d.submit(h)
	<-g.wake
	readGroups.Put(g)
}

// openLocked asks the kernel for a context, once.
func (d *deepReader) openLocked() bool {
	if d.context != 0 {
		return true
	}
	_, _, errno := unix.Syscall(unix.SYS_IO_SETUP, uintptr(d.depth), uintptr(unsafe.Pointer(&d.context)), 0)
	if d.refused = errno != 0; d.refused {
		d.context = 0
		return false
	}
	d.flying = make([]*diskRead, d.depth)
	for i := range d.depth {
		d.free = append(d.free, i)
	}
	return true
}

// close gives the context back once nothing is under way.
func (d *deepReader) close() {
	d.mu.Lock()
	d.shut = true
	if !d.collecting {
		d.destroyLocked()
	}
	d.mu.Unlock()
}

func (d *deepReader) destroyLocked() {
	if d.context != 0 {
		_, _, _ = unix.Syscall(unix.SYS_IO_DESTROY, d.context, 0, 0) // nothing is under way
		d.context = 0
	}
}

// iocb and ioEvent are the kernel's (linux/aio_abi.h), on little-endian machines.
type iocb struct {
	data    uint64
	_       uint32 // key
	rwFlags uint32
	opcode  uint16 // IOCB_CMD_PREAD is 0
	_       int16  // priority
	fd      uint32
	buf     uint64
	bytes   uint64
	offset  int64
	_       uint64
	flags   uint32
	resfd   uint32
}

type ioEvent struct {
	data, obj uint64
	res, res2 int64
}

// handful is what is handed to the kernel at once.
type handful struct {
	n     int
	cbs   [deepReads]iocb
	ptrs  [deepReads]*iocb
	reads [deepReads]*diskRead
}

var handfuls = sync.Pool{New: func() any { return new(handful) }}

// handLocked gives slots to what is queued; nil if there is nothing to submit.
func (d *deepReader) handLocked() *handful {
	n := min(len(d.queue), len(d.free))
	if n == 0 {
		return nil
	}
	h := handfuls.Get().(*handful)
	h.n = n
	for i, r := range d.queue[:n] {
		slot := d.free[len(d.free)-1-i]
		r.slot, d.flying[slot], h.reads[i] = slot, r, r
		h.cbs[i] = iocb{data: uint64(slot), fd: uint32(r.fd), buf: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(r.buf)))), bytes: uint64(len(r.buf)), offset: r.off}
		h.ptrs[i] = &h.cbs[i]
	}
	d.free = d.free[:len(d.free)-n]
	d.queue = append(d.queue[:0], d.queue[n:]...)
	return h
}

// submit hands h to the kernel. What it refuses is read in the plain way.
func (d *deepReader) submit(h *handful) {
	if h == nil {
		return
	}
	for i := 0; i < h.n; {
		got, _, errno := unix.Syscall(unix.SYS_IO_SUBMIT, d.context, uintptr(h.n-i), uintptr(unsafe.Pointer(&h.ptrs[i])))
		switch errno {
		case 0:
			i += int(got)
		case syscall.EINTR:
		default:
			h.reads[i].plain()
			d.mu.Lock()
			d.doneLocked(h.reads[i])
			d.mu.Unlock()
			i++
		}
	}
	clear(h.reads[:h.n])
	handfuls.Put(h)
}

// doneLocked frees r's slot and wakes its reader if it was the last of its group.
func (d *deepReader) doneLocked(r *diskRead) {
	d.flying[r.slot] = nil
	d.free = append(d.free, r.slot)
	if g := r.wait; g.left.Add(-1) == 0 {
		g.wake <- struct{}{}
	}
}

// collectPatience bounds how long collect waits for a completion that does not come,
// because what it waited for was refused after all.
const collectPatience = 50 * time.Millisecond

// collect takes completions until nothing is with the kernel or queued. After it has
// woken readers it lets them run before it blocks, and holds their processor.
func (d *deepReader) collect() {
	var events [deepReads]ioEvent
	for {
		n, errno := d.events(events[:], 0)
		if n == 0 && errno == 0 {
			n, errno = d.events(events[:], collectPatience)
		}
		if errno != 0 && errno != syscall.EINTR {
			// The context is ours and the arguments are right. The memory that the kernel
			// may still write to must not be given back.
			panic(fmt.Sprintf("journal: io_getevents: %v", errno))
		}
		d.mu.Lock()
		for _, e := range events[:n] {
			r := d.flying[e.data]
			if e.res < 0 {
				r.err = syscall.Errno(-e.res)
			} else {
				r.got = int(e.res)
			}
			d.doneLocked(r)
		}
		h := d.handLocked()
		if h == nil && len(d.free) == d.depth {
			d.collecting = false
			if d.shut {
				d.destroyLocked()
			}
			d.mu.Unlock()
			return
		}
		d.mu.Unlock()
		d.submit(h)
		if n > 0 {
			runtime.Gosched()
		}
	}
}

// events takes what is done, waiting for the first if patience is not 0.
func (d *deepReader) events(events []ioEvent, patience time.Duration) (int, syscall.Errno) {
	timeout := unix.NsecToTimespec(int64(patience))
	least := uintptr(0)
	if patience > 0 {
		least = 1
	}
	n, _, errno := unix.Syscall6(unix.SYS_IO_GETEVENTS, d.context, least, uintptr(len(events)), uintptr(unsafe.Pointer(&events[0])), uintptr(unsafe.Pointer(&timeout)), 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}
