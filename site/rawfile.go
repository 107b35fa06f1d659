package site

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/site/control"
)

const (
	copyBytes  = 4 << 20 // read from a view at once
	grainBytes = 4 << 10 // finest hole of a sparse file
)

// restoreRaw writes volume v of view to f, syncs it, reads it back past the page
// cache as far as the kernel lets go of it, and compares.
func restoreRaw(ctx context.Context, view image, v cbt.Volume, f *os.File, sparse bool, out *control.RestoredFile, progress func(control.Progress)) error {
	if err := allocate(f, v.Size, sparse); err != nil {
		return err
	}
	sum := sha256.New()
	buf := make([]byte, copyBytes)
	for at := int64(0); at < v.Size; {
		piece := cbt.Extent{Offset: at, Length: min(copyBytes, v.Size-at)}
		runs, err := view.Status(ctx, v.ID, piece)
		if err != nil {
			return err
		}
		for _, r := range runs {
			p := buf[:r.Length]
			if !r.Data {
				clear(p)
			} else {
				if err := view.ReadAt(ctx, v.ID, p, r.Offset); err != nil {
					return err
				}
				n, err := writeGrains(f, p, r.Offset)
				if err != nil {
					return err
				}
				out.Data += n
			}
			sum.Write(p)
		}
		at += piece.Length
		progress(control.Progress{Step: step("write", v), Done: at, Total: v.Size})
	}
	if err := f.Sync(); err != nil {
		return err
	}
	out.SHA256 = hex.EncodeToString(sum.Sum(nil))
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // advice: reading back must work without
	back, err := sumOf(ctx, f, v, progress)
	if err != nil {
		return err
	}
	if back != out.SHA256 {
		return differs(f.Name(), out.SHA256, back)
	}
	out.Verified = true
	return nil
}

// allocate gives f its size: with every byte allocated, or as one hole.
func allocate(f *os.File, size int64, sparse bool) error {
	if sparse {
		return f.Truncate(size)
	}
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if !errors.Is(err, unix.EOPNOTSUPP) {
		if err != nil {
			err = &fs.PathError{Op: "allocate", Path: f.Name(), Err: err}
		}
		return err
	}
	for at := int64(0); at < size; {
		n := min(int64(len(zeroes)), size-at)
		if _, err := f.WriteAt(zeroes[:n], at); err != nil {
			return err
		}
		at += n
	}
	return nil
}

// writeGrains writes what of p is not zero, in as long pieces as there are, and
// reports how many bytes that was. f reads as zeros where nothing is written.
func writeGrains(f io.WriterAt, p []byte, off int64) (written int64, err error) {
	zero := func(i int) bool {
		g := p[i:min(i+grainBytes, len(p))]
		return bytes.Equal(g, zeroes[:len(g)])
	}
	for i := 0; i < len(p); {
		if zero(i) {
			i += grainBytes
			continue
		}
		end := i
		for end < len(p) && !zero(end) {
			end += grainBytes
		}
		end = min(end, len(p))
		n, err := f.WriteAt(p[i:end], off+int64(i))
		written += int64(n)
		if err != nil {
			return written, err
		}
		i = end
	}
	return written, nil
}

// sumOf is the SHA-256 of f, which must be as long as v.
func sumOf(ctx context.Context, f *os.File, v cbt.Volume, progress func(control.Progress)) (string, error) {
	var sum hash.Hash = sha256.New()
	buf := make([]byte, copyBytes)
	for at := int64(0); at < v.Size; {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		n, err := f.ReadAt(buf[:min(copyBytes, v.Size-at)], at)
		if err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
		if n == 0 {
			break
		}
		sum.Write(buf[:n])
		at += int64(n)
		progress(control.Progress{Step: step("verify", v), Done: at, Total: v.Size})
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// settle gives a finished file its name; without overwrite a file that came in
// the meantime is left alone.
func settle(from, to string, overwrite bool) error {
	if overwrite {
		return os.Rename(from, to)
	}
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		if err := os.Link(from, to); err != nil { // file systems without the flag
			return err
		}
		return os.Remove(from)
	case err != nil:
		return &fs.PathError{Op: "rename", Path: to, Err: err}
	}
	return nil
}
