package archive

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// Directory is a Store in a directory. Nothing outside it is ever touched,
// whatever names and symbolic links there are.
type Directory struct{ root *os.Root }

var _ Store = (*Directory)(nil)

// temporary is what files that are being written begin with. CheckName refuses
// such names, and a crash leaves at most what was under way.
const temporary = ".put-"

// OpenDirectory opens a directory, which must exist, as a Store.
func OpenDirectory(dir string) (*Directory, error) {
	r, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	return &Directory{r}, nil
}

// Close frees the directory.
func (d *Directory) Close() error { return d.root.Close() }

// Put implements Store: a temporary file is written, synced and renamed, and the
// directories on the way are synced.
func (d *Directory) Put(ctx context.Context, name string, data []byte) error {
	if err := d.ask(ctx, name); err != nil {
		return fmt.Errorf("put: %w", err)
	}
	dir := path.Dir(name)
	if err := d.makeDirs(dir); err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	temp := path.Join(dir, temporary+rand.Text())
	err := d.write(temp, data)
	if err == nil {
		err = d.root.Rename(temp, name)
	}
	if err != nil {
		return fmt.Errorf("put %s: %w", name, errors.Join(err, d.remove(temp)))
	}
	if err := d.syncDir(dir); err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	return nil
}

func (d *Directory) ask(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	return CheckName(name)
}

func (d *Directory) write(name string, data []byte) error {
	f, err := d.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// makeDirs makes dir and its parents; each new one is synced into its parent.
func (d *Directory) makeDirs(dir string) error {
	if dir == "." {
		return nil
	}
	if _, err := d.root.Stat(dir); err == nil {
		return nil
	}
	if err := d.makeDirs(path.Dir(dir)); err != nil {
		return err
	}
	if err := d.root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return d.syncDir(path.Dir(dir))
}

func (d *Directory) syncDir(dir string) error {
	f, err := d.root.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (d *Directory) remove(name string) error {
	if err := d.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Get implements Store.
func (d *Directory) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	if err := d.ask(ctx, name); err != nil {
		return nil, fmt.Errorf("get: %w", err)
	}
	f, err := d.root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("get %s: %w", name, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", name, err)
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("get %s: %w", name, err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("get %s: %w", name, ErrNotFound)
	case info.Size() > limit:
		return nil, fmt.Errorf("get %s: %d bytes: %w", name, info.Size(), ErrTooLarge)
	}
	b := make([]byte, info.Size())
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, fmt.Errorf("get %s: %w", name, err)
	}
	return b, nil
}

// List implements Store.
func (d *Directory) List(ctx context.Context, prefix string) ([]string, error) {
	var names []string
	err := fs.WalkDir(d.root.FS(), ".", func(p string, e fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, fs.ErrNotExist): // removed meanwhile
			return nil
		case err != nil:
			return err
		case e.IsDir() && p != "." && !strings.HasPrefix(p, prefix) && !strings.HasPrefix(prefix, p+"/"):
			return fs.SkipDir
		case e.Type().IsRegular() && strings.HasPrefix(p, prefix) && CheckName(p) == nil:
			names = append(names, p)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", prefix, err)
	}
	slices.Sort(names)
	return names, nil
}

// Delete implements Store.
func (d *Directory) Delete(ctx context.Context, name string) error {
	if err := d.ask(ctx, name); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	dir := path.Dir(name)
	if _, err := d.root.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := errors.Join(d.remove(name), d.syncDir(dir)); err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}
