package replicator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

// foldedPair is a pair of real journals whose source folds all that is sealed.
type foldedPair struct {
	*pair
	id              journal.Identity
	src, dst        *journal.Journal
	shutSrc, endDst func()
	dir             string
	w               *journal.Writer
	vol             cbt.Volume
	rng             *rand.Rand
	coalesce        map[string]time.Duration
}

var foldAtOnce = journal.Retention{Ladder: []journal.Rung{{Every: 0, For: time.Nanosecond}, {Every: time.Hour}}}

func newFoldedPair(t *testing.T) *foldedPair {
	f := &foldedPair{pair: newPair(t), dir: t.TempDir(), rng: rand.New(rand.NewPCG(7, 7))}
	f.id = f.from.Identity()
	f.src, f.shutSrc = realJournal(t, t.TempDir(), f.id)
	f.dst, f.endDst = realJournal(t, f.dir, f.id)
	t.Cleanup(func() { f.source.down(); f.replica.down(); f.shutSrc(); f.endDst() })
	f.source.o.Groups = func() []Group {
		return []Group{{Tenant: tenant, Name: group, Source: JournalSource(f.src), Peers: []string{"b"}, Coalesce: f.coalesce}}
	}
	f.replica.o.Receive = func(string, journal.Identity, string, string) (Replica, error) { return f.dst, nil }
	var err error
	if f.w, err = f.src.BeginEpoch(t.Context(), "a", journal.Position{}, 0); err != nil {
		t.Fatal(err)
	}
	f.vol = cbt.Volume{ID: cbt.VolumeID(cbt.NewID()), Name: "disk", Size: 8 << 20}
	if err := f.w.AddVolume(t.Context(), f.vol); err != nil {
		t.Fatal(err)
	}
	f.record(cbt.Event{Kind: cbt.EventSynced, Volume: f.vol.ID})
	return f
}

func (f *foldedPair) record(ev cbt.Event) {
	f.Helper()
	pending, err := f.w.Record(f.Context(), ev)
	if err == nil {
		err = pending.Wait(f.Context())
	}
	if err != nil {
		f.Fatal(err)
	}
}

// write writes n cells or so, so that segments fill.
func (f *foldedPair) write(n int) {
	f.Helper()
	for range n {
		data := make([]byte, (1+f.rng.Int64N(16))*cbt.SectorBytes*4)
		for i := range data {
			data[i] = byte(f.rng.Uint32())
		}
		f.record(cbt.Event{Kind: cbt.EventWrite, Volume: f.vol.ID, Data: data,
			Extent: cbt.Extent{Offset: f.rng.Int64N(f.vol.Size/cbt.SectorBytes-64) * cbt.SectorBytes, Length: int64(len(data))}})
	}
	if err := f.w.WaitDurable(f.Context()); err != nil {
		f.Fatal(err)
	}
}

// fold folds all that is sealed; frames before what it returns are gone.
func (f *foldedPair) fold() journal.Seq {
	f.Helper()
	if err := f.src.WaitDurable(f.Context(), f.src.Head().Position); err != nil {
		f.Fatal(err)
	}
	if _, err := f.src.Spans(f.Context()); err != nil { // indexed
		f.Fatal(err)
	}
	if _, err := f.src.Maintain(f.Context(), journal.Maintenance{Retention: foldAtOnce, FoldBytes: 1}); err != nil {
		f.Fatal(err)
	}
	return f.src.Usage().FramesFrom.Seq
}

// level waits until the replica has all, and compares the images.
func (f *foldedPair) level(what string) {
	f.Helper()
	eventually(f.TB, what, func() bool {
		l := f.source.lag()
		return f.dst.Head().Durable == f.src.Head().Durable && l.Known && l.Records == 0
	})
	if err := sameImage(f.Context(), f.src, f.dst, f.vol); err != nil {
		f.Errorf("%s: %v", what, err)
	}
}

// imageAt is the volume at a record.
func imageAt(ctx context.Context, j *journal.Journal, p journal.Position, v cbt.Volume) ([]byte, error) {
	view, err := j.View(ctx, journal.Point{Position: p})
	if err != nil {
		return nil, err
	}
	b := make([]byte, v.Size)
	return b, errors.Join(view.ReadAt(ctx, v.ID, b, 0), view.Close())
}

// A peer that comes when the first history is folded gets a delta, then frames; so
// does one that was away until what it lacks was. What it held before reads as before.
func TestPeersAreBroughtOnByDeltas(t *testing.T) {
	f := newFoldedPair(t)
	f.write(300)
	if from := f.fold(); from < 3 {
		t.Fatalf("frames are there from record %d on", from)
	}
	f.up()
	f.level("a new peer is level")
	f.write(20)
	f.level("frames follow")
	at := f.dst.Head().Position
	before, err := imageAt(t.Context(), f.dst, at, f.vol)
	if err != nil {
		t.Fatal(err)
	}
	f.replica.down()
	f.write(300)
	if from := f.fold(); from <= at.Seq+1 {
		t.Fatalf("frames are there from record %d on, the peer has %d", from, at.Seq)
	}
	f.upReplica()
	f.level("a peer that was away is level")
	after, err := imageAt(t.Context(), f.dst, at, f.vol)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("what the peer held at record %d changed: %v", at.Seq, err)
	}
	spans, err := f.dst.Spans(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range spans { // nothing between is a point
		if s.First.Seq <= at.Seq && s.Last.Seq > at.Seq {
			t.Errorf("it lists points from %v to %v", s.First, s.Last)
		}
	}
	if spans[len(spans)-1].Last != f.src.Head().Position {
		t.Errorf("its newest point is %v", spans[len(spans)-1].Last)
	}
}

// A delta that is cut off, or whose receiver dies, is begun anew.
func TestCutDeltaIsBegunAnew(t *testing.T) {
	f := newFoldedPair(t)
	f.write(300)
	f.fold()
	f.source.o.Peers[0].LimitBytesPerSecond = 32 << 10
	f.up()
	moving := func(what string) {
		t.Helper()
		was := f.source.lag().BytesMoved
		eventually(t, what, func() bool {
			l := f.source.lag()
			return l.State == StateCatchingUp && !l.Target.IsZero() && l.BytesMoved > was+32<<10
		})
		if h := f.dst.Head(); !h.IsZero() {
			t.Fatalf("%s: the peer holds %v", what, h)
		}
	}
	moving("a delta is on its way")
	f.relay.cut.Store(true)
	eventually(t, "source sees the cut", func() bool { return !f.source.lag().Connected })
	f.relay.cut.Store(false)
	moving("it is begun anew")
	f.replica.down()
	f.endDst()
	f.dst, f.endDst = realJournal(t, f.dir, f.id)
	f.upReplica()
	moving("it is begun anew after a restart")
	if err := f.source.rep.SetLimit("b", 0, 0); err != nil {
		t.Fatal(err)
	}
	f.level("the peer is level")
}

// A peer that lags more than it may gets the newest state and not what lay between.
func TestLaggingPeerIsCoalesced(t *testing.T) {
	f := newFoldedPair(t)
	f.up()
	f.write(10)
	f.level("the peer is level")
	f.replica.down()
	from := f.src.Head().Position
	f.write(50)
	f.source.down()
	f.coalesce = map[string]time.Duration{"b": time.Nanosecond}
	to := f.src.Head().Position
	f.up()
	f.level("the peer is level again")
	for s := from.Seq + 1; s < to.Seq; s++ {
		if _, err := f.dst.View(t.Context(), journal.Point{Position: journal.Position{Epoch: to.Epoch, Seq: s}}); !errors.Is(err, journal.ErrReclaimed) {
			t.Fatalf("record %d: %v", s, err)
		}
	}
}

// What is not a delta ends the reading of it, without memory for what a length claims.
func TestDeltaBlocksAreChecked(t *testing.T) {
	whole := func(change func([]byte) []byte) error {
		b := append(deltaBlock([]byte("abc")), "abc"...)
		end := (&deltaWriter{total: 3}).tail()
		r := &deltaReader{r: bytes.NewReader(change(append(b, end...))), moved: func(int) {}, over: func() {}}
		got := make([]byte, 8)
		n := 0
		for n < 8 {
			k, err := r.Read(got[n:])
			if n += k; err != nil {
				break
			}
		}
		if r.err == nil && string(got[:n]) != "abc" {
			return fmt.Errorf("read %q", got[:n])
		}
		return r.err
	}
	if err := whole(func(b []byte) []byte { return b }); err != nil {
		t.Fatal(err)
	}
	const bytesOfAll = 8 + 3 + 8 + 8
	for at := range bytesOfAll {
		if err := whole(func(b []byte) []byte { b[at] ^= 0x80; return b }); err == nil {
			t.Errorf("byte %d may be anything", at)
		}
		if err := whole(func(b []byte) []byte { return b[:at] }); err == nil {
			t.Errorf("it may end after %d bytes", at)
		}
	}
}
