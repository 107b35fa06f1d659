package journal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/cbt"
)

// running is an open journal whose Run runs.
type running struct {
	*Journal
	t    testing.TB
	stop context.CancelFunc
	done chan error
}

func newIdentity() *Identity { return &Identity{cbt.NewID(), cbt.NewID(), cbt.NewID()} }

func start(t testing.TB, dir string, o Options) *running {
	t.Helper()
	j, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	r := &running{Journal: j, t: t, done: make(chan error, 1)}
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	go func() { r.done <- j.Run(ctx) }()
	if err := j.waitFor(context.Background(), func() bool { return j.running }); err != nil {
		t.Fatal(err)
	}
	return r
}

// close ends Run and closes.
func (r *running) close() {
	r.t.Helper()
	r.stop()
	if err := errors.Join(<-r.done, r.Journal.Close()); err != nil {
		r.t.Fatal(err)
	}
}

// oracle is an independent model: the writes of each volume by seq.
type oracle struct {
	sizes map[cbt.VolumeID]int64
	log   []oracleWrite
}

type oracleWrite struct {
	seq  Seq
	vol  cbt.VolumeID
	off  int64
	data []byte // nil: zeros
	n    int64
}

func (o *oracle) image(v cbt.VolumeID, upTo Seq) []byte {
	img := make([]byte, o.sizes[v])
	for _, w := range o.log {
		if w.vol != v || w.seq > upTo {
			continue
		}
		if w.data == nil {
			clear(img[w.off : w.off+w.n])
		} else {
			copy(img[w.off:], w.data)
		}
	}
	return img
}

func (o *oracle) write(t testing.TB, w *Writer, rng *rand.Rand, v cbt.VolumeID) Seq {
	t.Helper()
	size := o.sizes[v]
	sectors := size / cbt.SectorBytes
	n := int64(1) << rng.IntN(9) // up to 128 KiB
	if rng.IntN(4) == 0 {
		n = 1 + rng.Int64N(40)
	}
	off := rng.Int64N(sectors)
	if rng.IntN(2) == 0 {
		off = off / 8 * 8
	}
	n = min(n, sectors-off)
	e := cbt.Extent{Offset: off * cbt.SectorBytes, Length: n * cbt.SectorBytes}
	ev := cbt.Event{Kind: cbt.EventWrite, Volume: v, Extent: e}
	switch rng.IntN(12) {
	case 0:
		ev.Kind = cbt.EventZero
	case 1:
		ev.Kind = cbt.EventTrim
	default:
		ev.Data = noise(rng, int(e.Length))
	}
	p, err := recordInTurn(context.Background(), w, ev)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
	s := p.(pendingRecord).seq
	o.log = append(o.log, oracleWrite{s, v, e.Offset, bytes.Clone(ev.Data), e.Length})
	return s
}

// noise is n bytes that differ from call to call and from sector to sector.
func noise(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for at := 0; at < n; at += 256 {
		binary.LittleEndian.PutUint64(b[at:], rng.Uint64())
		copy(b[at+8:min(at+256, n)], filler[rng.IntN(512):])
	}
	return b
}

var filler = bytes.Repeat([]byte("an afterimage is what you still see after the thing is gone. "), 20)

func beginWith(t testing.TB, j *Journal, vs ...cbt.Volume) *Writer {
	t.Helper()
	ctx := context.Background()
	w, err := j.BeginEpoch(ctx, "a", Position{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range vs {
		if err := w.AddVolume(ctx, v); err != nil {
			t.Fatal(err)
		}
		mustRecord(t, w, cbt.Event{Kind: cbt.EventSynced, Volume: v.ID})
	}
	return w
}

func mustRecord(t testing.TB, w *Writer, ev cbt.Event) Seq {
	t.Helper()
	p, err := w.Record(context.Background(), ev)
	if err == nil {
		err = p.Wait(context.Background())
	}
	if err != nil {
		t.Fatal(err)
	}
	return p.(pendingRecord).seq
}

func volume(name string, size int64) cbt.Volume {
	return cbt.Volume{ID: cbt.VolumeID(cbt.NewID()), Name: name, Size: size}
}

func checkPoint(t testing.TB, j *Journal, o *oracle, at string) {
	t.Helper()
	if err := comparePoint(j, o, at); err != nil {
		t.Fatal(err)
	}
}

func comparePoint(j *Journal, o *oracle, at string) error {
	ctx := context.Background()
	a, err := ParseAt(at)
	if err != nil {
		return err
	}
	p, err := j.Resolve(ctx, a)
	if err != nil {
		return err
	}
	v, err := j.View(ctx, p)
	if err != nil {
		return err
	}
	for _, vol := range v.Volumes() {
		got := make([]byte, vol.Size)
		if err := v.ReadAt(ctx, vol.ID, got, 0); err != nil {
			return err
		}
		want := o.image(vol.ID, p.Seq)
		if !bytes.Equal(got, want) {
			for i := range got {
				if got[i] != want[i] {
					return fmt.Errorf("%s: volume %s differs first at %d", at, vol.Name, i)
				}
			}
		}
		runs, err := v.Status(ctx, vol.ID, cbt.Extent{Length: vol.Size})
		if err != nil {
			return err
		}
		end := int64(0)
		for _, r := range runs {
			if r.Offset != end {
				return fmt.Errorf("%s: status of volume %s has a hole at %d", at, vol.Name, end)
			}
			end = r.End()
			if !r.Data && !bytes.Equal(want[r.Offset:r.End()], make([]byte, r.Length)) {
				return fmt.Errorf("%s: status of volume %s calls %v zero", at, vol.Name, r.Extent)
			}
		}
		if end != vol.Size {
			return fmt.Errorf("%s: status of volume %s ends at %d", at, vol.Name, end)
		}
	}
	return nil
}

// Promise 4: every point restores byte-identical to an independent model, before
// and after restarts, over several segments and epochs.
func TestPointsMatchOracle(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	fs, id := vfs.NewMem(), newIdentity()
	o := Options{FS: fs, Create: id, SegmentBytes: 256 << 10}
	va, vb := volume("a", 256<<10), volume("b", 320<<10-512)
	model := &oracle{sizes: map[cbt.VolumeID]int64{va.ID: va.Size, vb.ID: vb.Size}}
	var points []string
	for life := range 4 {
		j := start(t, "j", o)
		w := beginWith(t, j.Journal, va, vb)
		for i := range 150 {
			v := va.ID
			if rng.IntN(2) == 0 {
				v = vb.ID
			}
			s := model.write(t, w, rng, v)
			if i%7 == life {
				points = append(points, fmt.Sprintf("#%d", s))
			}
		}
		for _, p := range points[max(0, len(points)-22):] {
			checkPoint(t, j.Journal, model, p)
		}
		checkPoint(t, j.Journal, model, "latest")
		j.close()
	}
	j := start(t, "j", o)
	defer j.close()
	for _, p := range points {
		checkPoint(t, j.Journal, model, p)
	}
	if len(points) < 80 {
		t.Fatalf("only %d points", len(points))
	}
}
