package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/testbed/scale"
)

// shipped is a frame as a stream yields it.
type shipped struct {
	first, last Position
	bytes       []byte
}

// ship reads all durable frames after a record.
func ship(t testing.TB, j *Journal, after Position) []shipped {
	t.Helper()
	s, err := j.Stream(soon(t), after)
	if err != nil {
		t.Fatal(err)
	}
	var out []shipped
	for l := j.Lineage(); len(l) > 0 && s.after != lastOf(l); {
		f, err := s.Next(soon(t))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(f.Reader)
		if err != nil || int64(len(b)) != f.Bytes {
			t.Fatalf("read frame: %d of %d bytes, %v", len(b), f.Bytes, err)
		}
		out = append(out, shipped{f.First, f.Last, b})
	}
	return out
}

func (f shipped) to(j *Journal) (Cursor, bool, error) {
	return j.AppendFrame(context.Background(), bytes.NewReader(f.bytes), int64(len(f.bytes)), Chain{})
}

func deliver(t testing.TB, j *Journal, fs []shipped) {
	t.Helper()
	for _, f := range fs {
		if c, dup, err := f.to(j); err != nil || dup || c.Position != f.last {
			t.Fatalf("append %s to %s: at %s, dup %v, %v", f.first, f.last, c.Position, dup, err)
		}
	}
	if n := len(fs); n > 0 {
		if err := j.WaitDurable(soon(t), fs[n-1].last); err != nil {
			t.Fatal(err)
		}
	}
}

// together records n writes so that several share a frame.
func together(t testing.TB, w *Writer, v cbt.Volume, n int) []Seq {
	t.Helper()
	record := func(i int) cbt.Pending {
		p, err := w.Record(soon(t), cbt.Event{Kind: cbt.EventWrite, Volume: v.ID, Extent: cbt.Extent{Offset: int64(i) * 512, Length: 512}, Data: bytes.Repeat([]byte{byte(i + 1)}, 512)})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	w.j.fileMu.Lock()
	record(0) // the committer takes this one and waits for the file with it
	until(t, func() bool {
		w.j.mu.Lock()
		defer w.j.mu.Unlock()
		return len(w.j.queue) == 0
	})
	var ps []cbt.Pending
	for i := range n {
		ps = append(ps, record(i))
	}
	w.j.fileMu.Unlock()
	var out []Seq
	for _, p := range ps {
		if err := p.Wait(soon(t)); err != nil {
			t.Fatal(err)
		}
		out = append(out, p.(pendingRecord).seq)
	}
	return out
}

// A frame is the same bytes at every site, over epochs and segments and restarts
// of the replica; a replica gives back the same points and can take over.
func TestReplicaHoldsTheSameFrames(t *testing.T) {
	rng := newSeed(t)
	id := newIdentity()
	so := Options{FS: vfs.NewMem(), Create: id, SegmentBytes: 256 << 10}
	ro := Options{FS: vfs.NewMem(), Create: id, SegmentBytes: 100 << 10}
	v := volume("a", 1<<20)
	model := &oracle{sizes: map[cbt.VolumeID]int64{v.ID: v.Size}}
	for life := range 3 {
		src, dst := start(t, "s", so), start(t, "r", ro)
		w := beginWith(t, src.Journal, v)
		for range 20 {
			model.write(t, w, rng, v.ID)
		}
		if err := w.WaitDurable(soon(t)); err != nil {
			t.Fatal(err)
		}
		deliver(t, dst.Journal, ship(t, src.Journal, dst.Head().Durable.Position))
		all, there := ship(t, src.Journal, Position{}), ship(t, dst.Journal, Position{})
		if len(all) != len(there) || len(all) == 0 {
			t.Fatalf("life %d: %d frames here, %d there", life, len(all), len(there))
		}
		for i := range all {
			if !bytes.Equal(all[i].bytes, there[i].bytes) {
				t.Fatalf("life %d: frame %d of %s differs", life, i, all[i].first)
			}
			if _, dup, err := all[i].to(dst.Journal); !dup || err != nil {
				t.Fatalf("frame again: dup %v, %v", dup, err)
			}
		}
		if a, b := src.Head().Durable, dst.Head().Durable; a != b {
			t.Fatalf("heads differ: %v and %v", a, b)
		}
		checkPoint(t, dst.Journal, model, "latest")
		checkPoint(t, dst.Journal, model, fmt.Sprintf("#%d", model.log[len(model.log)-7].seq))
		if r, err := Relate(src.Branches(), src.Head().Epoch, dst.Branches(), dst.Head().Epoch); err != nil || r.Kind != Same {
			t.Fatalf("relation %v, %v", r.Kind, err)
		}
		src.close()
		dst.close()
	}
	dst := start(t, "r", ro)
	defer dst.close()
	w, err := dst.BeginEpoch(soon(t), "b", Position{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	model.write(t, w, rng, v.ID)
	if err := comparePointAs(t, dst.Journal, model, v); err != nil {
		t.Fatal(err)
	}
	if found, err := dst.Verify(soon(t), nil); err != nil || len(found) > 0 {
		t.Fatalf("verify: %v, %v", found, err)
	}
}

func comparePointAs(t testing.TB, j *Journal, o *oracle, v cbt.Volume) error {
	h := j.Head()
	got, err := readAs(t, j, h.Position, v)
	if err == nil && !bytes.Equal(got, o.image(v.ID, h.Seq)) {
		err = errors.New("the head differs from the model")
	}
	return err
}

// What does not follow on is refused, and leaves no trace.
func TestReplicaRefuses(t *testing.T) {
	id := newIdentity()
	src := start(t, "s", Options{FS: vfs.NewMem(), Create: id})
	defer src.close()
	v := volume("a", 64<<10)
	w := beginWith(t, src.Journal, v)
	for i := range 6 {
		put(t, w, v, int64(i)*4096, bytes.Repeat([]byte{byte(i + 1)}, 4096))
	}
	if err := w.WaitDurable(soon(t)); err != nil {
		t.Fatal(err)
	}
	first := ship(t, src.Journal, Position{})
	if _, err := src.BeginEpoch(soon(t), "s", Position{}, 0); err != nil {
		t.Fatal(err)
	}
	second := ship(t, src.Journal, first[len(first)-1].last)
	n := len(first)

	fs := vfs.NewMem()
	dst := start(t, "r", Options{FS: fs, Create: id})
	refuse := func(what string, f shipped, want error) {
		t.Helper()
		before := dst.Head()
		if _, _, err := f.to(dst.Journal); !errors.Is(err, want) {
			t.Fatalf("%s: %v, want %v", what, err, want)
		}
		if dst.Head() != before {
			t.Fatalf("%s: the head moved", what)
		}
	}
	refuse("records without their epoch", first[1], ErrUnknownParent)
	deliver(t, dst.Journal, first[:3])
	refuse("a gap", first[4], ErrNotContiguous)
	refuse("an epoch beyond our end", second[0], ErrUnknownParent)
	f := first[3]
	for _, n := range []int{0, 1, frameHeaderBytes, pageBytes - 1, pageBytes, len(f.bytes) - 1} {
		before := dst.Head()
		_, _, err := dst.AppendFrame(soon(t), bytes.NewReader(f.bytes[:n]), int64(len(f.bytes)), Chain{})
		if !errors.Is(err, io.ErrUnexpectedEOF) || dst.Head() != before {
			t.Fatalf("a frame cut after %d bytes: %v", n, err)
		}
	}
	var damage *DamageError
	if _, _, err := dst.AppendFrame(soon(t), bytes.NewReader(f.bytes), int64(len(f.bytes)), Chain{1}); !errors.As(err, &damage) {
		t.Fatalf("a wrong chain value: %v", err)
	}
	// A refused frame is not there after a restart either.
	dst.close()
	dst = start(t, "r", Options{FS: fs, Create: id})
	if got := dst.Head().Position; got != first[2].last {
		t.Fatalf("after refusals and a restart the head is %s, want %s", got, first[2].last)
	}
	deliver(t, dst.Journal, first[3:])
	deliver(t, dst.Journal, second)
	other := start(t, "o", Options{FS: vfs.NewMem(), Create: newIdentity()})
	defer other.close()
	if _, _, err := first[0].to(other.Journal); !errors.Is(err, ErrWrongJournal) {
		t.Fatalf("another group's frame: %v", err)
	}
	// The old primary goes on in the epoch that has been left behind.
	stale := first[n-1]
	b := bytes.Clone(stale.bytes)
	h, err := decodeFrameHeader(b)
	if err != nil {
		t.Fatal(err)
	}
	h.First, h.Last = h.Last+1, h.Last+Seq(h.Count)
	h.encode(b)
	sealMeta(b[:h.MetaBytes])
	refuse("a lower epoch", shipped{bytes: b}, ErrLowerEpoch)
	if _, err := dst.BeginEpoch(soon(t), "r", Position{}, 0); err != nil {
		t.Fatal(err)
	}
	refuse("a frame at a primary", shipped{bytes: forged(t, second[len(second)-1].bytes)}, ErrFenced)
	dst.close()
}

// forged is a frame of an epoch nobody knows.
func forged(t testing.TB, frame []byte) []byte {
	b := bytes.Clone(frame)
	h, err := decodeFrameHeader(b)
	if err != nil {
		t.Fatal(err)
	}
	h.Epoch, h.Number = EpochID(cbt.NewID()), 1000
	h.encode(b)
	sealMeta(b[:h.MetaBytes])
	return b
}

// A fork inside a frame: the replica holds more of the parent than the fork keeps,
// takes the new epoch, and keeps its tail as a branch.
func TestForkInsideAFrame(t *testing.T) {
	id := newIdentity()
	src := start(t, "s", Options{FS: vfs.NewMem(), Create: id})
	defer src.close()
	ahead := start(t, "r", Options{FS: vfs.NewMem(), Create: id})
	defer ahead.close()
	behind := start(t, "q", Options{FS: vfs.NewMem(), Create: id})
	defer behind.close()
	v := volume("a", 64<<10)
	w := beginWith(t, src.Journal, v)
	begun := w.Epoch()
	seqs := together(t, w, v, 6)
	if err := w.WaitDurable(soon(t)); err != nil {
		t.Fatal(err)
	}
	frames := ship(t, src.Journal, Position{})
	tail := frames[len(frames)-1]
	if tail.first.Seq > seqs[3] || tail.last.Seq < seqs[5] {
		t.Fatalf("the last frame is %s to %s of %v", tail.first, tail.last, seqs)
	}
	deliver(t, ahead.Journal, frames)
	follower, err := src.Stream(soon(t), tail.last)
	if err != nil {
		t.Fatal(err)
	}
	p := Position{begun.ID, seqs[3]}
	w2, err := src.BeginEpoch(soon(t), "s", p, 0)
	if err != nil {
		t.Fatal(err)
	}
	put(t, w2, v, 0, bytes.Repeat([]byte{0xee}, 512))
	if err := w2.WaitDurable(soon(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := follower.Next(soon(t)); !errors.Is(err, ErrNotContiguous) {
		t.Fatalf("a stream beyond the fork goes on: %v", err)
	}
	r, err := Relate(src.Branches(), src.Head().Epoch, ahead.Branches(), ahead.Head().Epoch)
	if err != nil || r.Kind != PeerBehind || !r.PeerTail || r.Common.Position != p {
		t.Fatalf("relation %+v, %v", r, err)
	}
	deliver(t, ahead.Journal, ship(t, src.Journal, r.Common.Position))
	deliver(t, behind.Journal, ship(t, src.Journal, Position{})) // the cut frame goes whole
	for _, j := range []*running{src, ahead, behind} {
		for at, want := range map[Position][2]byte{
			{begun.ID, seqs[5]}: {1, 6}, p: {1, 0}, j.Head().Position: {0xee, 0},
		} {
			b, err := readAs(t, j.Journal, at, v)
			if err != nil || b[0] != want[0] || b[5*512] != want[1] || b[3*512] != 4 {
				t.Fatalf("at %s: %d, %d: %v", at, b[0], b[5*512], err)
			}
		}
		if found, err := j.Verify(soon(t), nil); err != nil || len(found) > 0 {
			t.Fatalf("verify: %v, %v", found, err)
		}
	}
}

// Promise 6: a flipped byte anywhere in a frame is found on arrival.
func TestFlippedByteOnArrival(t *testing.T) {
	id := newIdentity()
	src := start(t, "s", Options{FS: vfs.NewMem(), Create: id})
	defer src.close()
	v := volume("a", 64<<10)
	w := beginWith(t, src.Journal, v)
	put(t, w, v, 512, bytes.Repeat([]byte{5}, 1024))
	if err := w.WaitDurable(soon(t)); err != nil {
		t.Fatal(err)
	}
	frames := ship(t, src.Journal, Position{})
	dst := start(t, "r", Options{FS: vfs.NewMem(), Create: id})
	defer dst.close()
	n := len(frames) - 1
	deliver(t, dst.Journal, frames[:n])
	before, flipped := dst.Head(), 0
	for at := range frames[n].bytes {
		b := bytes.Clone(frames[n].bytes)
		b[at] ^= 1 << (at % 8)
		if _, _, err := (shipped{bytes: b}).to(dst.Journal); err == nil {
			t.Fatalf("byte %d of %d flipped and taken", at, len(b))
		}
		flipped++
	}
	if dst.Head() != before {
		t.Fatal("the head moved")
	}
	deliver(t, dst.Journal, frames[n:])
	scale.Counted(t, "journal-flipped-bytes", flipped, 4096)
}

// The receiver dies at each operation; what it said is durable is there, and it
// goes on from where it stands to the same frames.
func TestReceiverCrashesAnywhere(t *testing.T) {
	t.Parallel()
	rng := newSeed(t)
	id := newIdentity()
	src := start(t, "s", Options{FS: vfs.NewMem(), Create: id})
	defer src.close()
	v := volume("a", 256<<10)
	model := &oracle{sizes: map[cbt.VolumeID]int64{v.ID: v.Size}}
	w := beginWith(t, src.Journal, v)
	for range 12 {
		model.write(t, w, rng, v.ID)
	}
	w, err := src.BeginEpoch(soon(t), "s", Position{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 6 {
		model.write(t, w, rng, v.ID)
	}
	if err := w.WaitDurable(soon(t)); err != nil {
		t.Fatal(err)
	}
	frames := ship(t, src.Journal, Position{})
	crashes := 0
	world := newWorld(vfs.NewCrashableMem())
	o := Options{FS: world.fs, Create: id, SegmentBytes: 64 << 10}
	dst := start(t, "r", o)
	type clone struct {
		fs   *vfs.MemFS
		must Position
	}
	var clones []clone
	var durable Position
	busy := make(chan struct{}, 1) // also guards durable and clones
	world.onWrite(func(op errorfs.Op) error {
		if inIndex(op) {
			return nil
		}
		busy <- struct{}{}
		clones = append(clones, clone{world.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rand.New(rand.NewPCG(rng.Uint64(), 1))}), durable})
		<-busy
		return nil
	})
	for _, f := range frames {
		deliver(t, dst.Journal, []shipped{f})
		busy <- struct{}{}
		durable = f.last
		<-busy
	}
	world.onWrite(nil)
	dst.close()
	for i, c := range clones {
		k := start(t, "r", Options{FS: c.fs, Create: id, SegmentBytes: 64 << 10})
		h := k.Head()
		if h.Seq < c.must.Seq || h.Durable.Position != h.Position {
			t.Fatalf("crash %d: at %s, durable %s, acknowledged %s", i, h.Position, h.Durable.Position, c.must)
		}
		deliver(t, k.Journal, ship(t, src.Journal, h.Position))
		if err := comparePointAs(t, k.Journal, model, v); err != nil {
			t.Fatalf("crash %d: %v", i, err)
		}
		if k.Head().Durable != src.Head().Durable {
			t.Fatalf("crash %d: chain differs", i)
		}
		k.close()
		crashes++
	}
	scale.Counted(t, "journal-receiver-crashes", crashes, 40)
}

// Power goes while received frames are in the page cache alone, and a later one
// reaches the disk where an earlier one does not: a torn tail, not a loss.
func TestReceivedFramesProveNothing(t *testing.T) {
	id := newIdentity()
	src := start(t, "s", Options{FS: vfs.NewMem(), Create: id})
	defer src.close()
	v := volume("a", 64<<10)
	w := beginWith(t, src.Journal, v)
	for i := range 4 {
		put(t, w, v, int64(i)*4096, bytes.Repeat([]byte{9}, 4096))
		if err := w.WaitDurable(soon(t)); err != nil {
			t.Fatal(err)
		}
	}
	frames := ship(t, src.Journal, Position{})
	fs := vfs.NewMem()
	dst := start(t, "r", Options{FS: fs, Create: id})
	deliver(t, dst.Journal, frames)
	at, err := dst.frameOf(soon(t), frames[len(frames)-3].last)
	if err != nil {
		t.Fatal(err)
	}
	dst.close()
	// The index and the anchor of the clean close are gone with the power, too.
	if err := errors.Join(fs.RemoveAll("r/index"), fs.Remove("r/"+siteLogName)); err != nil {
		t.Fatal(err)
	}
	flip(t, fs, "r/segments/"+segmentName(at.segment), at.offset+100)
	dst = start(t, "r", Options{FS: fs, Create: id})
	defer dst.close()
	if got := dst.Head().Position; got != frames[len(frames)-4].last {
		t.Fatalf("opened at %s, want %s", got, frames[len(frames)-4].last)
	}
	deliver(t, dst.Journal, frames[len(frames)-3:])
}

// A connection that ends in the middle of a segment's first frame leaves a segment
// without any. What lies before it is folded all the same where a delta is to land.
func TestLandingBehindHalfAFrame(t *testing.T) {
	f := newFolding(t, vfs.NewMem(), deltaLadder)
	f.write(100, time.Second)
	p := newFollower(f, "k", vfs.NewMem())
	cut := errors.New("cut off")
	landings := 0
	for _, fr := range ship(t, f.j.Journal, Position{}) {
		half := io.MultiReader(bytes.NewReader(fr.bytes[:len(fr.bytes)-1]), iotest.ErrReader(cut))
		if _, _, err := p.to.AppendFrame(soon(t), half, int64(len(fr.bytes)), Chain{}); !errors.Is(err, cut) {
			t.Fatalf("append half a frame: %v", err)
		}
		if head := p.to.Head(); !head.IsZero() && p.to.out.at == pageBytes { // nobody else writes
			l, err := p.to.OpenLanding(soon(t), head.Durable.Position, nil)
			if err != nil {
				t.Fatalf("open landing up to half of record %s: %v", fr.first, err)
			}
			l.Close()
			landings++
		}
		deliver(t, p.to.Journal, []shipped{fr})
	}
	if landings < 3 {
		t.Errorf("%d segments began with half a frame", landings)
	}
	if err := p.check(); err != nil {
		t.Error(err)
	}
}
