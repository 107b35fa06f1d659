package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/mode"
	"github.com/novacron/afterimage/cbt/qmp"
)

// Pivot brings the guest's device of a volume from the node that it has to a local file
// which holds the same, while the guest stands still. Nothing is copied: QEMU's own
// mirror with nothing to mirror is completed, which exchanges the two nodes under the
// device.
//
// All its steps may be repeated, also by another process after the first one died: what
// an earlier try left is found by name.
type Pivot struct {
	Volume cbt.Volume
	From   string // the node that the guest has
	Image  string // a raw file of the volume's size
	Device bool   // Image is a block device instead, of at least that size
}

// errPivot means that a guest's device did not come to the node that it was to have.
var errPivot = errors.New("the guest's disk was not exchanged")

// To is the node that the guest gets.
func (p Pivot) To() string { return "local-" + cbt.ID(p.Volume.ID).Short() }

func (p Pivot) job() string { return "pivot-" + cbt.ID(p.Volume.ID).Short() }

// Prepare opens the image in the machine, if it is not open there.
func (p Pivot) Prepare(ctx context.Context, m Monitor) error {
	c := commands{m}
	if _, err := c.node(ctx, p.To()); err == nil || !errors.Is(err, ErrNode) {
		return err
	}
	file := args{"driver": "file", "filename": p.Image, "discard": "unmap"}
	raw := args{"driver": "raw", "node-name": p.To(), "discard": "unmap", "file": file}
	if p.Device {
		file["driver"], raw["size"] = "host_device", p.Volume.Size
	}
	err := c.do(ctx, "blockdev-add", raw, nil)
	if err != nil {
		return fmt.Errorf("open %s in the machine: %w", p.Image, err)
	}
	n, err := c.node(ctx, p.To())
	if err == nil && n.Image.VirtualSize != p.Volume.Size {
		err = fmt.Errorf("%w: %s has %d bytes, the volume %d", errPivot, p.Image, n.Image.VirtualSize, p.Volume.Size)
	}
	return err
}

// Where is the node that the guest's device has now: From or To.
func (p Pivot) Where(ctx context.Context, m Monitor) (string, error) {
	all, err := commands{m}.inserted(ctx)
	if err != nil {
		return "", err
	}
	var found []string
	for _, i := range all {
		if i.Node == p.From || i.Node == p.To() {
			found = append(found, i.Node)
		}
	}
	if len(found) != 1 {
		return "", fmt.Errorf("%w: of nodes %q and %q the machine's devices have %d", ErrNode, p.From, p.To(), len(found))
	}
	return found[0], nil
}

// Settle ends what an earlier try left under way: after it, Where holds.
func (p Pivot) Settle(ctx context.Context, m Monitor) error {
	c := commands{m}
	j, err := c.job(ctx, p.job())
	if err != nil || j == nil {
		return err
	}
	if err := c.cancelJob(ctx, p.job()); err != nil && !qmp.IsRefused(err) {
		return err
	}
	return c.jobGone(ctx, p.job())
}

// Switch gives the guest's device node to, which is From or To, if it has the other one.
// The guest stands still, and both hold the same.
func (p Pivot) Switch(ctx context.Context, m Monitor, to string) error {
	c := commands{m}
	if err := p.Settle(ctx, m); err != nil {
		return err
	}
	from, err := p.Where(ctx, m)
	if err != nil || from == to {
		return err
	}
	err = c.do(ctx, "blockdev-mirror", args{"job-id": p.job(), "device": from, "target": to, "sync": "none",
		"on-source-error": "report", "on-target-error": "report"}, nil)
	if err != nil {
		return fmt.Errorf("%w: %w", errPivot, err)
	}
	if err := c.jobIsReady(ctx, p.job()); err != nil {
		return err
	}
	if err := c.do(ctx, "block-job-complete", args{"device": p.job()}, nil); err != nil && !qmp.IsRefused(err) {
		return err
	}
	if err := c.jobGone(ctx, p.job()); err != nil {
		return err
	}
	if now, err := p.Where(ctx, m); err != nil || now != to {
		return errors.Join(err, fmt.Errorf("%w: it is still at node %q", errPivot, now))
	}
	return nil
}

// Drop removes a node that no device has any more.
func (p Pivot) Drop(ctx context.Context, m Monitor, node string) error {
	if _, err := (commands{m}).node(ctx, node); err != nil {
		if errors.Is(err, ErrNode) {
			return nil
		}
		return err
	}
	return commands{m}.deleteNode(ctx, node)
}

// Abandon removes From, whose server may have nothing to say to it any more: its connection
// is cut first. A machine with a node that waits for a server for a day stands still for
// as long at whatever flushes all nodes, such as a stop.
func (p Pivot) Abandon(ctx context.Context, m Monitor) error {
	c := commands{m}
	if _, err := c.node(ctx, p.From); err != nil {
		if errors.Is(err, ErrNode) {
			return nil
		}
		return err
	}
	if err := c.yank(ctx, p.From); err != nil {
		return fmt.Errorf("cut the connection of node %s: %w", p.From, err)
	}
	return c.deleteNode(ctx, p.From)
}

// Trust has the next tap of the volume begin with what changes from here on: the guest
// stands still at node To, and the sink durably holds what is there.
func (p Pivot) Trust(ctx context.Context, m Monitor, memory cbt.Memory) error {
	name := freshName(p.Volume.ID, "b")
	if err := (commands{m}).addBitmap(ctx, p.To(), name, granularityDefault, false, false); err != nil {
		return fmt.Errorf("add bitmap: %w", err)
	}
	return memory.Remember(memoryKey(p.Volume.ID), mode.Remembered{Node: p.To(), Size: p.Volume.Size, Granularity: granularityDefault, Bitmaps: []string{name}})
}

// FindImage finds the node through which a guest writes to a file or device of this host.
func FindImage(path string) func(ctx context.Context, m Monitor) (string, error) {
	return func(ctx context.Context, m Monitor) (string, error) {
		all, err := commands{m}.inserted(ctx)
		if err != nil {
			return "", err
		}
		var found []string
		for _, i := range all {
			if i.path() == path {
				found = append(found, i.Node)
			}
		}
		if len(found) != 1 {
			return "", fmt.Errorf("%w: of the machine's devices %d write to %s", ErrNode, len(found), path)
		}
		return found[0], nil
	}
}

// Halt stops the guest of a machine: when it returns, nothing that it wrote is on its way
// to a disk any more. A guest that does not run is errNotRunning.
func Halt(ctx context.Context, m Monitor) error {
	c := commands{m}
	state, err := c.guestState(ctx)
	if err != nil {
		return err
	}
	if state != guestRuns {
		return fmt.Errorf("%w: its state is %s", errNotRunning, state)
	}
	if err := c.stopGuest(ctx); err != nil {
		return fmt.Errorf("stop the guest: %w", err)
	}
	return nil
}

// errNotRunning means that a guest stands still, and not by us.
var errNotRunning = errors.New("the guest does not run")

// Runs reports whether the guest of a machine runs.
func Runs(ctx context.Context, m Monitor) (bool, error) {
	state, err := commands{m}.guestState(ctx)
	return state == guestRuns, err
}

// Proceed undoes Halt. A guest that stands still for another reason is let be.
func Proceed(ctx context.Context, m Monitor) error {
	c := commands{m}
	state, err := c.guestState(ctx)
	if err != nil || state != guestPaused {
		return err
	}
	if err := c.do(ctx, "cont", nil, nil); err != nil {
		return fmt.Errorf("let the guest go on: %w", err)
	}
	return nil
}

// insertion is what a guest's device has.
type insertion struct {
	Node string `json:"node-name"`
	File string `json:"file"`
}

// path is the file or device that i lies in. A node that shows a part of one has a
// description for a name (QEMU, bdrv_refresh_filename).
func (i insertion) path() string {
	text, ok := strings.CutPrefix(i.File, "json:")
	var node struct {
		File struct {
			Path string `json:"filename"`
		} `json:"file"`
	}
	if ok && json.Unmarshal([]byte(text), &node) == nil && node.File.Path != "" {
		return node.File.Path
	}
	return i.File
}

// inserted is what the devices of the guest have; filters of jobs are passed by.
func (c commands) inserted(ctx context.Context) ([]insertion, error) {
	var devices []struct {
		Inserted *insertion `json:"inserted"`
	}
	err := c.do(ctx, "query-block", nil, &devices)
	var out []insertion
	for _, d := range devices {
		if d.Inserted != nil {
			out = append(out, *d.Inserted)
		}
	}
	return out, err
}

// jobIsReady returns once a mirror is.
func (c commands) jobIsReady(ctx context.Context, id string) error {
	for {
		j, err := c.job(ctx, id)
		switch {
		case err != nil:
			return err
		case j == nil:
			return fmt.Errorf("%w: the mirror ended", errPivot)
		case j.Ready:
			return nil
		}
		const look = time.Millisecond
		if !rest(ctx, c.Done(), look) {
			return errors.Join(context.Cause(ctx), c.Err())
		}
	}
}
