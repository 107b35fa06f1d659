package recovery

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/cbt"
)

// Format of a restored file.
type Format string

// Formats. QCOW2 needs qemu-img.
const (
	Raw   Format = "raw"
	QCOW2 Format = "qcow2"
)

// RestoreOptions say how; the zero value writes a raw file whose space is
// allocated, to a target that must not exist.
type RestoreOptions struct {
	Sparse    bool   // leave holes where the image reads as zeros
	Format    Format // default Raw
	Overwrite bool   // replace a regular file
	// Progress, which may be nil, hears how many of the volume's bytes a step
	// ("write", "verify") has done.
	Progress func(step string, done, total int64)
}

func (o RestoreOptions) withDefaults() RestoreOptions {
	if o.Format == "" {
		o.Format = Raw
	}
	if o.Progress == nil {
		o.Progress = func(string, int64, int64) {}
	}
	return o
}

// Restored is what a restore wrote and proved.
type Restored struct {
	Path   string `json:"path"`
	Format Format `json:"format"`
	Bytes  int64  `json:"bytes"`      // of the volume
	Data   int64  `json:"data_bytes"` // written, the rest reads as zeros; raw only
	SHA256 string `json:"sha256"`     // of the volume's content
}

const copyBytes = 1 << 20

// Restore writes volume v of view to target. The file is made under another name
// in the same directory, synced, read back and compared with the view, and only
// then named target; when ctx ends or anything fails, nothing of it is left.
func Restore(ctx context.Context, view Image, v cbt.Volume, target string, o RestoreOptions) (r Restored, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("restore volume %s to %s: %w", v.Name, target, err)
		}
	}()
	o = o.withDefaults()
	if err := admissible(target, o.Overwrite); err != nil {
		return Restored{}, err
	}
	dir := filepath.Dir(target)
	f, err := os.CreateTemp(dir, "."+filepath.Base(target)+".part-*")
	if err != nil {
		return Restored{}, err
	}
	named := false
	defer func() {
		cerr := f.Close()
		if !named {
			cerr = errors.Join(cerr, os.Remove(f.Name()))
		}
		err = errors.Join(err, cerr)
	}()
	r = Restored{Path: target, Format: o.Format, Bytes: v.Size}
	switch o.Format {
	case Raw:
		err = restoreRaw(ctx, view, v, f, o, &r)
	case QCOW2:
		err = restoreQCOW2(ctx, view, v, f.Name(), o, &r)
	default:
		err = fmt.Errorf("format %q is neither %s nor %s", o.Format, Raw, QCOW2)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return Restored{}, err
	}
	if err := rename(f.Name(), target, o.Overwrite); err != nil {
		return Restored{}, err
	}
	named = true
	return r, syncDir(dir)
}

// admissible says early what rename would say late.
func admissible(target string, overwrite bool) error {
	fi, err := os.Lstat(target)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !fi.Mode().IsRegular():
		return ErrNotRegular
	case !overwrite:
		return ErrExists
	}
	return nil
}

// rename gives a finished file its name; without overwrite it never replaces what
// has come there meanwhile.
func rename(from, to string, overwrite bool) error {
	if overwrite {
		return os.Rename(from, to)
	}
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // not every file system can
		if err = os.Link(from, to); err == nil {
			err = os.Remove(from)
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return ErrExists
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// restoreRaw writes v to the empty file f, syncs it and compares it.
func restoreRaw(ctx context.Context, view Image, v cbt.Volume, f *os.File, o RestoreOptions, r *Restored) error {
	if err := f.Truncate(v.Size); err != nil {
		return err
	}
	if !o.Sparse {
		if err := unix.Fallocate(int(f.Fd()), 0, 0, v.Size); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("allocate %d bytes: %w", v.Size, err)
		}
	}
	w, err := newPieces(f, v.Size, o)
	if err != nil {
		return err
	}
	err = view.Materialize(ctx, v.ID, w.put)
	if err = errors.Join(err, w.close()); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	r.Data = w.wrote
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // so that the disk answers; advice only
	r.SHA256, err = w.compare(ctx)
	return err
}

// eachPiece goes over v in pieces of at most copyBytes that are data or zeros.
func eachPiece(ctx context.Context, view Image, v cbt.Volume, f func(e cbt.Extent, data bool) error) error {
	for at := int64(0); at < v.Size; {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		runs, err := view.Status(ctx, v.ID, cbt.Extent{Offset: at, Length: min(copyBytes, v.Size-at)})
		if err != nil {
			return err
		}
		before := at
		for _, r := range runs {
			if err := f(r.Extent, r.Data); err != nil {
				return err
			}
			at = r.End()
		}
		if at == before {
			return fmt.Errorf("the view tells nothing about byte %d", at)
		}
	}
	return nil
}
