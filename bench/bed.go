package bench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

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

// newBed makes a journal below dir. Its pool holds free segments of poolBytes, which
// were written before, and gets no others: as in a journal whose history is full, no
// segment is written twice while it is measured.
func newBed(ctx context.Context, dir string, volumeBytes, segmentBytes, poolBytes int64, keys journal.KeyRing) (*bed, error) {
	b := &bed{
		dir: filepath.Join(dir, "journal"), groups: newGroups(),
		volume: cbt.Volume{ID: cbt.VolumeID(cbt.NewID()), Name: "load", Size: volumeBytes},
	}
	b.o = journal.Options{
		FS: b.groups, Sync: journal.SyncPower, Keys: keys, SegmentBytes: segmentBytes, PoolBytes: poolBytes,
		Create: &journal.Identity{Tenant: cbt.NewID(), Group: cbt.NewID(), Stream: cbt.NewID()},
	}
	err := b.fillPool(ctx)
	if err == nil {
		err = b.open()
	}
	if err == nil {
		err = b.begin(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, b.close())
	}
	return b, nil
}

// fillPool opens the journal until its pool is full.
func (b *bed) fillPool(ctx context.Context) error {
	if err := b.open(); err != nil {
		return err
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	var err error
	for seen, since := int64(-1), time.Now(); err == nil; {
		have := b.j.Usage().PoolBytes
		if have >= b.o.PoolBytes {
			break
		}
		if have > seen {
			seen, since = have, time.Now()
		}
		select {
		case <-tick.C:
			if time.Since(since) > time.Minute {
				err = fmt.Errorf("the pool stays at %d of %d bytes", have, b.o.PoolBytes)
			}
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	b.o.PoolReclaim = true
	return errors.Join(err, b.close())
}

// uncounted has the journal use the operating system's files from its next opening
// on, as it does in use: what is counted is not read past the page cache.
func (b *bed) uncounted() { b.o.FS = vfs.Default }

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

// begin makes b the primary of its one volume, which is synced from here on.
func (b *bed) begin(ctx context.Context) error {
	w, err := b.j.BeginEpoch(ctx, "bench", journal.Position{}, 0)
	if err != nil {
		return err
	}
	b.w = w
	if err := w.AddVolume(ctx, b.volume); err != nil {
		return err
	}
	p, err := w.Record(ctx, cbt.Event{Kind: cbt.EventSynced, Volume: b.volume.ID})
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
