package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/testbed/stamp"
)

// mounted is where volume 0 is mounted, stampedDir where its stamped files lie.
const (
	mounted    = "/mnt"
	stampedDir = mounted + "/stamped"
	logLimit   = 256 << 10
)

// startFiles mounts volume 0, which holds an ext4, and begins a load of files.
func (m *machine) startFiles(p params) error {
	if err := os.MkdirAll(mounted, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.volumes[0].file.Name(), mounted, "ext4", 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount %s: %w", m.volumes[0].file.Name(), err)
	}
	if err := os.MkdirAll(stampedDir, 0o755); err != nil {
		return err
	}
	l := &load{stop: make(chan struct{}), done: make(chan struct{})}
	m.load = l
	go func() {
		defer close(l.done)
		if err := m.fileAll(l, p.get("slots", 64), p.get("count", 0)); err != nil {
			m.console.say("error file %d: %v", l.last+1, err)
		}
	}()
	return nil
}

// fileAll writes files of stamps, numbered from 1, and keeps the newest slots of
// them; count 0: until told to stop. A file has its name only once it is whole and
// durable, is durable under it when its number is said, and goes after that of the
// one that takes its slot. Between them the file system is kept busy with what no
// one waits for.
func (m *machine) fileAll(l *load, slots, count uint64) error {
	writer := rand.Uint64()
	for count == 0 || l.last < count {
		select {
		case <-l.stop:
			return nil
		default:
		}
		k := l.last + 1
		name := filepath.Join(stampedDir, strconv.FormatUint(k, 10))
		if err := writeFile(name+".part", stamp.Stamp{Number: k, Writer: writer, Time: time.Now()}.Block(), int(k%7)+1); err != nil {
			return err
		}
		if err := os.Rename(name+".part", name); err != nil {
			return err
		}
		if err := syncPath(stampedDir); err != nil {
			return err
		}
		l.last = k
		m.console.say("stamped %d", k)
		if k > slots {
			if err := os.Remove(filepath.Join(stampedDir, strconv.FormatUint(k-slots, 10))); err != nil {
				return err
			}
		}
		if err := churn(k); err != nil {
			return err
		}
	}
	return nil
}

// writeFile writes a block n times, durably.
func writeFile(path string, block []byte, n int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for range n {
		if _, err := f.Write(block); err != nil {
			return err
		}
	}
	return f.Sync()
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// churn changes directories and lengths: a log that grows and is cut, directories
// that come, move and go.
func churn(k uint64) error {
	f, err := os.OpenFile(mounted+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "%d %0*d\n", k, int(k*37%3000), k); err != nil {
		return err
	}
	if st, err := f.Stat(); err != nil || st.Size() > logLimit {
		return errors.Join(err, f.Truncate(0))
	}
	dir := fmt.Sprintf("%s/dir%d", mounted, k%5)
	if err := os.RemoveAll(dir + ".old"); err != nil {
		return err
	}
	if err := os.Rename(dir, dir+".old"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(dir+"/in", 0o755); err != nil {
		return err
	}
	return os.Symlink("../../log", dir+"/in/log")
}
