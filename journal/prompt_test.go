package journal

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/cbt"
)

// recordInTurn records ev in both of the ways, in turn.
func recordInTurn(ctx context.Context, w *Writer, ev cbt.Event) (cbt.Pending, error) {
	p, commit, err := placeInTurn(ctx, w, ev)
	if err == nil {
		commit()
	}
	return p, err
}

// placeInTurn is recordInTurn before commit is called.
func placeInTurn(ctx context.Context, w *Writer, ev cbt.Event) (p cbt.Pending, commit func(), err error) {
	w.j.mu.Lock()
	now := w.j.next%2 == 0
	w.j.mu.Unlock()
	if now {
		if p, ok := w.RecordNow(ev); ok {
			return p, w.Commit, nil
		}
	}
	p, err = w.Record(ctx, ev)
	return p, func() {}, err
}

// Writers of both ways beside each other: each place has the newest of what was answered,
// also after the journal was closed and opened again, and no seq is missing.
func TestPromptWritersBesideOthers(t *testing.T) {
	const writers, rounds, slots = 6, 60, 8
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	o := Options{FS: vfs.NewMem(), Create: newIdentity()}
	j := start(t, "j", o)
	v := volume("a", 1<<20)
	w := beginWith(t, j.Journal, v)
	first := j.Head().Seq
	var g sync.WaitGroup
	var newest [writers][slots]byte
	for k := range writers {
		g.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(k)))
			for i := range rounds {
				slot, fill := rng.IntN(slots), byte(1+i)
				ev := cbt.Event{Kind: cbt.EventWrite, Volume: v.ID, Extent: cbt.Extent{Offset: int64(k*slots+slot) * 4096, Length: 4096}, Data: bytes.Repeat([]byte{fill}, 4096)}
				var p cbt.Pending
				var err error
				ok := false
				if k%2 == 0 {
					if p, ok = w.RecordNow(ev); ok {
						clear(ev.Data) // it is the caller's again
						w.Commit()
					}
				}
				if !ok {
					p, err = w.Record(soon(t), ev)
				}
				if err == nil {
					err = p.Wait(soon(t))
				}
				if err != nil {
					t.Errorf("record: %v", err)
					return
				}
				newest[k][slot] = fill
			}
		})
	}
	g.Wait()
	if got := j.Head().Seq; got != first+writers*rounds {
		t.Errorf("the head is %d, want %d", got, first+writers*rounds)
	}
	j.close()
	j = start(t, "j", o)
	defer j.close()
	got := make([]byte, 4096)
	w = beginWith(t, j.Journal)
	for k := range writers {
		for slot, fill := range newest[k] {
			if err := w.ReadHead(soon(t), v.ID, int64(k*slots+slot)*4096, got); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, bytes.Repeat([]byte{fill}, 4096)) {
				t.Errorf("writer %d, slot %d: got %d, want %d", k, slot, got[0], fill)
			}
		}
	}
}
