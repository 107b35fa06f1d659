package site

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/novacron/afterimage/site/fault"
)

// lockData takes the data directory for this process, until the file is closed
// or the process dies. The file names the holder, for the message that a second
// one gives.
func lockData(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.Wrap(fault.FileTrouble, "make the data directory "+dir, err)
	}
	f, err := os.OpenFile(lockPath(dir), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fault.Wrap(fault.FileTrouble, "lock the data directory "+dir, err)
	}
	if err := flock(f); err != nil {
		why := "another daemon holds it"
		if b, rerr := os.ReadFile(f.Name()); rerr == nil && len(b) > 0 {
			why += ", process " + strings.TrimSpace(string(b))
		}
		e := &fault.Error{Code: fault.DaemonTwice, What: "lock the data directory " + dir, Why: why, Err: err}
		return nil, errors.Join(e, f.Close())
	}
	_, err = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	if err == nil {
		err = f.Truncate(int64(len(fmt.Sprintf("%d\n", os.Getpid()))))
	}
	if err != nil {
		return nil, fault.Wrap(fault.FileTrouble, "lock the data directory "+dir, errors.Join(err, unlock(f)))
	}
	return f, nil
}

// held reports whether a daemon has the data directory. It changes nothing.
func held(dir string) bool {
	f, err := os.OpenFile(lockPath(dir), os.O_RDWR, 0)
	if err != nil {
		return false
	}
	if flock(f) != nil {
		_ = f.Close()
		return true
	}
	_ = unlock(f)
	return false
}

func flock(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) }

// unlock lets go of the lock at once: a program that was being started when f is closed
// has a copy of it, and would keep the lock until it runs.
func unlock(f *os.File) error {
	return errors.Join(syscall.Flock(int(f.Fd()), syscall.LOCK_UN), f.Close())
}

func lockPath(dir string) string { return filepath.Join(dir, "site.lock") }
