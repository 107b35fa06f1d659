package bench

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/testbed/link"
)

// rig is two sites, a and b, and the link from a to b.
type rig struct {
	o        RPOOptions
	identity journal.Identity
	a, b     *journal.Journal
	writer   *journal.Writer
	volume   cbt.Volume
	link     *link.Link
	cut      atomic.Bool
	sender   *replicator.Replicator
	wire     errgroup.Group // replicators and link: they end first
	disks    errgroup.Group // journals
	stopWire context.CancelFunc
	stopDisk context.CancelFunc
}

// newRig starts everything and waits for nothing but the first interval at a.
func newRig(ctx context.Context, o RPOOptions) (*rig, error) {
	r := &rig{
		o:        o,
		identity: journal.Identity{Tenant: cbt.NewID(), Group: cbt.NewID(), Stream: cbt.NewID()},
		volume:   cbt.Volume{ID: cbt.VolumeID(cbt.NewID()), Name: "load", Size: slots * o.WriteBytes},
	}
	wire, stopWire := context.WithCancel(ctx)
	disk, stopDisk := context.WithCancel(context.WithoutCancel(ctx))
	r.stopWire, r.stopDisk = stopWire, stopDisk
	err := r.openJournals(disk)
	if err == nil {
		err = r.beginLoad(ctx)
	}
	if err == nil {
		err = r.connect(wire)
	}
	if err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

func (r *rig) openJournals(ctx context.Context) error {
	for _, s := range []struct {
		name string
		j    **journal.Journal
	}{{"a", &r.a}, {"b", &r.b}} {
		j, err := journal.Open(filepath.Join(r.o.Dir, s.name), journal.Options{Create: &r.identity})
		if err != nil {
			return err
		}
		*s.j = j
		r.disks.Go(func() error { return j.Run(ctx) })
	}
	return nil
}

// beginLoad makes a the primary of one synced, empty volume.
func (r *rig) beginLoad(ctx context.Context) error {
	w, err := r.a.BeginEpoch(ctx, "a", journal.Position{}, 0)
	if err != nil {
		return err
	}
	r.writer = w
	if err := w.AddVolume(ctx, r.volume); err != nil {
		return err
	}
	p, err := w.Record(ctx, cbt.Event{Kind: cbt.EventSynced, Volume: r.volume.ID})
	if err != nil {
		return err
	}
	return p.Wait(ctx)
}

// connect starts b's replicator, the link to it, and a's, which dials the link.
func (r *rig) connect(ctx context.Context) error {
	ida, err := replicator.NewIdentity()
	if err != nil {
		return err
	}
	idb, err := replicator.NewIdentity()
	if err != nil {
		return err
	}
	listening := make(chan net.Addr, 1)
	receiver, err := replicator.New(replicator.Options{
		Site: "b", Identity: idb, Listen: "127.0.0.1:0", Peers: []replicator.Peer{{Name: "a", Pin: ida.Pin()}},
		Receive: func(string, journal.Identity, string, string) (replicator.Replica, error) { return r.b, nil },
		Events:  replicator.Events{Listening: func(a net.Addr) { listening <- a }},
	})
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	r.wire.Go(func() error {
		err := receiver.Run(ctx)
		failed <- err
		return err
	})
	var target netip.AddrPort
	select {
	case a := <-listening:
		target = a.(*net.UDPAddr).AddrPort()
	case err := <-failed:
		return err
	}
	r.link, err = link.New(target, link.Config{RTT: r.o.RTT, Loss: r.o.Loss, BytesPerSecond: r.o.LinkRate, Seed: r.o.Seed})
	if err != nil {
		return err
	}
	r.wire.Go(func() error { return r.link.Run(ctx) })
	r.sender, err = replicator.New(replicator.Options{
		Site: "a", Identity: ida, Peers: []replicator.Peer{{Name: "b", Address: r.link.Addr().String(), Pin: idb.Pin()}},
		Groups: func() []replicator.Group {
			return []replicator.Group{{Tenant: "default", Name: "load", Source: replicator.JournalSource[*journal.Stream](r.a), Peers: []string{"b"}}}
		},
	})
	if err != nil {
		return err
	}
	r.wire.Go(func() error { return r.sender.Run(ctx) })
	return nil
}

// close ends everything that newRig started.
func (r *rig) close() error {
	r.stopWire()
	err := r.wire.Wait()
	r.stopDisk()
	err = errors.Join(err, r.disks.Wait())
	for _, j := range []*journal.Journal{r.a, r.b} {
		if j != nil {
			err = errors.Join(err, j.Close())
		}
	}
	return err
}
