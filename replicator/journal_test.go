package replicator

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

// realJournal opens a journal and runs it until the test, or shut, ends it.
func realJournal(t *testing.T, dir string, id journal.Identity) (*journal.Journal, func()) {
	t.Helper()
	return journalWith(t, dir, journal.Options{Create: &id, SegmentBytes: 1 << 20})
}

// The real journal at both ends: written under load, the link cut, the replica's
// journal opened anew in the middle; the chains and the images are the same.
func TestRealJournalsAgree(t *testing.T) {
	p := newPair(t)
	p.source.o.IdleTimeout, p.replica.o.IdleTimeout = 300*time.Millisecond, 300*time.Millisecond
	id := p.from.Identity()
	from, shutFrom := realJournal(t, t.TempDir(), id)
	toDir := t.TempDir()
	to, shutTo := realJournal(t, toDir, id)
	t.Cleanup(func() { p.source.down(); p.replica.down(); shutFrom(); shutTo() })
	p.source.o.Groups = func() []Group {
		return []Group{{Tenant: tenant, Name: group, Source: JournalSource(from), Peers: []string{"b"}}}
	}
	p.replica.o.Receive = func(string, journal.Identity, string, string) (Replica, error) { return to, nil }
	ctx := t.Context()
	w, err := from.BeginEpoch(ctx, "a", journal.Position{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	v := cbt.Volume{ID: cbt.VolumeID(cbt.NewID()), Name: "disk", Size: 4 << 20}
	if err := w.AddVolume(ctx, v); err != nil {
		t.Fatal(err)
	}
	p.up()
	const seed = 5
	rng := rand.New(rand.NewPCG(seed, seed))
	t.Logf("seed %d", seed)
	write := func(n int) {
		t.Helper()
		for range n {
			e := cbt.Extent{Offset: rng.Int64N(900) * cbt.CellBytes, Length: (1 + rng.Int64N(8)) * cbt.SectorBytes}
			pending, err := w.Record(ctx, cbt.Event{Kind: cbt.EventWrite, Volume: v.ID, Extent: e, Data: bytes.Repeat([]byte{byte(rng.Uint32())}, int(e.Length))})
			if err == nil {
				err = pending.Wait(ctx)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	caughtUp := func(what string) {
		t.Helper()
		if err := w.WaitDurable(ctx); err != nil {
			t.Fatal(err)
		}
		want := from.Head().Durable
		eventually(t, what, func() bool {
			l := p.source.lag()
			return to.Head().Durable == want && l.Known && l.Records == 0 && l.Bytes == 0
		})
	}
	pending, err := w.Record(ctx, cbt.Event{Kind: cbt.EventSynced, Volume: v.ID})
	if err == nil {
		err = pending.Wait(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	write(200)
	caughtUp("the first load arrives")
	p.relay.cut.Store(true)
	write(200)
	eventually(t, "source sees the cut", func() bool { return !p.source.lag().Connected })
	p.relay.cut.Store(false)
	caughtUp("the load of the outage arrives")
	write(100)
	p.replica.down()
	shutTo()
	write(100)
	to, shutTo = realJournal(t, toDir, id)
	p.upReplica()
	caughtUp("the load of the restart arrives")
	if err := sameImage(ctx, from, to, v); err != nil {
		t.Error(err)
	}
}

func sameImage(ctx context.Context, a, b *journal.Journal, v cbt.Volume) error {
	at, err := journal.ParseAt("latest")
	if err != nil {
		return err
	}
	var images [2][]byte
	for i, j := range []*journal.Journal{a, b} {
		point, err := j.Resolve(ctx, at)
		if err != nil {
			return err
		}
		view, err := j.View(ctx, point)
		if err != nil {
			return err
		}
		images[i] = make([]byte, v.Size)
		err = view.ReadAt(ctx, v.ID, images[i], 0)
		if cerr := view.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
	}
	if !bytes.Equal(images[0], images[1]) || len(bytes.Trim(images[0], "\x00")) == 0 {
		return fmt.Errorf("images of volume %s differ, or are empty", v.Name)
	}
	return nil
}
