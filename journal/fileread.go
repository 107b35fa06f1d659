package journal

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// Files of history are read past the page cache, which the guests and the index
// need more: each of their own accord keeps what it reads often. Only the segment
// that is being written through the page cache is read there, for a direct read
// would have to write it back first. Both see the same bytes: frames begin and end
// at page boundaries, so no page is ever written twice in one life of a segment,
// and the kernel writes back and drops cached pages before a direct access.

// directFile is a second descriptor of a file, for reads past the page cache.
type directFile struct {
	once sync.Once
	fd   int // -1: not to be had
}

// Close closes f and its second descriptor.
func (f *openSegment) Close() error {
	f.direct.once.Do(func() { f.direct.fd = -1 })
	var err error
	if f.direct.fd >= 0 {
		err = unix.Close(f.direct.fd)
	}
	return errors.Join(err, f.File.Close())
}

// directOf is f's descriptor for reads past the page cache, or -1: where it has
// none, and on every file system but the operating system's, which is a test's.
func (s *segments) directOf(f *openSegment) int {
	f.direct.once.Do(func() {
		f.direct.fd = -1
		if s.fs != vfs.Default || f.Fd() == vfs.InvalidFd {
			return
		}
		fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
		if err == nil {
			f.direct.fd = fd
		}
	})
	return f.direct.fd
}

// fileRead is one read of whole pages of a file.
type fileRead struct {
	id   fileID
	set  *segments
	file *openSegment
	mem  *pages // what buf lies in; nil if it is the reader's own
	disk diskRead
}

// readPages does rs, deep. Each has its own error; one that ends early only got less.
func (j *Journal) readPages(queue *deepReader, rs []fileRead, scratch []*diskRead) []*diskRead {
	deep := scratch[:0]
	for i := range rs {
		r := &rs[i]
		r.set = j.filesOf(r.id)
		if r.file, r.disk.err = r.set.acquire(r.id.number()); r.disk.err != nil {
			continue
		}
		live := !r.id.isRun() && r.id.number() == j.segs.live.Load()
		if r.disk.fd = r.set.directOf(r.file); r.disk.fd < 0 || (live && j.o.Sync == SyncProcess) {
			r.plain()
			continue
		}
		deep = append(deep, &r.disk)
	}
	queue.read(deep)
	for i := range rs {
		r := &rs[i]
		if r.file == nil {
			continue
		}
		if r.disk.err != nil {
			r.plain() // the kernel may refuse the way, not the bytes
		}
		r.set.release(r.file)
		r.file = nil
	}
	return deep
}

func (r *fileRead) plain() {
	r.disk.got, r.disk.err = r.file.ReadAt(r.disk.buf, r.disk.off)
	if errors.Is(r.disk.err, io.EOF) {
		r.disk.err = nil
	}
}

func (j *Journal) filesOf(f fileID) *segments {
	if f.isRun() {
		return j.runs
	}
	return j.segs
}
