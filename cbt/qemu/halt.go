package qemu

import (
	"context"
	"errors"
	"fmt"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/qmp"
)

// Image is where the machine has a disk open.
type Image struct {
	Path   string `json:"path"`
	Format string `json:"format"`
}

func (n nodeInfo) image() Image {
	if n.Driver == "file" || n.Driver == "host_device" { // without a format above it
		return Image{n.Image.Filename, "raw"}
	}
	return Image{n.Image.Filename, n.Driver}
}

// written is nil if the guest may write to n.
func (n nodeInfo) written() error {
	if n.ReadOnly {
		return fmt.Errorf("%w: node %q is read-only; after a snapshot the guest writes to another one", ErrNode, n.Name)
	}
	return nil
}

// machineNow is the session with a machine that is under way.
func (t *Tracker) machineNow() (*machine, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	m, ok := t.link.(*machine)
	if !ok || m.Err() != nil {
		return nil, ErrMonitor
	}
	return m, nil
}

// Images asks the machine where its disks lie. ErrMonitor: it does not answer now.
func (t *Tracker) Images(ctx context.Context) (map[cbt.VolumeID]Image, error) {
	m, err := t.machineNow()
	if err != nil {
		return nil, err
	}
	out := map[cbt.VolumeID]Image{}
	for _, d := range t.plugged() {
		n, err := m.node(ctx, d.conf.Node)
		if err != nil {
			return nil, fmt.Errorf("ask where %s lies: %w", d.conf.Volume.Name, err)
		}
		if err := n.written(); err != nil { // under what the guest writes to its file must not change
			return nil, fmt.Errorf("ask where %s lies: %w", d.conf.Volume.Name, err)
		}
		out[d.conf.Volume.ID] = n.image()
	}
	return out, nil
}

// Halt stops the guest: when it returns, nothing that it wrote is on its way to a disk
// any more. A storage daemon has no guest to be stopped.
func (t *Tracker) Halt(ctx context.Context) error {
	m, err := t.machineNow()
	if err != nil {
		return err
	}
	if err := m.do(ctx, "stop", nil, nil); err != nil && !isUnknown(err) {
		return fmt.Errorf("stop the guest: %w", err)
	}
	return nil
}

// Stands reports whether the guest stands still as Halt leaves it.
func (t *Tracker) Stands(ctx context.Context) (bool, error) {
	m, err := t.machineNow()
	if err != nil {
		return false, err
	}
	state, err := m.guestState(ctx)
	if err != nil && !isUnknown(err) {
		return false, fmt.Errorf("ask for the guest's state: %w", err)
	}
	return state == guestPaused, nil
}

// Proceed undoes Halt.
func (t *Tracker) Proceed(ctx context.Context) error {
	m, err := t.machineNow()
	if err != nil {
		return err
	}
	if err := m.do(ctx, "cont", nil, nil); err != nil && !isUnknown(err) {
		return fmt.Errorf("let the guest go on: %w", err)
	}
	return nil
}

// Quit ends the machine's process, and returns when its monitor has gone.
func (t *Tracker) Quit(ctx context.Context) error {
	m, err := t.machineNow()
	if err != nil {
		return err
	}
	if err := m.do(ctx, "quit", nil, nil); err != nil && m.Err() == nil {
		return fmt.Errorf("end the machine: %w", err)
	}
	select {
	case <-m.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("end the machine: %w", context.Cause(ctx))
	}
}

func isUnknown(err error) bool {
	var refused *qmp.Error
	return errors.As(err, &refused) && refused.Class == "CommandNotFound"
}
