package journal

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// DirectFile is a file of Options.FS past which frames may go to the kernel, though
// the file system is not the operating system's own: WriteAt and SyncData do not see
// them.
type DirectFile interface {
	vfs.File
	// Passed is told of n bytes that are handed over, to be written and synced at once.
	Passed(n int64)
}

// deepWriter has the kernel write frames and make them durable (io_submit(2), with
// RWF_DSYNC) while no thread waits in a call: one that does holds a processor of the
// scheduler until that is taken from it, and on two cores those are all there are. An
// eventfd, which the runtime polls as it does sockets, tells that one is done.
//
// One goroutine begins writes and one waits for them. A buffer belongs to the kernel
// until its write is done: wait never returns before.
type deepWriter struct {
	once    sync.Once
	context uintptr // of io_setup; 0: refused
	event   int     // eventfd
	done    *os.File

	mu   sync.Mutex // guards slots and what they hold
	slot [maxFlights]*deepWrite
}

// deepWrite is a frame that the kernel has.
type deepWrite struct {
	file vfs.File
	buf  []byte
	off  int64
	res  int64
	over bool
}

// passes reports that frames may go to the kernel past f.
func passes(fs vfs.FS, f vfs.File) bool {
	_, ok := f.(DirectFile)
	return ok || fs == vfs.Default
}

func (d *deepWriter) open() {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return
	}
	d.event, d.done = fd, os.NewFile(uintptr(fd), "eventfd")
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, maxFlights, uintptr(unsafe.Pointer(&d.context)), 0); errno != 0 {
		d.context = 0
	}
}

// close gives the context back. Nothing is under way.
func (d *deepWriter) close() {
	d.once.Do(func() {}) // it is not opened any more
	if d.context != 0 {
		_, _, _ = unix.Syscall(unix.SYS_IO_DESTROY, d.context, 0, 0) // nothing is under way
		d.context = 0
	}
	if d.done != nil {
		_ = d.done.Close() // nothing is written to it
	}
}

const (
	iocbPwrite = 1
	iocbResfd  = 1
)

// begin hands whole pages to the kernel; nil where it does not take them.
func (d *deepWriter) begin(f vfs.File, buf []byte, off int64) *deepWrite {
	d.once.Do(d.open)
	if d.context == 0 {
		return nil
	}
	w := &deepWrite{file: f, buf: buf, off: off}
	d.mu.Lock()
	at := 0
	for d.slot[at] != nil { // there are as many as flights
		at++
	}
	d.slot[at] = w
	d.mu.Unlock()
	cb := &iocb{
		data: uint64(at), rwFlags: unix.RWF_DSYNC, opcode: iocbPwrite, fd: uint32(f.Fd()), offset: off,
		buf: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(buf)))), bytes: uint64(len(buf)), flags: iocbResfd, resfd: uint32(d.event),
	}
	for {
		_, _, errno := unix.Syscall(unix.SYS_IO_SUBMIT, d.context, 1, uintptr(unsafe.Pointer(&cb)))
		if errno == syscall.EINTR {
			continue
		}
		if errno != 0 {
			d.mu.Lock()
			d.slot[at] = nil
			d.mu.Unlock()
			return nil
		}
		if p, ok := f.(DirectFile); ok {
			p.Passed(int64(len(buf)))
		}
		return w
	}
}

// wait returns when w is durable, or why it is not.
func (d *deepWriter) wait(w *deepWrite) error {
	var count [8]byte
	for !d.reap(w) {
		if _, err := d.done.Read(count[:]); err != nil {
			// The memory that the kernel may still read must not be given back.
			panic(fmt.Sprintf("journal: wait for a frame: %v", err))
		}
	}
	switch errno := syscall.Errno(-w.res); {
	case w.res == int64(len(w.buf)):
		return nil
	case w.res >= 0, errno == syscall.EINVAL, errno == syscall.EOPNOTSUPP, errno == syscall.EAGAIN, errno == syscall.EINTR:
		// Cut short, not to be had in this way, or not begun: no sync has failed.
		err := writeDirect(w.file, w.buf, w.off)
		return errors.Join(err, w.file.SyncData())
	default:
		return errno
	}
}

// reap takes note of what is done, and reports whether w is.
func (d *deepWriter) reap(w *deepWrite) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if w.over {
		return true
	}
	var events [maxFlights]ioEvent
	var none unix.Timespec
	n, _, errno := unix.Syscall6(unix.SYS_IO_GETEVENTS, d.context, 0, maxFlights, uintptr(unsafe.Pointer(&events[0])), uintptr(unsafe.Pointer(&none)), 0)
	if errno == syscall.EINTR {
		n = 0
	} else if errno != 0 {
		panic(fmt.Sprintf("journal: io_getevents: %v", errno)) // as in wait
	}
	for _, e := range events[:n] {
		o := d.slot[e.data]
		o.res, o.over = e.res, true
		d.slot[e.data] = nil
	}
	return w.over
}
