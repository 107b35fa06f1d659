package replicator

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/testbed/scale"
)

// packedPair is a pair of real journals that pack whatever the link is like.
type packedPair struct {
	*foldedPair
	lies *liar
}

// liar is a replica whose disk gives other bytes than were written, while false is set.
type liar struct {
	*journal.Journal
	false atomic.Bool
}

func (l *liar) ReadFrame(at journal.FramePlace, p []byte, off int64) error {
	err := l.Journal.ReadFrame(at, p, off)
	if l.false.Load() && len(p) > 0 {
		p[0] ^= 1
	}
	return err
}

func newPackedPair(t *testing.T) *packedPair {
	f := &packedPair{foldedPair: newFoldedPair(t)}
	f.source.o.Packing = PackAlways
	f.source.o.IdleTimeout, f.replica.o.IdleTimeout = patience, patience // what is counted is not to be sent twice
	f.lies = &liar{Journal: f.dst}
	f.replica.o.Receive = func(string, journal.Identity, string, string) (Replica, error) { return f.lies, nil }
	return f
}

// blocks writes n blocks from a cell on.
func (f *packedPair) blocks(cell int64, n int, block func(i int) []byte) {
	f.Helper()
	for i := range n {
		f.record(cbt.Event{Kind: cbt.EventWrite, Volume: f.vol.ID, Data: block(i), Extent: cbt.Extent{Offset: (cell + int64(i)) * cbt.CellBytes, Length: cbt.CellBytes}})
	}
	if err := f.w.WaitDurable(f.Context()); err != nil {
		f.Fatal(err)
	}
	if _, err := f.src.Spans(f.Context()); err != nil { // indexed
		f.Fatal(err)
	}
}

// crossed is what load takes of the journal and of the wire.
func (f *packedPair) crossed(what string, load func()) (inJournal, onWire uint64) {
	f.Helper()
	f.blocks(f.vol.Size/cbt.CellBytes-1, 1, func(int) []byte { return bytes.Repeat([]byte{byte(f.rng.Uint32()) | 1}, cbt.CellBytes) })
	f.level("before " + what)
	before := f.source.lag()
	load()
	f.level(what)
	after := f.source.lag()
	inJournal, onWire = after.JournalBytes-before.JournalBytes, after.BytesMoved-before.BytesMoved
	f.Logf("%s: %d bytes in the journal, %d on the wire", what, inJournal, onWire)
	return inJournal, onWire
}

// misses counts the references that the replica could not follow in this life.
func (f *packedPair) misses() uint64 {
	f.replica.rep.mu.Lock()
	defer f.replica.rep.mu.Unlock()
	return f.replica.rep.misses
}

// What shrinks is sent small, what was sent is sent as hashes, zeros and rewrites of
// the same cost no payload; both journals hold the same bytes.
func TestWireCarriesWhatIsNew(t *testing.T) {
	f := newPackedPair(t)
	f.up()
	const n = 200
	text := func(i int) []byte { return bytes.Repeat([]byte{'a' + byte(i%26), 'b', byte(i), '\n'}, cbt.CellBytes/4) }
	random := make([][]byte, n)
	for i := range random {
		random[i] = make([]byte, cbt.CellBytes)
		fillRandom(f.rng, random[i])
	}
	drawn := func(i int) []byte { return random[i] }
	if j, w := f.crossed("text", func() { f.blocks(0, n, text) }); w > j/4 {
		t.Errorf("text: %d of %d bytes", w, j)
	}
	if j, w := f.crossed("random bytes", func() { f.blocks(n, n, drawn) }); w > j+j/50 || w < n*cbt.CellBytes {
		t.Errorf("random bytes: %d of %d", w, j)
	}
	if j, w := f.crossed("the same bytes elsewhere", func() { f.blocks(2*n, n, drawn) }); w > j/8 || j < n*cbt.CellBytes {
		t.Errorf("the same bytes elsewhere: %d of %d", w, j)
	}
	frame := uint64(2 * cbt.CellBytes) // as much as one of records without payload takes
	if j, w := f.crossed("zeros", func() { f.blocks(3*n, n, func(int) []byte { return make([]byte, cbt.CellBytes) }) }); j > n*frame/2 || w > j/4 {
		t.Errorf("zeros: %d bytes in the journal, %d on the wire", j, w)
	}
	if j, w := f.crossed("a rewrite of the same", func() { f.blocks(2*n, n, drawn) }); j > n*frame/2 || w > j/4 {
		t.Errorf("a rewrite of the same: %d bytes in the journal, %d on the wire", j, w)
	}
	if got := f.misses(); got != 0 {
		t.Errorf("%d references were not followed", got)
	}
}

// Both ends remember over a cut what was sent, and nothing when the replica's process
// is another one.
func TestTablesOutliveACut(t *testing.T) {
	f := newPackedPair(t)
	f.source.o.IdleTimeout, f.replica.o.IdleTimeout = 2*time.Second, 2*time.Second
	f.up()
	const n = 200
	random := make([]byte, n*cbt.CellBytes)
	fillRandom(f.rng, random)
	drawn := func(i int) []byte { return random[i*cbt.CellBytes:][:cbt.CellBytes] }
	f.blocks(0, n, drawn)
	f.level("the peer is level")
	f.relay.cut.Store(true)
	eventually(t, "source sees the cut", func() bool { return !f.source.lag().Connected })
	f.relay.cut.Store(false)
	if j, w := f.crossed("the same bytes after a cut", func() { f.blocks(n, n, drawn) }); w > j/4 {
		t.Errorf("the same bytes after a cut: %d of %d", w, j)
	}
	if got := f.misses(); got != 0 {
		t.Errorf("%d references were not followed", got)
	}
	f.replica.down()
	f.upReplica()
	if _, w := f.crossed("the same bytes after a restart", func() { f.blocks(2*n, n, drawn) }); w < n*cbt.CellBytes {
		t.Errorf("the same bytes after a restart: %d, by references to what nobody remembers", w)
	}
}

// The bytes of a sealed group cross as they lie, also where they repeat.
func TestSealedFramesAreNotPacked(t *testing.T) {
	f := newPackedPair(t)
	ring := new(journal.Keys)
	if err := ring.Add("acme", bytes.Repeat([]byte{7}, 32)); err != nil {
		t.Fatal(err)
	}
	f.shutSrc()
	f.src, f.shutSrc = journalWith(t, t.TempDir(), journal.Options{Create: &f.id, SegmentBytes: 1 << 20, Keys: ring, Compress: journal.CompressOff})
	var err error
	if f.w, err = f.src.BeginEpoch(t.Context(), "a", journal.Position{}, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.w.AddVolume(t.Context(), f.vol); err != nil {
		t.Fatal(err)
	}
	f.up()
	text := func(i int) []byte { return bytes.Repeat([]byte("text"), cbt.CellBytes/4) }
	caughtUp := func() {
		eventually(t, "the peer is level", func() bool { return f.dst.Head().Durable == f.src.Head().Durable && f.source.lag().Records == 0 })
	}
	f.blocks(0, 1, text)
	caughtUp()
	before := f.source.lag()
	f.blocks(100, 100, text)
	caughtUp()
	after := f.source.lag()
	if j, w := after.JournalBytes-before.JournalBytes, after.BytesMoved-before.BytesMoved; w < j || j < 100*cbt.CellBytes {
		t.Errorf("%d bytes in the journal, %d on the wire", j, w)
	}
}

// A replica whose disk gives other bytes for a reference asks for the frame in full; with
// the planted fault, which takes what lies there, the frame is damage and not appended,
// and comes again without the reference.
func TestStaleBlocksAreNotTaken(t *testing.T) {
	stale := func(plant faults) (refused bool) {
		f := newPackedPair(t)
		f.plant = plant
		f.up()
		block := make([]byte, cbt.CellBytes)
		fillRandom(f.rng, block)
		same := func(int) []byte { return block }
		f.blocks(0, 20, same)
		f.level("the peer is level")
		f.lies.false.Store(true)
		f.blocks(100, 1, same)
		f.level("the peer is level again")
		f.source.note(func() {
			for _, err := range f.source.ended {
				var no *RefusedError
				refused = refused || errors.As(err, &no) && no.Code == CodeDamage
			}
		})
		if got := f.misses(); plant == (faults{}) && got != 1 {
			t.Errorf("%d references were not followed", got)
		}
		return refused
	}
	if stale(faults{}) {
		t.Error("a reference that cannot be followed ends the session")
	}
	if !stale(faults{staleBlocks: true}) {
		t.Fatal("planted fault not caught: reference resolved to a stale block")
	}
	scale.Counted(t, "replicator-planted-faults", 1, 1)
}

// Sites that do not pack are sent frames as they lie.
func TestOldPeersGetFramesAsTheyLie(t *testing.T) {
	f := newPackedPair(t)
	f.plant.noPacking = true
	f.up()
	if j, w := f.crossed("text", func() { f.blocks(0, 50, func(int) []byte { return bytes.Repeat([]byte("text"), cbt.CellBytes/4) }) }); w < j {
		t.Errorf("%d bytes in the journal, %d on the wire", j, w)
	}
}

// journalWith opens a journal and runs it until shut.
func journalWith(t *testing.T, dir string, o journal.Options) (*journal.Journal, func()) {
	t.Helper()
	j, err := journal.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- j.Run(ctx) }()
	open := true
	return j, func() {
		if !open {
			return
		}
		open = false
		cancel()
		<-done
		if err := j.Close(); err != nil {
			t.Errorf("close journal: %v", err)
		}
	}
}
