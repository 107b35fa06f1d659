package qemu

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/qmp"
)

// prepare clears what an earlier attachment left in the machine and checks that
// the node is what the volume believes it to be.
func (m *machine) prepare(ctx context.Context, d *disk) (func(*tap) attached, error) {
	if err := d.sweep(ctx, m); err != nil {
		return nil, fmt.Errorf("clear an earlier tap: %w", err)
	}
	node := d.conf.Node
	if d.conf.Find != nil {
		var err error
		if node, err = d.conf.Find(ctx, m.Monitor); err != nil {
			return nil, fmt.Errorf("find node: %w", err)
		}
	}
	n, err := m.node(ctx, node)
	if err != nil {
		return nil, err
	}
	if n.ReadOnly {
		return nil, fmt.Errorf("%w: node %q is read-only; after a snapshot the guest writes to another one", ErrNode, n.Name)
	}
	if err := d.agree(ctx, n.Image.VirtualSize); err != nil {
		return nil, err
	}
	return func(t *tap) attached { return &attachment{disk: d, machine: m, tap: t, node: n} }, nil
}

// agree makes size the volume's, if the owner has nothing against it.
func (d *disk) agree(ctx context.Context, size int64) error {
	d.mu.Lock()
	v := d.volume
	d.mu.Unlock()
	if size == v.Size {
		return nil
	}
	v.Size = size
	if d.opts.Resize == nil || v.Size <= 0 || v.Size%cbt.SectorBytes != 0 {
		return breakage(cbt.CauseTapEnded, fmt.Errorf("%w: %d bytes", errSizeChanged, v.Size))
	}
	if err := d.opts.Resize(ctx, v); err != nil {
		return breakage(cbt.CauseTapEnded, fmt.Errorf("%w: %d bytes: %w", errSizeChanged, v.Size, err))
	}
	d.mu.Lock()
	d.volume = v
	d.mu.Unlock()
	return nil
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
	return nil
}

// attachment is one tap inside the machine.
type attachment struct {
	disk    *disk
	machine *machine
	tap     *tap
	node    nodeInfo

	bitmaps []string  // the delta's, oldest first
	newest  time.Time // when the newest of them was added
	synced  time.Time // zero until then
}

// run puts the tap in, resyncs, and holds until it ends; the error says why.
func (a *attachment) run(ctx context.Context) error {
	d, m, t := a.disk, a.machine, a.tap
	found, err := a.trust(ctx)
	if err != nil {
		return err
	}
	d.made = t.node
	d.tracker.announce()
	if err := m.addTarget(ctx, t.node, d.opts.captureSocket(), t.export); err != nil {
		return fmt.Errorf("add capture node: %w", err)
	}
	woken, leave := m.listen(t.node)
	defer leave()
	if err := m.mirror(ctx, t.node, a.node.Name, t.node); err != nil {
		return fmt.Errorf("start mirror: %w", err)
	}
	if err := a.ready(ctx, woken); err != nil {
		return err
	}
	d.advance(stepTapped)
	if err := a.resync(ctx, found); err != nil {
		return err
	}
	if err := a.settleBitmaps(ctx); err != nil {
		return err
	}
	if err := a.check(ctx); err != nil {
		return err
	}
	if err := t.markSynced(); err != nil {
		return err
	}
	a.synced = time.Now()
	d.advance(stepSynced)
	d.opts.Log.Info("synced", "volume", d.conf.Volume.Name)
	return a.hold(ctx, woken)
}

// trust settles which bitmaps tell the delta; without any it begins a new one.
func (a *attachment) trust(ctx context.Context) (verdict, error) {
	d, m := a.disk, a.machine
	var mem remembered
	known, err := d.opts.Memory.Recall(memoryKey(d.conf.Volume.ID), &mem)
	if err != nil {
		return verdict{}, fmt.Errorf("recall bitmaps: %w", err)
	}
	found := judge(d.conf.Volume.ID, mem, known, a.node)
	if mem.Granularity != d.opts.Granularity && found.trusted {
		found = verdict{why: "the configured granularity is another", remove: append(found.remove, found.keep...)}
	}
	if found.busy {
		return found, fmt.Errorf("%w: %s", errBitmapBusy, found.why)
	}
	for _, name := range found.remove {
		if err := m.removeBitmap(ctx, a.node.Name, name); err != nil {
			return found, fmt.Errorf("remove bitmap %s: %w", name, err)
		}
	}
	if a.bitmaps = found.keep; found.trusted {
		return found, nil
	}
	d.opts.Log.Info("full read", "volume", d.conf.Volume.Name, "reason", found.why)
	return found, a.addBitmap(ctx)
}

// addBitmap begins one more bitmap. It says nothing to Memory.
func (a *attachment) addBitmap(ctx context.Context) error {
	name := freshName(a.disk.conf.Volume.ID, "b")
	persistent := a.disk.conf.Persistent && a.node.Driver == "qcow2"
	if err := a.machine.addBitmap(ctx, a.node.Name, name, a.disk.opts.Granularity, persistent, false); err != nil {
		return fmt.Errorf("add bitmap: %w", err)
	}
	a.bitmaps = append(a.bitmaps[:len(a.bitmaps):len(a.bitmaps)], name)
	a.newest = time.Now()
	return nil
}

// ready waits until the mirror job says so.
func (a *attachment) ready(ctx context.Context, woken <-chan struct{}) error {
	const patience = 10 * time.Second
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("the mirror was not ready after %v", patience))
	defer cancel()
	for {
		j, err := a.job(ctx)
		if err != nil {
			return err
		}
		if j.Ready {
			return nil
		}
		select {
		case <-woken:
		case <-a.tap.live.Done():
			return context.Cause(a.tap.live)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-a.machine.Done():
			return a.machine.Err()
		}
	}
}

// job is the mirror job, or the reason why there is none.
func (a *attachment) job(ctx context.Context) (*jobInfo, error) {
	j, err := a.machine.job(ctx, a.tap.node)
	if err != nil {
		return nil, err
	}
	if j != nil && (j.IOStatus == "" || j.IOStatus == "ok") && j.Error == "" {
		return j, nil
	}
	why := a.machine.jobError(a.tap.node)
	if j != nil && why == "" {
		why = strings.TrimSpace(j.IOStatus + " " + j.Error)
	}
	if why == "" {
		return nil, breakage(cbt.CauseTapEnded, errJobEnded)
	}
	return nil, breakage(cbt.CauseTapError, fmt.Errorf("%w: %s", errJobEnded, why))
}

// check makes sure that the job runs, is ready, and has seen no error.
func (a *attachment) check(ctx context.Context) error {
	j, err := a.job(ctx)
	if err == nil && !j.Ready {
		err = breakage(cbt.CauseTapError, errors.New("the mirror is not ready any more"))
	}
	if err == nil && a.tap.live.Err() != nil {
		err = context.Cause(a.tap.live)
	}
	return err
}

func (a *attachment) since() time.Time { return a.synced }

// remove takes everything but the bitmaps out of the machine. The tap has let
// go and drains, so that the job ends in order.
func (a *attachment) remove(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commandPatience)
	defer cancel()
	if a.machine.Err() != nil {
		return
	}
	if err := a.disk.sweep(ctx, a.machine); err != nil {
		a.disk.opts.Log.Warn("remove tap", "volume", a.disk.conf.Volume.Name, "error", err)
	}
}
