package journal

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/cbt"
)

// kindAt is the kind of a record, and what its frame holds of payload.
func kindAt(t testing.TB, j *Journal, p Position) Kind {
	t.Helper()
	if err := j.waitHeld(soon(t), p); err != nil {
		t.Fatal(err)
	}
	s, err := j.frameOf(soon(t), p)
	if err != nil {
		t.Fatal(err)
	}
	return s.recs[p.Seq-s.h.First].kind
}

// What was there is recorded without payload; whatever touched a cell in between
// brings the payload back, though the bytes are the same again.
func TestRewrite(t *testing.T) {
	for _, keys := range []KeyRing{nil, ringOf(t, "acme-1")} {
		o := Options{FS: vfs.NewMem(), Create: newIdentity(), Keys: keys}
		j := start(t, "j", o)
		v := volume("a", 256<<10)
		w := beginWith(t, j.Journal, v)
		rng := newSeed(t)
		a, b := noise(rng, 16<<10), noise(rng, 16<<10)
		record := func(ev cbt.Event) Kind {
			t.Helper()
			ev.Volume = v.ID
			s := mustRecord(t, w, ev)
			return kindAt(t, j.Journal, Position{w.epoch.ID, s})
		}
		write := func(off int64, p []byte) Kind {
			t.Helper()
			return record(cbt.Event{Kind: cbt.EventWrite, Extent: cbt.Extent{Offset: off, Length: int64(len(p))}, Data: p})
		}
		expect := func(what string, got, want Kind) {
			t.Helper()
			if got != want {
				t.Errorf("%s: recorded as %s, want %s", what, got, want)
			}
		}
		expect("first", write(8192, a), KindWrite)
		expect("again", write(8192, a), KindSame)
		expect("a part of it", write(12288, a[4096:12288]), KindSame)
		expect("other bytes", write(8192, b), KindWrite)
		expect("the first bytes again", write(8192, a), KindWrite)
		expect("after less than a cell", write(8704, b[:512]), KindWrite)
		expect("all", write(8192, a), KindWrite)
		expect("a zero", record(cbt.Event{Kind: cbt.EventZero, Extent: cbt.Extent{Offset: 12288, Length: 512}}), KindZero)
		expect("all, behind a zero", write(8192, a), KindWrite)
		expect("a large trim", record(cbt.Event{Kind: cbt.EventTrim, Extent: cbt.Extent{Length: v.Size}}), KindTrim)
		expect("all, behind a trim", write(8192, a), KindWrite)
		expect("not a whole cell", write(8192, a[:512]), KindWrite)
		expect("zeros", write(65536, make([]byte, 8192)), KindZero)
		small := v
		small.Size = 64 << 10
		for _, s := range []cbt.Volume{small, v} {
			if err := w.AddVolume(soon(t), s); err != nil {
				t.Fatal(err)
			}
		}
		expect("all", write(8192, a), KindWrite)
		expect("at the end", write(60<<10, a[:8192]), KindWrite)
		var err error
		if w, err = j.BeginEpoch(soon(t), "a", Position{}, 0); err != nil {
			t.Fatal(err)
		}
		expect("in a new epoch", write(8192, a), KindWrite)
		expect("and again", write(8192, a), KindSame)
		last := j.Head().Position
		got, err := readAs(t, j.Journal, last, v)
		if err != nil || !bytes.Equal(got[8192:24576], a) || !bytes.Equal(got[60<<10:68<<10], a[:8192]) {
			t.Fatalf("the volume differs: %v", err)
		}
		j.close()
	}
}

// A record that repeats what is there is written whole when another comes between
// the comparison and its seq.
func TestRewriteIsCheckedWhenItIsOrdered(t *testing.T) {
	for _, between := range []bool{false, true} {
		fs := &pausing{FS: vfs.NewMem()}
		j := start(t, "j", Options{FS: fs, Create: newIdentity()})
		v := volume("a", 64<<10)
		w := beginWith(t, j.Journal, v)
		a, b := bytes.Repeat([]byte{1}, 4096), bytes.Repeat([]byte{2}, 4096)
		s := put(t, w, v, 0, a)
		kindAt(t, j.Journal, Position{w.epoch.ID, s}) // it is indexed
		fs.onRead(func() {
			if between {
				put(t, w, v, 0, b)
			}
		})
		s = put(t, w, v, 0, a)
		want := map[bool]Kind{false: KindSame, true: KindWrite}[between]
		if got := kindAt(t, j.Journal, Position{w.epoch.ID, s}); got != want {
			t.Errorf("another between: %v, recorded as %s", between, got)
		}
		if got, err := readAs(t, j.Journal, j.Head().Position, v); err != nil || got[0] != 1 {
			t.Errorf("another between: %v, the volume holds %d, %v", between, got[0], err)
		}
		j.close()
	}
}

// pausing calls a function once, when a segment is read next.
type pausing struct {
	vfs.FS
	mu   sync.Mutex // guards then
	then func()
}

func (p *pausing) onRead(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.then = f
}

func (p *pausing) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := p.FS.Open(name, opts...)
	if err != nil || !strings.HasSuffix(name, segmentSuffix) {
		return f, err
	}
	return &pausingFile{f, p}, nil
}

type pausingFile struct {
	vfs.File
	p *pausing
}

func (f *pausingFile) ReadAt(b []byte, off int64) (int, error) {
	f.p.mu.Lock()
	then := f.p.then
	f.p.then = nil
	f.p.mu.Unlock()
	n, err := f.File.ReadAt(b, off)
	if then != nil {
		then()
	}
	return n, err
}

// Promise 4 where many writers write the same few blocks over one another, with one
// of three contents each: at every point, here and at a replica, before and after an
// opening.
func TestRewritesMatchOracle(t *testing.T) {
	rng := newSeed(t)
	o := Options{FS: vfs.NewMem(), Create: newIdentity(), SegmentBytes: 256 << 10, Compress: CompressAlways}
	j := start(t, "j", o)
	v := volume("a", 64<<10)
	model := &oracle{sizes: map[cbt.VolumeID]int64{v.ID: v.Size}}
	w := beginWith(t, j.Journal, v)
	contents := [][]byte{noise(rng, 8192), noise(rng, 8192), noise(rng, 8192)}
	var mu sync.Mutex // guards model
	var writers sync.WaitGroup
	for g := range 6 {
		r := rand.New(rand.NewPCG(rng.Uint64(), uint64(g)))
		writers.Go(func() {
			for range 150 {
				n := int64(1+r.IntN(2)) * 4096
				ev := cbt.Event{Kind: cbt.EventWrite, Volume: v.ID, Extent: cbt.Extent{Offset: int64(r.IntN(3)) * 4096, Length: n}, Data: contents[r.IntN(3)][:n]}
				p, err := w.Record(soon(t), ev)
				if err == nil {
					err = p.Wait(soon(t))
				}
				if err != nil {
					t.Error(err)
					return
				}
				if r.IntN(4) > 0 { // only what reads see is ever found the same
					err = j.waitIndexed(soon(t), 1, p.(pendingRecord).seq)
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				model.log = append(model.log, oracleWrite{p.(pendingRecord).seq, v.ID, ev.Extent.Offset, ev.Data, n})
				mu.Unlock()
			}
		})
	}
	writers.Wait()
	slices.SortFunc(model.log, func(a, b oracleWrite) int { return int(a.seq) - int(b.seq) })
	far := start(t, "r", Options{FS: vfs.NewMem(), Create: o.Create})
	defer far.close()
	frames := ship(t, j.Journal, Position{})
	deliver(t, far.Journal, frames)
	same := 0
	for _, f := range frames {
		_, _, recs := decodeAll(t, f.bytes)
		for _, r := range recs {
			if r.kind == KindSame {
				same++
			}
		}
	}
	j.close()
	if err := o.FS.RemoveAll("j/index"); err != nil {
		t.Fatal(err)
	}
	j = start(t, "j", o)
	defer j.close()
	for i := 0; i < len(model.log); i += 17 {
		at := fmt.Sprintf("#%d", model.log[i].seq)
		checkPoint(t, j.Journal, model, at)
		checkPoint(t, far.Journal, model, at)
	}
	if err := replayMatches(t, far.Journal, model, v.ID); err != nil {
		t.Fatal(err)
	}
	if same < 10 {
		t.Fatalf("only %d of %d were the same", same, len(model.log))
	}
	t.Logf("%d of %d were the same", same, len(model.log))
}
