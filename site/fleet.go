package site

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/qemu"
)

// fleet is the trackers of a group's machines as one. They share the sink, a gate and,
// in bitmap capture, a cut: their records have one order, a break of one machine has its
// place in it before anything that another one writes afterwards, and a cycle is of all
// machines or of none.
type fleet struct {
	guests   []string // by what the configuration calls them
	trackers []*qemu.Tracker
}

var (
	_ cbt.Tracker = (*fleet)(nil)
	_ plugging    = (*fleet)(nil)
	_ waking      = (*fleet)(nil)
)

// newFleet makes the trackers of machines, each as its options say.
func newFleet(guests []string, options []qemu.Options) (*fleet, error) {
	gate, cut := new(qemu.Gate), &qemu.Cut{Machines: len(options)}
	f := &fleet{guests: guests}
	for _, o := range options {
		o.Gate, o.Cut = gate, cut
		t, err := qemu.New(o)
		if err != nil {
			return nil, err
		}
		f.trackers = append(f.trackers, t)
	}
	return f, nil
}

// Run implements cbt.Tracker; when one tracker fails the others end.
func (f *fleet) Run(ctx context.Context) error {
	g, running := errgroup.WithContext(ctx)
	for _, t := range f.trackers {
		g.Go(func() error { return t.Run(running) })
	}
	return g.Wait()
}

// WakeLeft implements waking.
func (f *fleet) WakeLeft(ctx context.Context) error {
	var errs []error
	for _, t := range f.trackers {
		errs = append(errs, t.WakeLeft(ctx))
	}
	return errors.Join(errs...)
}

// Status implements cbt.Tracker.
func (f *fleet) Status() []cbt.VolumeStatus {
	var out []cbt.VolumeStatus
	for _, t := range f.trackers {
		out = append(out, t.Status()...)
	}
	return out
}

// of is the tracker of one machine; nil: nothing of it is captured.
func (f *fleet) of(guest string) *qemu.Tracker {
	for i, name := range f.guests {
		if name == guest {
			return f.trackers[i]
		}
	}
	return nil
}

// guestOf is the machine that has a volume.
func (f *fleet) guestOf(v cbt.VolumeID) string {
	for i, t := range f.trackers {
		for _, st := range t.Status() {
			if st.Volume.ID == v {
				return f.guests[i]
			}
		}
	}
	return ""
}

// Plug implements plugging.
func (f *fleet) Plug(guest string, d qemu.Disk) error {
	t := f.of(guest)
	if t == nil {
		return fmt.Errorf("plug %s: machine %q is not captured", d.Volume.Name, guest)
	}
	return t.Plug(d)
}

// Unplug implements plugging.
func (f *fleet) Unplug(ctx context.Context, v cbt.VolumeID, farewell func(context.Context) error) error {
	for _, t := range f.trackers {
		if slices.ContainsFunc(t.Status(), func(st cbt.VolumeStatus) bool { return st.Volume.ID == v }) {
			return t.Unplug(ctx, v, farewell)
		}
	}
	return nil // it has gone already
}

// AtPoint is a tracker's: a point is of all machines.
func (f *fleet) AtPoint(ctx context.Context, do func(context.Context) error) error {
	return f.trackers[0].AtPoint(ctx, do)
}
