package domain

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// The firmware's variables of a machine lie in a file, which its guest changes and which
// goes with every definition of its domain: with that of an earlier start that is made
// anew, and with one that libvirtd could not start. So what an earlier start left is kept
// in a second file, durably, before anything is undefined, and until the machine runs:
//
//	domain defined, file there   the file is the newest
//	else                         what is kept; where nothing is, what the point has
//
// Whatever fails or dies in between, the next start finds it.

// nvram is the file of the machine's firmware: beside the console's.
func (r *Runner) nvram() string { return filepath.Join(filepath.Dir(r.Log), "nvram") }

// keptNVRAM is what an earlier start left, while that is not in nvram.
func (r *Runner) keptNVRAM() string { return r.nvram() + ".kept" }

// remembered is what the firmware had at the point; nil: not known.
func (r *Runner) remembered(ctx context.Context) ([]byte, error) {
	if r.NVRAM == nil {
		return nil, nil
	}
	return r.NVRAM(ctx)
}

// keepNVRAM is to be called before a domain of the machine is undefined.
func (r *Runner) keepNVRAM() error {
	left, err := os.ReadFile(r.nvram())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = put(r.keptNVRAM(), left, 0)
	}
	if err != nil {
		return fmt.Errorf("keep the firmware's variables: %w", err)
	}
	return nil
}

// putNVRAM gives the machine its firmware's variables before it is started: those that
// an earlier start of it left, or those of the point.
func (r *Runner) putNVRAM(ctx context.Context) error {
	vars, err := r.remembered(ctx)
	if err != nil || vars == nil {
		return err
	}
	left, err := os.ReadFile(r.keptNVRAM())
	switch {
	case err == nil:
		vars = left
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("put the firmware's variables: %w", err)
	}
	if err := put(r.nvram(), vars, r.Owner); err != nil {
		return fmt.Errorf("put the firmware's variables: %w", err)
	}
	return nil
}

// dropNVRAM takes it away with the machine.
func (r *Runner) dropNVRAM() error {
	if r.NVRAM == nil || r.Own {
		return nil
	}
	for _, path := range []string{r.keptNVRAM(), r.nvram()} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("drop the firmware's variables: %w", err)
		}
	}
	return nil
}

// put makes a file anew, durably, and owner's (0: ours).
func put(path string, b []byte, owner int) error {
	part := path + ".part"
	f, err := os.OpenFile(part, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil && owner != 0 {
		err = f.Chown(owner, -1)
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(part, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(part))
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
