package journal

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/cbt"
)

// A disk that joins is in no picture before it was synced, nor after it has left; what
// it held stays readable at the points between, also after the journal was opened again.
func TestPicturesHoldWhatPointsCover(t *testing.T) {
	o := Options{FS: vfs.NewMem(), Create: newIdentity()}
	j := start(t, "j", o)
	a, b := volume("a", 64<<10), volume("b", 64<<10)
	w := beginWith(t, j.Journal, a)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(w.JoinVolume(soon(t), b))
	part := put(t, w, b, 0, bytes.Repeat([]byte{2}, 512))
	synced := mustRecord(t, w, cbt.Event{Kind: cbt.EventSynced, Volume: b.ID})
	must(w.LeaveVolume(soon(t), b.ID))
	if _, err := w.Record(soon(t), cbt.Event{Kind: cbt.EventSynced, Volume: b.ID}); !errors.Is(err, ErrUnknownVolume) {
		t.Errorf("a record of a volume that has left: %v", err)
	}
	without := put(t, w, a, 0, bytes.Repeat([]byte{3}, 512))
	must(w.LeaveVolume(soon(t), b.ID)) // again
	must(w.JoinVolume(soon(t), b))
	back := put(t, w, a, 0, bytes.Repeat([]byte{4}, 512))
	again := mustRecord(t, w, cbt.Event{Kind: cbt.EventSynced, Volume: b.ID})
	judge := func() {
		t.Helper()
		for _, c := range []struct {
			at   Seq
			want []string
		}{{part, []string{"a"}}, {synced, []string{"a", "b"}}, {without, []string{"a"}}, {back, []string{"a"}}, {again, []string{"a", "b"}}} {
			i, _ := j.Lineage().Owner(c.at)
			p, err := j.pointAt(soon(t), Position{i.Epoch, c.at})
			must(err)
			v, err := j.View(soon(t), p)
			must(err)
			vs, err := j.Volumes(Point{Position: p.Position}) // as it is known without the point
			must(err)
			for what, list := range map[string][]cbt.Volume{"view": v.Volumes(), "volumes": vs} {
				var names []string
				for _, x := range list {
					names = append(names, x.Name)
				}
				if !slices.Equal(names, c.want) || len(p.Volumes) != len(c.want) {
					t.Errorf("%s at %d: %v, want %v; the point covers %d", what, c.at, names, c.want, len(p.Volumes))
				}
			}
			got := make([]byte, 512)
			switch err := v.ReadAt(soon(t), b.ID, got, 0); {
			case len(c.want) == 1 && !errors.Is(err, ErrUnknownVolume):
				t.Errorf("read of b at %d: %v", c.at, err)
			case len(c.want) == 2 && (err != nil || got[0] != 2):
				t.Errorf("b at %d holds %d, %v", c.at, got[0], err)
			}
			must(v.Close())
		}
	}
	judge()
	j.close()
	o.Create = nil
	j = start(t, "j", o)
	judge()
	j.close()
}
