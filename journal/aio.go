package journal

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
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
//	     └─ else, or several at once ──────► queue ─► drive: io_submit ─► io_getevents ─► wake
//
// Of late matters: a pread holds its processor, so those who would read beside it do
// not come to ask, and each of them would find itself alone in its turn.
//
// drive is one goroutine that lives while requests are queued or under way; at most
// depth of them are with the kernel, the rest wait. Where the kernel has no
// asynchronous I/O to give, every read is a pread.
//
// A buffer belongs to the kernel until its read is done: read never returns before.
type deepReader struct {
	depth  int          // reads that the kernel holds at once
	inside atomic.Int32 // callers of read
	deeper atomic.Int32 // single reads to come that queue all the same

	mu      sync.Mutex // guards all below
	context uintptr    // of io_setup; 0: not yet, or refused
	refused bool
	queue   []*diskRead
	driving bool
	shut    bool

	flying []*diskRead // by slot; owned by drive
	free   []int       // slots; owned by drive
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
	if !d.driving {
		d.driving = true
		go d.drive()
	}
	d.mu.Unlock()
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
	if !d.driving {
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
	data   uint64
	_      [2]uint32 // key, flags
	_      uint32    // IOCB_CMD_PREAD is 0; priority 0
	fd     uint32
	buf    uint64
	bytes  uint64
	offset int64
	_      [2]uint64
}

type ioEvent struct {
	data, obj uint64
	res, res2 int64
}

// submission is what drive hands over at once.
type submission struct {
	cbs   [deepReads]iocb
	ptrs  [deepReads]*iocb
	slots [deepReads]int
}

// drive submits what is queued and collects what is done, until there is neither.
// Before it blocks it lets those run whom it woke: their next reads go along.
func (d *deepReader) drive() {
	var s submission
	var events [deepReads]ioEvent
	for d.submit(&s) {
		under := d.depth - len(d.free)
		if under == 0 {
			continue
		}
		n, errno := d.collect(events[:], 0)
		if n == 0 && errno == 0 {
			runtime.Gosched()
			if under < d.depth && d.waiting() {
				continue
			}
			n, errno = d.collect(events[:], 1)
		}
		if errno != 0 && errno != syscall.EINTR {
			// The context is ours and the arguments are right. The memory that the kernel
			// may still write to must not be given back.
			panic(fmt.Sprintf("journal: io_getevents: %v", errno))
		}
		for _, e := range events[:n] {
			r := d.flying[e.data]
			if e.res < 0 {
				r.err = syscall.Errno(-e.res)
			} else {
				r.got = int(e.res)
			}
			d.done(int(e.data))
		}
		if n > 0 {
			runtime.Gosched()
		}
	}
}

func (d *deepReader) waiting() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.queue) > 0
}

// submit hands queued reads to the kernel; false, once none is queued or under way,
// ends the driving.
func (d *deepReader) submit(s *submission) bool {
	d.mu.Lock()
	n := min(len(d.queue), len(d.free))
	if n == 0 && len(d.free) == d.depth {
		d.driving = false
		if d.shut {
			d.destroyLocked()
		}
		d.mu.Unlock()
		return false
	}
	for i, r := range d.queue[:n] {
		slot := d.free[len(d.free)-1-i]
		d.flying[slot], s.slots[i] = r, slot
		s.cbs[i] = iocb{data: uint64(slot), fd: uint32(r.fd), buf: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(r.buf)))), bytes: uint64(len(r.buf)), offset: r.off}
		s.ptrs[i] = &s.cbs[i]
	}
	d.free = d.free[:len(d.free)-n]
	d.queue = append(d.queue[:0], d.queue[n:]...)
	d.mu.Unlock()
	for i := 0; i < n; {
		got, _, errno := unix.Syscall(unix.SYS_IO_SUBMIT, d.context, uintptr(n-i), uintptr(unsafe.Pointer(&s.ptrs[i])))
		switch errno {
		case 0:
			i += int(got)
		case syscall.EINTR:
		default: // the first of them is refused: it is read in the plain way
			r := d.flying[s.slots[i]]
			r.plain()
			d.done(s.slots[i])
			i++
		}
	}
	return true
}

func (d *deepReader) collect(events []ioEvent, least int) (int, syscall.Errno) {
	var none unix.Timespec
	timeout := unsafe.Pointer(&none)
	if least > 0 {
		timeout = nil
	}
	n, _, errno := unix.Syscall6(unix.SYS_IO_GETEVENTS, d.context, uintptr(least), uintptr(len(events)), uintptr(unsafe.Pointer(&events[0])), uintptr(timeout), 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// done frees a slot and wakes its reader if it was the last of its group.
func (d *deepReader) done(slot int) {
	r := d.flying[slot]
	d.flying[slot] = nil
	d.free = append(d.free, slot)
	if g := r.wait; g.left.Add(-1) == 0 {
		g.wake <- struct{}{}
	}
}
