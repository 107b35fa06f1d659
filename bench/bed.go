package bench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

// bed is a journal with one volume, synced and empty, whose writes are answered
// when they survive the loss of power.
type bed struct {
	dir    string
	o      journal.Options
	j      *journal.Journal
	w      *journal.Writer
	volume cbt.Volume
	groups *groups
	ended  chan error
	stop   context.CancelFunc
}

// newBed makes a journal below dir.
func newBed(ctx context.Context, dir string, volumeBytes int64, keys journal.KeyRing) (*bed, error) {
	b := &bed{
		dir: filepath.Join(dir, "journal"), groups: newGroups(),
		volume: cbt.Volume{ID: cbt.VolumeID(cbt.NewID()), Name: "load", Size: volumeBytes},
	}
	b.o = journal.Options{
		FS: b.groups, Sync: journal.SyncPower, Keys: keys,
		Create: &journal.Identity{Tenant: cbt.NewID(), Group: cbt.NewID(), Stream: cbt.NewID()},
	}
	if err := b.open(); err != nil {
		return nil, err
	}
	err := b.begin(ctx)
	if err == nil {
		err = b.synced(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

// open opens the journal and runs it.
func (b *bed) open() error {
	j, err := journal.Open(b.dir, b.o)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	b.j, b.stop, b.ended = j, stop, make(chan error, 1)
	go func() { b.ended <- j.Run(ctx) }()
	return nil
}

// close ends it cleanly: what it had in memory is on disk afterwards.
func (b *bed) close() error {
	if b.j == nil {
		return nil
	}
	b.stop()
	err := errors.Join(<-b.ended, b.j.Close())
	b.j = nil
	return err
}

func (b *bed) begin(ctx context.Context) error {
	bs := b.j.Branches()
	var parent journal.Position
	if len(bs) > 0 {
		parent = bs[len(bs)-1].Last.Position
	}
	w, err := b.j.BeginEpoch(ctx, "bench", parent, 0)
	if err != nil {
		return err
	}
	b.w = w
	return w.AddVolume(ctx, b.volume)
}

func (b *bed) synced(ctx context.Context) error {
	p, err := b.w.Record(ctx, cbt.Event{Kind: cbt.EventSynced, Volume: b.volume.ID})
	if err != nil {
		return err
	}
	return p.Wait(ctx)
}

// drain returns once all that was recorded is durable, chained and indexed.
func (b *bed) drain(ctx context.Context) error {
	if err := b.w.WaitDurable(ctx); err != nil {
		return err
	}
	h := b.j.Head()
	v, err := b.j.View(ctx, journal.Point{Position: h.Position}) // waits for the index
	if err != nil {
		return err
	}
	return v.Close()
}

// check reads p's bytes back from the head.
func (b *bed) check(ctx context.Context, off int64, want []byte) error {
	got := make([]byte, len(want))
	if err := b.w.ReadHead(ctx, b.volume.ID, off, got); err != nil {
		return err
	}
	if string(got) != string(want) {
		return fmt.Errorf("at offset %d of the volume there is something else than was written", off)
	}
	return nil
}
