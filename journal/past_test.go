package journal

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A journal begins with any point that another one keeps, folded or not, and goes on from
// there; a record that was folded away is refused.
func TestJournalBeginsWithThePast(t *testing.T) {
	fs := vfs.NewMem()
	f := newFoldingOf(t, fs, deltaLadder, faults{}, 768<<10, 256<<10+512)
	f.write(80, 20*time.Second)
	f.maintain()
	f.write(40, 2*time.Second)
	kept, err := f.j.Points(soon(t), time.Time{}, time.Time{})
	must(t, err)
	if len(kept) < 4 || len(kept) >= len(f.all) {
		t.Fatalf("%d points of %d are kept", len(kept), len(f.all))
	}
	refused := 0
	for _, c := range f.all {
		d, err := f.j.OpenPast(soon(t), c.Position)
		if err == nil {
			d.Close()
		} else if errors.Is(err, ErrReclaimed) {
			refused++
		} else {
			t.Fatal(err)
		}
	}
	if refused == 0 {
		t.Error("no record was folded away")
	}
	for i, k := range []Keep{kept[0], kept[1], kept[len(kept)/2], kept[len(kept)-1]} {
		p := newFollower(f, fmt.Sprint("past", i), fs)
		p.begin(k.Position)
		p.reopen(i%2 == 1)
		if got := p.to.Head().Durable.Position; got != k.Position {
			t.Errorf("it stands at %s, want %s", got, k.Position)
		}
		if err := f.checkImage(p.to.Journal, k.Position); err != nil {
			t.Error(err)
		}
		if err := p.land(soon(t), true); err != nil && k.Position != f.j.Head().Durable.Position {
			t.Fatal(err)
		}
		if err := p.check(); err != nil {
			t.Errorf("begun with %s: %v", k.Position, err)
		}
		p.to.close()
	}
	f.j.close()
}

// begin lets an empty follower begin with a point.
func (p *follower) begin(at Position) {
	p.t.Helper()
	d, err := p.j.OpenPast(soon(p.t), at)
	must(p.t, err)
	defer d.Close()
	l, err := p.to.OpenLanding(soon(p.t), Position{}, nil)
	must(p.t, err)
	defer l.Close()
	var b bytes.Buffer
	must(p.t, d.Write(soon(p.t), &b, l.Place()))
	_, err = l.Take(soon(p.t), &b, d.To())
	must(p.t, err)
}
