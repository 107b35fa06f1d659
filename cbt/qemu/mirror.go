package qemu

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/mode"
	"github.com/novacron/afterimage/cbt/qmp"
)

// mirror is the way through the monitor: a mirror that copies nothing by itself,
// and bitmaps that tell what it did not see.
type mirror struct {
	disk    *disk
	machine *machine
	tap     *tap
	node    nodeInfo

	bitmaps []string  // the delta's, oldest first
	newest  time.Time // when the newest of them was added
}

// prepare clears what an earlier attachment left in the machine and checks that
// the node is what the volume believes it to be.
func (m *machine) prepare(ctx context.Context, d *disk) (func(*tap) *attachment, error) {
	n, err := m.found(ctx, d)
	if err != nil {
		return nil, err
	}
	return func(t *tap) *attachment {
		return &attachment{disk: d, tap: t, link: m, way: &mirror{disk: d, machine: m, tap: t, node: n}}
	}, nil
}

// found is the node of d, swept of what an earlier attachment left there.
func (m *machine) found(ctx context.Context, d *disk) (nodeInfo, error) {
	if err := d.sweep(ctx, m); err != nil {
		return nodeInfo{}, fmt.Errorf("clear an earlier tap: %w", err)
	}
	node := d.conf.Node
	if d.conf.Find != nil {
		var err error
		if node, err = d.conf.Find(ctx, m.Monitor); err != nil {
			return nodeInfo{}, fmt.Errorf("find node: %w", err)
		}
	}
	n, err := m.node(ctx, node)
	if err != nil {
		return nodeInfo{}, err
	}
	if err := n.written(); err != nil {
		return nodeInfo{}, err
	}
	if f := d.opts.Events.DiskFound; f != nil {
		f(d.conf.Volume.ID, n.image())
	}
	return n, d.agree(ctx, n.Image.VirtualSize)
}

// sweep removes jobs, exports and nodes of ours that outlived their attachment.
func (d *disk) sweep(ctx context.Context, m *machine) error {
	id := d.conf.Volume.ID
	exports, err := m.exports(ctx)
	if err != nil {
		return err
	}
	for _, x := range exports {
		if isOurs(id, x) {
			if err := m.deleteExport(ctx, x); err != nil && !qmp.IsRefused(err) {
				return err
			}
		}
	}
	jobs, err := m.jobs(ctx)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if !isOurs(id, j.ID) {
			continue
		}
		// Another process may serve it, and be a stopped one, which would freeze
		// a cancel. What this process made it drains itself.
		if d.made != j.ID {
			if err := m.yank(ctx, j.ID); err != nil && m.Err() != nil {
				return err
			}
		}
		if err := m.endJob(ctx, j.ID); err != nil {
			return err
		}
	}
	nodes, err := m.nodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if isOurs(id, n.Name) {
			if err := m.deleteNode(ctx, n.Name); err != nil && !qmp.IsRefused(err) {
				return err
			}
		}
	}
	return d.sweepScratch()
}

// judge settles which bitmaps tell the delta; without any it begins a new one.
func (w *mirror) judge(ctx context.Context) (mode.Verdict, error) {
	found, err := w.machine.judge(ctx, w.disk, w.node)
	if err != nil {
		return found, err
	}
	if w.bitmaps = found.Keep; found.Trusted {
		return found, nil
	}
	w.disk.opts.Log.Info("full read", "volume", w.disk.conf.Volume.Name, "reason", found.Why)
	return found, w.addBitmap(ctx)
}

// judge is the verdict on the bitmaps of node n; what is of no use is removed.
func (m *machine) judge(ctx context.Context, d *disk, n nodeInfo) (mode.Verdict, error) {
	var mem mode.Remembered
	known, err := d.opts.Memory.Recall(memoryKey(d.conf.Volume.ID), &mem)
	if err != nil {
		return mode.Verdict{}, fmt.Errorf("recall bitmaps: %w", err)
	}
	found := judge(d.conf.Volume.ID, mem, known, n)
	if mem.Granularity != d.opts.Granularity && found.Trusted {
		found = mode.Verdict{Why: "the configured granularity is another", Remove: append(found.Remove, found.Keep...)}
	}
	if found.Busy {
		return found, fmt.Errorf("%w: %s", errBitmapBusy, found.Why)
	}
	for _, name := range found.Remove {
		if err := m.removeBitmap(ctx, n.Name, name); err != nil {
			return found, fmt.Errorf("remove bitmap %s: %w", name, err)
		}
	}
	return found, nil
}

// addBitmap begins one more bitmap. It says nothing to Memory.
func (w *mirror) addBitmap(ctx context.Context) error {
	name := freshName(w.disk.conf.Volume.ID, "b")
	if err := w.machine.addBitmap(ctx, w.node.Name, name, w.disk.opts.Granularity, w.disk.persistent(w.node), false); err != nil {
		return fmt.Errorf("add bitmap: %w", err)
	}
	w.bitmaps = append(w.bitmaps[:len(w.bitmaps):len(w.bitmaps)], name)
	w.newest = time.Now()
	return nil
}

// persistent reports whether bitmaps on n outlive its machine.
func (d *disk) persistent(n nodeInfo) bool { return d.conf.Persistent && n.Driver == "qcow2" }

func (w *mirror) listen() (<-chan struct{}, func()) { return w.machine.listen(w.tap.node) }

func (w *mirror) start(ctx context.Context) error {
	d, m, t := w.disk, w.machine, w.tap
	d.made = t.node
	d.tracker.announce()
	if err := m.addTarget(ctx, t.node, d.opts.captureSocket(), t.export); err != nil {
		return fmt.Errorf("add capture node: %w", err)
	}
	if err := m.mirror(ctx, t.node, w.node.Name, t.node); err != nil {
		return fmt.Errorf("start mirror: %w", err)
	}
	return nil
}

func (w *mirror) ready(ctx context.Context) (bool, error) {
	j, err := w.job(ctx)
	return err == nil && j.Ready, err
}

// bring reads what the bitmaps name, or everything, and makes the bitmaps two.
func (w *mirror) bring(ctx context.Context, _ *attachment, found mode.Verdict) error {
	if err := w.resync(ctx, found); err != nil {
		return err
	}
	return w.settleBitmaps(ctx)
}

// job is the mirror job, or the reason why there is none.
func (w *mirror) job(ctx context.Context) (*jobInfo, error) {
	j, err := w.machine.job(ctx, w.tap.node)
	if err != nil {
		return nil, err
	}
	if j != nil && (j.IOStatus == "" || j.IOStatus == "ok") && j.Error == "" {
		return j, nil
	}
	why := w.machine.jobError(w.tap.node)
	if j != nil && why == "" {
		why = strings.TrimSpace(j.IOStatus + " " + j.Error)
	}
	if why == "" {
		return nil, breakage(cbt.CauseTapEnded, errJobEnded)
	}
	return nil, breakage(cbt.CauseTapError, fmt.Errorf("%w: %s", errJobEnded, why))
}

// check makes sure that the job runs, is ready, and has seen no error.
func (w *mirror) check(ctx context.Context) error {
	j, err := w.job(ctx)
	if err == nil && !j.Ready {
		err = breakage(cbt.CauseTapError, errors.New("the mirror is not ready any more"))
	}
	return err
}

// remove takes everything but the bitmaps out of the machine. The tap has let
// go and drains, so that the job ends in order. Of a disk that a manager has unplugged
// nothing is left at all.
func (w *mirror) remove(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commandPatience)
	defer cancel()
	if w.machine.Err() != nil {
		return
	}
	if err := w.disk.sweep(ctx, w.machine); err != nil {
		w.disk.opts.Log.Warn("remove tap", "volume", w.disk.conf.Volume.Name, "error", err)
	}
	if w.disk.there.Err() == nil || w.disk.conf.Find == nil {
		return
	}
	if err := w.release(ctx); err != nil {
		w.disk.opts.Log.Warn("release disk", "volume", w.disk.conf.Volume.Name, "error", err)
	}
}
