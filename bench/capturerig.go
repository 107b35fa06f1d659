package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/qemu"
	"github.com/novacron/afterimage/cbt/qmp"
	"github.com/novacron/afterimage/journal"
)

// rigPatience bounds the start of a program and the first sync.
const rigPatience = 5 * time.Minute

// rigBudget is the tap's stall budget: beyond any hiccup of a busy machine, for a
// tap that let go measures nothing.
const rigBudget = 20 * time.Second

// captureRig is the three disks of Capture, each in a qemu-storage-daemon.
type captureRig struct {
	dir     string
	sockets map[string]string // of the NBD exports, by side
	cmds    []*exec.Cmd
	taps    map[string]*tapped // by side

	mu     sync.Mutex // guards failed
	failed error      // of a tracker or a journal
}

// tapped is a disk that is followed into a journal of its own.
type tapped struct {
	j       *journal.Journal
	tracker *qemu.Tracker
	stop    context.CancelFunc // of the tracker, then the journal
	running sync.WaitGroup
	synced  time.Time
}

// newCaptureRig returns a rig to close even when it fails.
func newCaptureRig(ctx context.Context, o CaptureOptions) (*captureRig, error) {
	r := &captureRig{sockets: map[string]string{}, taps: map[string]*tapped{}}
	var err error
	if r.dir, err = os.MkdirTemp(o.Dir, "ai-capture"); err != nil {
		return r, err
	}
	for _, side := range append(sides, bitmapSide) {
		if err := r.storage(ctx, side, o.DiskBytes); err != nil {
			return r, fmt.Errorf("start the disk of %s: %w", side, err)
		}
	}
	if err := r.floor(ctx, o.DiskBytes); err != nil {
		return r, fmt.Errorf("make the floor: %w", err)
	}
	for _, side := range []string{"ours", "power"} {
		if err := r.tap(ctx, side, o.DiskBytes); err != nil {
			return r, fmt.Errorf("tap a disk: %w", err)
		}
	}
	return r, nil
}

func (r *captureRig) path(name string) string { return filepath.Join(r.dir, name) }

// start runs a program until the rig is closed, and waits for a socket of its.
func (r *captureRig) start(ctx context.Context, socket string, argv ...string) error {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	r.cmds = append(r.cmds, cmd)
	return until(ctx, "socket of "+argv[0], func() bool {
		_, err := os.Stat(socket)
		return err == nil
	})
}

func until(ctx context.Context, what string, ok func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, rigPatience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, ctx.Err())
		}
	}
	return nil
}

// storage serves a disk that was written before, from QEMU's block layer.
func (r *captureRig) storage(ctx context.Context, side string, size int64) error {
	f, err := os.Create(r.path(side + ".img"))
	if err != nil {
		return err
	}
	block := make([]byte, 1<<20)
	for at := int64(0); at < size && err == nil; at += int64(len(block)) {
		_, err = f.WriteAt(block[:min(int64(len(block)), size-at)], at)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	r.sockets[side] = r.path(side + ".nbd")
	return r.start(ctx, r.sockets[side], "qemu-storage-daemon",
		"--blockdev", "file,node-name=f,filename="+f.Name(), "--blockdev", "raw,node-name=d,file=f",
		"--chardev", "socket,id=c,server=on,wait=off,path="+r.path(side+".qmp"), "--monitor", "chardev=c",
		"--nbd-server", "addr.type=unix,addr.path="+r.sockets[side], "--export", "nbd,id=e,node-name=d,name=d,writable=on")
}

// floor mirrors as the tap does, to a server that does nothing.
func (r *captureRig) floor(ctx context.Context, size int64) error {
	socket := r.path("null")
	if err := r.start(ctx, socket, "nbdkit", "--foreground", "--unix", socket, "null", fmt.Sprintf("size=%d", size)); err != nil {
		return err
	}
	c, err := qmp.Dial(ctx, r.path("floor.qmp"), qmp.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	err = c.Execute(ctx, "blockdev-add", map[string]any{"driver": "nbd", "node-name": "t", "server": map[string]any{"type": "unix", "path": socket}}, nil)
	if err != nil {
		return err
	}
	return c.Execute(ctx, "blockdev-mirror", map[string]any{"job-id": "m", "device": "d", "target": "t", "sync": "none", "copy-mode": "write-blocking", "on-target-error": "report"}, nil)
}

// tap follows the disk of a side into a journal.
func (r *captureRig) tap(ctx context.Context, side string, size int64) error {
	id := journal.Identity{Tenant: cbt.NewID(), Group: cbt.NewID(), Stream: cbt.NewID()}
	o := journal.Options{Create: &id, Sync: journal.SyncProcess}
	if side == "power" {
		o.Sync = journal.SyncPower
	}
	j, err := journal.Open(r.path("journal-"+side), o)
	if err != nil {
		return err
	}
	x := &tapped{j: j}
	r.taps[side] = x
	journaling, stopJournal := context.WithCancel(context.Background())
	tapping, stopTap := context.WithCancel(context.Background())
	var tap sync.WaitGroup
	x.running.Go(func() { r.note(j.Run(journaling)) })
	x.stop = func() {
		stopTap()
		tap.Wait()
		stopJournal()
	}
	var w *journal.Writer
	err = until(ctx, "the journal", func() bool {
		w, err = j.BeginEpoch(ctx, "bench", journal.Position{}, 0)
		return err == nil
	})
	if err != nil {
		return err
	}
	v := cbt.Volume{ID: cbt.VolumeID(cbt.NewID()), Name: "d", Size: size}
	if err := w.AddVolume(ctx, v); err != nil {
		return err
	}
	dir := r.path("tap-" + side)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	q := qemu.Options{QMP: r.path(side + ".qmp"), Dir: dir, ReadServer: r.sockets[side], Sink: w, Memory: j,
		Incarnation: cbt.Incarnation(cbt.NewID()), StallBudget: rigBudget, Disks: []qemu.Disk{{Volume: v, Node: "d"}}}
	if side == bitmapSide {
		q.Every = bitmapEvery
	}
	if x.tracker, err = qemu.New(q); err != nil {
		return err
	}
	tap.Go(func() { r.note(x.tracker.Run(tapping)) })
	err = until(ctx, "the first point", func() bool {
		st := x.tracker.Status()[0]
		return q.Every == 0 && st.State == cbt.StateSynced || st.Cycles.Points > 0
	})
	x.synced = x.tracker.Status()[0].Since
	return err
}

// settle has the disk take what earlier rounds left to it of the images: no side pays for
// another's.
func (r *captureRig) settle() error {
	for side := range r.sockets {
		f, err := os.OpenFile(r.path(side+".img"), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		if err := errors.Join(unix.Fdatasync(int(f.Fd())), f.Close()); err != nil {
			return fmt.Errorf("sync the disk of %s: %w", side, err)
		}
	}
	return nil
}

func (r *captureRig) note(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = errors.Join(r.failed, err)
}

// stillThere fails if a side's tap let go since the beginning, or its cycles broke: what
// was measured then is not the tap.
func (r *captureRig) stillThere(side string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	x := r.taps[side]
	if x == nil {
		return r.failed
	}
	s := x.tracker.Status()[0]
	if s.Cause != "" || side != bitmapSide && (s.State != cbt.StateSynced || !s.Since.Equal(x.synced)) {
		return fmt.Errorf("the tap let go: %s: %s", s.Cause, s.Detail)
	}
	return r.failed
}

// close ends everything and removes the directory.
func (r *captureRig) close() error {
	var err error
	for _, x := range r.taps {
		x.stop()
		x.running.Wait()
		err = errors.Join(err, x.j.Close())
	}
	for _, cmd := range r.cmds {
		_ = cmd.Process.Kill() // it may have ended by itself
		_ = cmd.Wait()
	}
	if r.dir != "" {
		err = errors.Join(err, os.RemoveAll(r.dir))
	}
	return err
}
