package journal

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/cbt"
)

// ringOf is a key ring whose key of each name is known by it.
func ringOf(t testing.TB, names ...string) *Keys {
	t.Helper()
	k := new(Keys)
	for _, n := range names {
		if err := k.Add(n, bytes.Repeat([]byte{n[0]}, dataKeyBytes)); err != nil {
			t.Fatal(err)
		}
	}
	return k
}

// forms is every way in which payloads are stored.
var forms = []struct {
	name     string
	compress Compression
	sealed   bool
}{{"plain", CompressOff, false}, {"packed", CompressAlways, false}, {"sealed", CompressOff, true}, {"sealed and packed", CompressAlways, true}}

// Promise 4 for every form of payload: at the primary, after restarts, from an index
// built anew, and at a site that got the frames without a key and was given one.
func TestFormsMatchOracle(t *testing.T) {
	t.Parallel()
	for _, f := range forms {
		t.Run(f.name, func(t *testing.T) {
			rng := newSeed(t)
			o := Options{FS: vfs.NewMem(), Create: newIdentity(), SegmentBytes: 256 << 10, Compress: f.compress}
			if f.sealed {
				o.Keys = ringOf(t, "acme-1")
			}
			va, vb := volume("a", 256<<10), volume("b", 320<<10-512)
			model := &oracle{sizes: map[cbt.VolumeID]int64{va.ID: va.Size, vb.ID: vb.Size}}
			var points []string
			for life := range 3 {
				j := start(t, "j", o)
				w := beginWith(t, j.Journal, va, vb)
				for i := range 80 {
					s := model.write(t, w, rng, []cbt.VolumeID{va.ID, vb.ID}[i%2])
					if i%9 == life {
						points = append(points, fmt.Sprintf("#%d", s))
					}
				}
				checkPoint(t, j.Journal, model, "latest")
				j.close()
			}
			if err := o.FS.RemoveAll("j/index"); err != nil {
				t.Fatal(err)
			}
			j := start(t, "j", o)
			defer j.close()
			blind := Options{FS: vfs.NewMem(), Create: o.Create}
			r := start(t, "r", blind)
			deliver(t, r.Journal, ship(t, j.Journal, Position{}))
			if found, err := r.Verify(soon(t), nil); err != nil || len(found) > 0 {
				t.Fatalf("verify without a key: %v, %v", found, err)
			}
			err := comparePoint(r.Journal, model, points[len(points)-1])
			if want := map[bool]error{true: ErrNoKey}[f.sealed]; !errors.Is(err, want) {
				t.Fatalf("read without a key: %v, want %v", err, want)
			}
			r.close()
			blind.Keys = o.Keys
			r = start(t, "r", blind)
			defer r.close()
			for _, p := range points {
				checkPoint(t, j.Journal, model, p)
				checkPoint(t, r.Journal, model, p)
			}
			if err := replayMatches(t, r.Journal, model, va.ID); err != nil {
				t.Fatal(err)
			}
			packed, sealed := countForms(t, r.Journal)
			if (packed > 10) != (f.compress == CompressAlways) || (sealed > 100) != f.sealed {
				t.Fatalf("%d records are packed, %d sealed", packed, sealed)
			}
		})
	}
}

// replayMatches applies what Replay yields for a volume and compares with the model.
func replayMatches(t testing.TB, j *Journal, o *oracle, v cbt.VolumeID) error {
	t.Helper()
	got := make([]byte, o.sizes[v])
	err := j.Replay(soon(t), Position{}, func(_ Seq, ev cbt.Event) error {
		switch {
		case ev.Volume != v:
		case ev.Kind == cbt.EventWrite:
			copy(got[ev.Extent.Offset:], ev.Data)
		default:
			clear(got[ev.Extent.Offset:ev.Extent.End()])
		}
		return nil
	})
	if err == nil && !bytes.Equal(got, o.image(v, ^Seq(0))) {
		err = errors.New("what was replayed differs from the model")
	}
	return err
}

func countForms(t testing.TB, j *Journal) (packed, sealed int) {
	t.Helper()
	for _, f := range ship(t, j, Position{}) {
		h, _, recs := decodeAll(t, f.bytes)
		var used uint16
		for _, r := range recs {
			if !r.kind.hasPayload() {
				continue
			}
			if used |= r.flags; r.packed() {
				packed++
			}
			if r.sealed() {
				sealed++
			}
		}
		if h.Features.Incompat != uint32(used) {
			t.Fatalf("a frame of features %#x has records of flags %#x", h.Features.Incompat, used)
		}
	}
	return packed, sealed
}
