package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
)

// Base is what a scratch disk lies over; every nbd.Device is one.
type Base interface {
	ReadAt(ctx context.Context, p []byte, off int64) error
	Status(ctx context.Context, e cbt.Extent) ([]nbd.StatusExtent, error)
}

// Scratch is a writable disk over a read-only one. What is written lies in a sparse
// file without a name and is forgotten with it: nothing survives Close or our
// process, so FLUSH and FUA promise nothing. Memory is two bits for each 4 KiB cell
// of the gibibytes that were written to: at most 64 MiB a TiB. It is safe for
// concurrent use.
type Scratch struct {
	base Base
	size int64
	file *os.File

	mu    sync.RWMutex // guards cells, and orders changes of file with them
	cells cellMap
}

var _ nbd.Device = (*Scratch)(nil)

// NewScratch lays a scratch disk over base, which has size bytes; its file is made
// in dir.
func NewScratch(base Base, size int64, dir string) (*Scratch, error) {
	if size <= 0 {
		return nil, fmt.Errorf("make scratch disk of %d bytes: %w", size, syscall.EINVAL)
	}
	f, err := os.CreateTemp(dir, ".scratch-*")
	if err != nil {
		return nil, fmt.Errorf("make scratch disk: %w", err)
	}
	if err := errors.Join(os.Remove(f.Name()), f.Truncate(size)); err != nil {
		return nil, errors.Join(fmt.Errorf("make scratch disk: %w", err), f.Close())
	}
	return &Scratch{base: base, size: size, file: f, cells: newCellMap(size)}, nil
}

// Close forgets what was written. No other call may be under way.
func (s *Scratch) Close() error { return s.file.Close() }

// pieces splits e by where it is to be read from.
func (s *Scratch) pieces(e cbt.Extent, each func(cbt.Extent, cellState) error) error {
	end := (e.End() + cbt.CellBytes - 1) / cbt.CellBytes
	for cell := e.Offset / cbt.CellBytes; cell < end; {
		state, next := s.cells.run(cell, end)
		from, to := max(e.Offset, cell*cbt.CellBytes), min(e.End(), next*cbt.CellBytes)
		if err := each(cbt.Extent{Offset: from, Length: to - from}, state); err != nil {
			return err
		}
		cell = next
	}
	return nil
}

// ReadAt implements nbd.Device.
func (s *Scratch) ReadAt(ctx context.Context, p []byte, off int64) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.readLocked(ctx, p, off)
}

func (s *Scratch) readLocked(ctx context.Context, p []byte, off int64) error {
	return s.pieces(cbt.Extent{Offset: off, Length: int64(len(p))}, func(e cbt.Extent, state cellState) error {
		part := p[e.Offset-off : e.End()-off]
		switch state {
		case cellBelow:
			return s.base.ReadAt(ctx, part, e.Offset)
		case cellZero:
			clear(part)
			return nil
		}
		_, err := s.file.ReadAt(part, e.Offset)
		return err
	})
}

// WriteAt implements nbd.Device.
func (s *Scratch) WriteAt(ctx context.Context, p []byte, off int64, _ bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := cbt.Extent{Offset: off, Length: int64(len(p))}
	if err := s.own(ctx, e); err != nil {
		return err
	}
	if _, err := s.file.WriteAt(p, off); err != nil {
		return noRoom(err)
	}
	s.cells.set(e.Offset/cbt.CellBytes, (e.End()+cbt.CellBytes-1)/cbt.CellBytes, cellWritten)
	return nil
}

// own copies the cells that e covers in part into the file, so that they may be
// written in part.
func (s *Scratch) own(ctx context.Context, e cbt.Extent) error {
	first, last := e.Offset/cbt.CellBytes, (e.End()-1)/cbt.CellBytes
	if err := s.ownCell(ctx, first, e); err != nil || first == last {
		return err
	}
	return s.ownCell(ctx, last, e)
}

func (s *Scratch) ownCell(ctx context.Context, cell int64, e cbt.Extent) error {
	from := cell * cbt.CellBytes
	to := min(from+cbt.CellBytes, s.size)
	if s.cells.get(cell) != cellBelow || e.Offset <= from && e.End() >= to {
		return nil // a cell of zeros is a hole in the file: nothing to copy
	}
	buf := make([]byte, to-from)
	if err := s.base.ReadAt(ctx, buf, from); err != nil {
		return err
	}
	if _, err := s.file.WriteAt(buf, from); err != nil {
		return noRoom(err)
	}
	s.cells.set(cell, cell+1, cellWritten)
	return nil
}

// whole is the cells that lie in e entirely; the last one of the disk may be short.
func (s *Scratch) whole(e cbt.Extent) (first, end int64) {
	first, end = (e.Offset+cbt.CellBytes-1)/cbt.CellBytes, e.End()/cbt.CellBytes
	if e.End() == s.size {
		end = (s.size + cbt.CellBytes - 1) / cbt.CellBytes
	}
	return first, max(first, end)
}

// Zero implements nbd.Device.
func (s *Scratch) Zero(ctx context.Context, e cbt.Extent, _, noHole bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.own(ctx, e); err != nil {
		return err
	}
	if err := clearRange(s.file, e, noHole); err != nil {
		return noRoom(err)
	}
	first, end := s.whole(e)
	state := cellZero
	if noHole {
		state = cellWritten
	}
	s.cells.set(first, end, state)
	for _, cell := range [2]int64{e.Offset / cbt.CellBytes, (e.End() - 1) / cbt.CellBytes} {
		if cell < first || cell >= end { // covered in part: it has bytes of its own
			s.cells.set(cell, cell+1, cellWritten)
		}
	}
	return nil
}

// Trim implements nbd.Device: whole cells read as zeros afterwards, others keep
// what they hold.
func (s *Scratch) Trim(_ context.Context, e cbt.Extent, _ bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	first, end := s.whole(e)
	if first == end {
		return nil
	}
	from, to := first*cbt.CellBytes, min(end*cbt.CellBytes, s.size)
	if err := clearRange(s.file, cbt.Extent{Offset: from, Length: to - from}, false); err != nil {
		return noRoom(err)
	}
	s.cells.set(first, end, cellZero)
	return nil
}

// Flush implements nbd.Device.
func (s *Scratch) Flush(context.Context) error { return nil }

// Status implements nbd.Device.
func (s *Scratch) Status(ctx context.Context, e cbt.Extent) ([]nbd.StatusExtent, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []nbd.StatusExtent
	err := s.pieces(e, func(e cbt.Extent, state cellState) error {
		if state != cellBelow {
			out = append(out, nbd.StatusExtent{Length: e.Length, Hole: state == cellZero, Zero: state == cellZero})
			return nil
		}
		below, err := s.base.Status(ctx, e)
		if err != nil {
			return err
		}
		told := int64(0)
		for _, b := range below {
			told += b.Length
		}
		out = append(out, below...)
		if told < e.Length {
			return errToldLess
		}
		return nil
	})
	if errors.Is(err, errToldLess) {
		err = nil
	}
	return out, err
}

// errToldLess ends an answer early, which the protocol allows.
var errToldLess = errors.New("the layer below told less than all")

// zeroBytes is written where a file system knows no holes.
var zeroBytes [1 << 20]byte

// clearRange makes e of f read as zeros; hole says whether its space is given back.
func clearRange(f *os.File, e cbt.Extent, noHole bool) error {
	mode := uint32(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
	if noHole {
		mode = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
	}
	err := unix.Fallocate(int(f.Fd()), mode, e.Offset, e.Length)
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	for at := e.Offset; at < e.End(); {
		n := min(int64(len(zeroBytes)), e.End()-at)
		if _, err := f.WriteAt(zeroBytes[:n], at); err != nil {
			return err
		}
		at += n
	}
	return nil
}

// noRoom tells a client of a full file system in its own words.
func noRoom(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("scratch file: %w: %w", nbd.ENOSPC, err)
	}
	return err
}
