package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Linux native asynchronous I/O (io_submit(2)), for the baselines alone: it shares
// no code with what it is compared with.
const (
	iocbRead  = 0
	iocbWrite = 1
)

// iocb and ioEvent are struct iocb and struct io_event of linux/aio_abi.h, for
// little-endian machines.
type iocb struct {
	data   uint64
	_      uint32 // key
	_      uint32 // flags of this operation
	opcode uint16
	_      int16 // priority
	fd     uint32
	buf    uint64
	bytes  uint64
	offset int64
	_      uint64 // reserved
	_      uint32 // flags
	_      uint32 // eventfd
}

type ioEvent struct {
	data uint64
	obj  uint64
	res  int64
	res2 int64
}

// ring is a queue of up to depth operations, each with its slot and buffer. One
// goroutine uses it.
type ring struct {
	ctx    uint64
	cbs    []iocb
	bufs   [][]byte
	events []ioEvent
	memory []byte
}

func newRing(depth, bufBytes int) (*ring, error) {
	r := &ring{cbs: make([]iocb, depth), events: make([]ioEvent, depth)}
	if _, _, e := unix.Syscall(unix.SYS_IO_SETUP, uintptr(depth), uintptr(unsafe.Pointer(&r.ctx)), 0); e != 0 {
		return nil, fmt.Errorf("set up asynchronous I/O: %w", e)
	}
	var err error
	if r.memory, err = aligned(depth * bufBytes); err != nil {
		return nil, errors.Join(err, r.close())
	}
	for i := range depth {
		r.bufs = append(r.bufs, r.memory[i*bufBytes:(i+1)*bufBytes])
	}
	return r, nil
}

func (r *ring) close() error {
	var err error
	if _, _, e := unix.Syscall(unix.SYS_IO_DESTROY, uintptr(r.ctx), 0, 0); e != 0 {
		err = e
	}
	if r.memory != nil {
		err = errors.Join(err, unix.Munmap(r.memory))
	}
	return err
}

// submit begins an operation on slot's buffer.
func (r *ring) submit(slot int, op uint16, f *os.File, n int, off int64) error {
	r.cbs[slot] = iocb{data: uint64(slot), opcode: op, fd: uint32(f.Fd()), buf: uint64(uintptr(unsafe.Pointer(&r.bufs[slot][0]))), bytes: uint64(n), offset: off}
	cb := &r.cbs[slot]
	for {
		_, _, e := unix.Syscall(unix.SYS_IO_SUBMIT, uintptr(r.ctx), 1, uintptr(unsafe.Pointer(&cb)))
		switch e {
		case 0:
			return nil
		case unix.EINTR, unix.EAGAIN:
			continue
		}
		return fmt.Errorf("submit: %w", e)
	}
}

// wait returns at least one finished operation; all must have moved n bytes.
func (r *ring) wait(n int) ([]ioEvent, error) {
	for {
		got, _, e := unix.Syscall6(unix.SYS_IO_GETEVENTS, uintptr(r.ctx), 1, uintptr(len(r.events)), uintptr(unsafe.Pointer(&r.events[0])), 0, 0)
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			return nil, fmt.Errorf("wait for I/O: %w", e)
		}
		for _, ev := range r.events[:got] {
			if ev.res < 0 {
				return nil, unix.Errno(-ev.res)
			}
			if ev.res != int64(n) {
				return nil, fmt.Errorf("moved %d of %d bytes", ev.res, n)
			}
		}
		return r.events[:got], nil
	}
}

const cellBytes = 4096

// rawReads reads random cells of the file at path at a queue depth, until the time
// is over or each of cells has been read once. check sees every cell.
func (d disk) rawReads(ctx context.Context, path string, cells []int64, depth int, span time.Duration, check func(cell int64, p []byte) error) (round, error) {
	f, err := d.open(path, os.O_RDONLY)
	if err != nil {
		return round{}, err
	}
	defer f.Close()
	r, err := newRing(depth, cellBytes)
	if err != nil {
		return round{}, err
	}
	defer r.close()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var out round
	cell, begun := make([]int64, depth), make([]time.Time, depth)
	next, flying := 0, 0
	start := time.Now()
	begin := func(slot int) error {
		if next == len(cells) || time.Since(start) > span || ctx.Err() != nil {
			return nil
		}
		cell[slot], begun[slot] = cells[next], time.Now()
		next++
		flying++
		return r.submit(slot, iocbRead, f, cellBytes, cell[slot]*cellBytes)
	}
	for slot := range depth {
		if err := begin(slot); err != nil {
			return out, err
		}
	}
	for flying > 0 {
		done, err := r.wait(cellBytes)
		if err != nil {
			return out, err
		}
		for _, ev := range done {
			slot := int(ev.data)
			flying--
			out.laps = append(out.laps, time.Since(begun[slot]))
			out.ops++
			out.bytes += cellBytes
			if err := check(cell[slot], r.bufs[slot]); err != nil {
				return out, err
			}
			if err := begin(slot); err != nil {
				return out, err
			}
		}
	}
	out.took = time.Since(start)
	return out, ctx.Err()
}

// rawCopy copies a file in pieces of 1 MiB, eight at a time, and syncs the copy.
func (d disk) rawCopy(ctx context.Context, from, to string, size int64) (round, error) {
	const piece, depth = 1 << 20, 8
	start := time.Now()
	src, err := d.open(from, os.O_RDONLY)
	if err != nil {
		return round{}, err
	}
	defer src.Close()
	dst, err := d.open(to, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return round{}, err
	}
	defer dst.Close()
	if err := unix.Fallocate(int(dst.Fd()), 0, 0, size); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return round{}, fmt.Errorf("allocate %s: %w", to, err)
	}
	r, err := newRing(depth, piece)
	if err != nil {
		return round{}, err
	}
	defer r.close()
	at, writing := make([]int64, depth), make([]bool, depth)
	next, flying := int64(0), 0
	begin := func(slot int) error {
		if next >= size || ctx.Err() != nil {
			return nil
		}
		at[slot], writing[slot] = next, false
		next += piece
		flying++
		return r.submit(slot, iocbRead, src, piece, at[slot])
	}
	for slot := range depth {
		if err := begin(slot); err != nil {
			return round{}, err
		}
	}
	for flying > 0 {
		done, err := r.wait(piece)
		if err != nil {
			return round{}, err
		}
		for _, ev := range done {
			slot := int(ev.data)
			if !writing[slot] {
				writing[slot] = true
				err = r.submit(slot, iocbWrite, dst, piece, at[slot])
			} else {
				flying--
				err = begin(slot)
			}
			if err != nil {
				return round{}, err
			}
		}
	}
	if err := dst.Sync(); err != nil {
		return round{}, err
	}
	return round{bytes: size, ops: int(size / piece), took: time.Since(start)}, ctx.Err()
}

// shuffled is the numbers below n in a random order.
func shuffled(rng *rand.Rand, n int64) []int64 {
	out := make([]int64, n)
	for i := range out {
		out[i] = int64(i)
	}
	rng.Shuffle(len(out), func(a, b int) { out[a], out[b] = out[b], out[a] })
	return out
}
