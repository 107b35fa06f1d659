package recovery

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

// pieces writes an image to a file piece by piece, past the page cache where the
// file system lets it, and afterwards proves that the file holds what it was given:
// it keeps a sum of each piece, 8 bytes a MiB of the volume.
//
// What reads as zeros is not written: the file was empty. A hole is grain bytes at
// least, for a file in thousands of fragments is slow for ever.
type pieces struct {
	f      *os.File
	direct *os.File // nil: not to be had
	size   int64
	grain  int64
	seed   maphash.Seed
	sums   []uint64 // by piece; 0: zeros

	mu       sync.Mutex // guards all below, and calls of progress
	done     int64
	wrote    int64
	progress func(step string, done, total int64)
}

const (
	sparseGrain = cbt.CellBytes // finest hole where holes are asked for
	denseGrain  = 64 << 10      // and where the space is allocated anyway
)

func newPieces(f *os.File, size int64, o RestoreOptions) (*pieces, error) {
	w := &pieces{f: f, size: size, grain: denseGrain, seed: maphash.MakeSeed(), progress: o.Progress}
	if o.Sparse {
		w.grain = sparseGrain
	}
	w.sums = make([]uint64, (size+journal.PieceBytes-1)/journal.PieceBytes)
	d, err := os.OpenFile(f.Name(), os.O_WRONLY|unix.O_DIRECT, 0)
	switch {
	case err == nil:
		w.direct = d
	case !errors.Is(err, unix.EINVAL): // a file system without
		return nil, err
	}
	return w, nil
}

func (w *pieces) close() error {
	if w.direct == nil {
		return nil
	}
	return w.direct.Close()
}

// put takes a piece; several goroutines do at once.
func (w *pieces) put(e cbt.Extent, p []byte) error {
	var wrote int64
	if p != nil {
		w.sums[e.Offset/journal.PieceBytes] = w.sumOf(p)
		var err error
		if wrote, err = w.writeGrains(p, e.Offset); err != nil {
			return err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done, w.wrote = w.done+e.Length, w.wrote+wrote
	w.progress("write", w.done, w.size)
	return nil
}

// sumOf is never 0.
func (w *pieces) sumOf(p []byte) uint64 { return max(maphash.Bytes(w.seed, p), 1) }

// writeGrains writes what of p, at off, does not read as zeros, and says how much
// that was.
func (w *pieces) writeGrains(p []byte, off int64) (int64, error) {
	var wrote int64
	for from := int64(0); from < int64(len(p)); {
		to := min(int64(len(p)), from+w.grain)
		if zeros(p[from:to]) {
			from = to
			continue
		}
		for to < int64(len(p)) {
			next := min(int64(len(p)), to+w.grain)
			if zeros(p[to:next]) {
				break
			}
			to = next
		}
		if err := w.writeAt(p[from:to], off+from); err != nil {
			return wrote, err
		}
		wrote += to - from
		from = to
	}
	return wrote, nil
}

// writeAt writes whole pages past the page cache, and what is left of the last one
// through it.
func (w *pieces) writeAt(p []byte, off int64) error {
	if w.direct != nil {
		n := len(p) &^ (cbt.CellBytes - 1)
		_, err := w.direct.WriteAt(p[:n], off)
		if err == nil {
			p, off = p[n:], off+int64(n)
		} else if !errors.Is(err, unix.EINVAL) { // larger blocks than ours
			return err
		}
	}
	if len(p) == 0 {
		return nil
	}
	_, err := w.f.WriteAt(p, off)
	return err
}

func zeros(p []byte) bool { return bytes.Equal(p, zeroBytes[:len(p)]) }

// compare reads the file back and sums it, piece by piece and as a whole.
func (w *pieces) compare(ctx context.Context) (string, error) {
	sum := sha256.New()
	buf := make([]byte, journal.PieceBytes)
	for i := range w.sums {
		if err := ctx.Err(); err != nil {
			return "", context.Cause(ctx)
		}
		off := int64(i) * journal.PieceBytes
		p := buf[:min(journal.PieceBytes, w.size-off)]
		if _, err := io.ReadFull(io.NewSectionReader(w.f, off, int64(len(p))), p); err != nil {
			return "", err
		}
		if w.sums[i] == 0 && !zeros(p) || w.sums[i] != 0 && w.sumOf(p) != w.sums[i] {
			return "", fmt.Errorf("%w: in %v", ErrDiffers, cbt.Extent{Offset: off, Length: int64(len(p))})
		}
		sum.Write(p)
		w.progress("verify", off+int64(len(p)), w.size)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
