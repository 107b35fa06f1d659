package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/qmp"
)

// scratchFloor is the room, besides twice what is to be copied, that a round wants
// where it copies aside.
const scratchFloor = 64 << 20

// A guest's write fails when the target of a backup job of QEMU 7.2 does: what is about to
// be overwritten has to be copied first. The scratch file therefore is one of two that
// copies go to, in a quorum that wants one vote; the other is a null device, which always
// gives it. A copy that failed is told by an event alone (aside), and costs the round.
// QEMU cannot tell a quorum's block size and says so in its log at each round.

// scratch is the file into which QEMU copies one disk's part of a held instant. It
// is ours on disk: neither the guest's progress nor the end of the job needs us.
type scratch struct {
	node  string // and the job's id
	inner string // the file's own node; empty: it is node, for this QEMU knows no quorum
	file  *os.File
}

// options are the node's.
func (s *scratch) options(size int64, wrap func(args) args) args {
	name := s.inner
	if name == "" {
		name = s.node
	}
	file := args{"driver": "file", "node-name": name, "filename": s.file.Name(), "discard": "unmap"}
	if wrap != nil {
		file = wrap(file)
	}
	if s.inner == "" {
		return file
	}
	return args{"driver": "quorum", "node-name": s.node, "vote-threshold": 1, "children": []args{file, {"driver": "null-co", "size": size}}}
}

// prepareScratch makes an empty file as long as the disk, and a node of it.
func (c *collected) prepareScratch(ctx context.Context) error {
	o := c.disk.opts
	name := freshName(c.tap.volume.ID, "s")
	f, err := os.OpenFile(filepath.Join(o.Dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("make scratch: %w", err)
	}
	c.scratch = &scratch{node: name, file: f}
	err = f.Truncate(c.tap.volume.Size)
	if err == nil && o.SocketOwner != 0 {
		err = f.Chown(o.SocketOwner, -1)
	}
	if err == nil && o.SocketMode&0o022 != 0 {
		err = f.Chmod(o.SocketMode & 0o666)
	}
	if err != nil {
		return fmt.Errorf("make scratch: %w", err)
	}
	if err := c.addScratch(ctx); err != nil {
		return fmt.Errorf("add scratch node: %w", err)
	}
	return nil
}

// addScratch adds the node. A QEMU that was built without quorums gets the bare file: then
// the room that was looked for is all that keeps a guest's write from failing.
func (c *collected) addScratch(ctx context.Context) error {
	s, m, size := c.scratch, c.machine, c.tap.volume.Size
	if !m.bare.Load() {
		s.inner = freshName(c.tap.volume.ID, "f")
		m.copies.begin(s.node, s.inner)
		err := m.do(ctx, "blockdev-add", s.options(size, c.disk.opts.faults.scratch), nil)
		var refused *qmp.Error
		if !errors.As(err, &refused) || !strings.Contains(refused.Desc, "quorum") {
			return err // of another refusal the next round may hear nothing
		}
		m.copies.end(s.node)
		s.inner = ""
		if err := m.do(ctx, "blockdev-add", s.options(size, c.disk.opts.faults.scratch), nil); err != nil {
			return err
		}
		m.bare.Store(true)
		c.disk.opts.Log.Warn("this QEMU has no quorum driver: a guest's write fails if there is no room to copy aside", "error", err)
		return nil
	}
	return m.do(ctx, "blockdev-add", s.options(size, c.disk.opts.faults.scratch), nil)
}

// roomFor reports whether bytes can be copied aside in dir.
func roomFor(dir string, bytes int64) error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("look for room in %s: %w", dir, err)
	}
	if room := int64(fs.Bavail) * fs.Bsize; room < 2*bytes+scratchFloor {
		return breakage(cbt.CauseDiskFull, fmt.Errorf("%d bytes are to be copied aside, %s has room for %d", bytes, dir, room))
	}
	return nil
}

// remove frees the file; nil does nothing.
func (s *scratch) remove() {
	if s == nil {
		return
	}
	_ = os.Remove(s.file.Name()) // a sweep takes what is left
	_ = s.file.Close()
}

// sweepScratch removes the files that an earlier life left for this disk.
func (d *disk) sweepScratch() error {
	names, err := filepath.Glob(filepath.Join(d.opts.Dir, prefix(d.conf.Volume.ID)+"s*"))
	if err != nil {
		return err
	}
	for _, n := range names {
		err = errors.Join(err, os.Remove(n))
	}
	return err
}
