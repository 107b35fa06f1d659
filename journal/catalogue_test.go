package journal

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/testbed/scale"
)

// enqueue records rs without waiting for them.
func enqueue(j *Journal, rs ...*record) pendingRecord {
	j.mu.Lock()
	defer j.mu.Unlock()
	var p pendingRecord
	for _, r := range rs {
		p = j.enqueueLocked(r)
	}
	return p
}

// Over random histories with forks, joining and leaving disks and gaps the newest span
// of every prefix of every epoch is the last of all its spans.
func TestLastSpanIsTheLastOfSpans(t *testing.T) {
	t.Parallel()
	rng := newSeed(t)
	checked, spanned := 0, 0
	for range scale.Scale(100) {
		j := start(t, t.TempDir(), Options{Create: newIdentity()})
		vs := []cbt.Volume{volume("a", 1<<20), volume("b", 1<<20), volume("c", 1<<20)}
		w := beginWith(t, j.Journal, vs[0])
		added := 1
		gone := make(map[cbt.VolumeID]bool)
		for range 60 {
			v := vs[rng.IntN(added)]
			switch k := rng.IntN(14); {
			case gone[v.ID] && k < 12:
				if err := w.JoinVolume(soon(t), v); err != nil {
					t.Fatal(err)
				}
				delete(gone, v.ID)
			case k == 12:
				if err := w.LeaveVolume(soon(t), v.ID); err != nil {
					t.Fatal(err)
				}
				gone[v.ID] = true
			case k == 13:
				if added == len(vs) {
					continue
				}
				if err := w.JoinVolume(soon(t), vs[added]); err != nil {
					t.Fatal(err)
				}
				added++
			case k == 0:
				var parent Position
				if l := j.Lineage(); rng.IntN(2) == 0 {
					s := 1 + Seq(rng.Uint64N(uint64(lastOf(l).Seq)))
					i, _ := l.Owner(s)
					parent = Position{i.Epoch, s}
				}
				var err error
				if w, err = j.BeginEpoch(soon(t), "a", parent, 0); err != nil {
					t.Fatal(err)
				}
				clear(gone)
				for _, v := range vs[:added] { // a fork may have left some of them
					if err := w.AddVolume(soon(t), v); err != nil {
						t.Fatal(err)
					}
				}
			case k == 1 && added < len(vs):
				if err := w.AddVolume(soon(t), vs[added]); err != nil {
					t.Fatal(err)
				}
				added++
			case k < 6:
				mustRecord(t, w, cbt.Event{Kind: cbt.EventSynced, Volume: v.ID})
			case k < 8:
				mustRecord(t, w, cbt.Event{Kind: cbt.EventGap, Volume: v.ID, Cause: cbt.CauseDiskFull})
			default:
				put(t, w, v, 0, make([]byte, 512))
			}
		}
		if _, err := j.settled(soon(t)); err != nil {
			t.Fatal(err)
		}
		for _, b := range j.Branches() {
			for s := b.First(); s <= b.Last.Seq; s++ {
				l, err := j.lineageAt(Position{b.ID, s})
				if err != nil {
					t.Fatal(err)
				}
				all, err := j.spans(l)
				if err != nil {
					t.Fatal(err)
				}
				got, any, err := j.lastSpan(l)
				if err != nil || any != (len(all) > 0) || (any && !reflect.DeepEqual(got, all[len(all)-1])) {
					t.Fatalf("epoch %d record %d: last span is %+v %v %v, spans are %+v", b.Number, s, got, any, err, all)
				}
				checked++
				spanned += min(len(all), 1)
			}
		}
		j.close()
	}
	if spanned < checked/4 {
		t.Errorf("only %d of %d prefixes have a span", spanned, checked)
	}
	scale.Counted(t, "journal-last-spans", checked, 4000)
}

// With many epochs, 64 disks and many marks a point is found by reading what is
// near it, not the catalogue of years.
func TestResolveReadsLittleOfALongCatalogue(t *testing.T) {
	t.Parallel()
	j := start(t, t.TempDir(), Options{Create: newIdentity()})
	defer j.close()
	var vs []cbt.Volume
	for i := range 64 {
		vs = append(vs, volume(fmt.Sprintf("v%d", i), 1<<40))
	}
	epochs, marks := scale.Scale(1000), scale.Scale(100000)
	for e := range epochs {
		beginWith(t, j.Journal, vs...)
		var p pendingRecord
		for m := range marks / epochs {
			p = enqueue(j.Journal, &record{kind: KindMark, body: encodeBody(Mark{Name: fmt.Sprintf("m-%d-%d", e, m), App: e == 1 && m == 0})})
		}
		if err := p.Wait(soon(t)); err != nil {
			t.Fatal(err)
		}
	}
	for at, name := range map[string]string{
		"latest": fmt.Sprintf("m-%d-%d", epochs-1, marks/epochs-1), "latest-app": "m-1-0", "name:m-0-0": "m-0-0",
		fmt.Sprintf("name:m-%d-1", epochs-1): fmt.Sprintf("m-%d-1", epochs-1), "-0s": fmt.Sprintf("m-%d-%d", epochs-1, marks/epochs-1),
	} {
		a, err := ParseAt(at)
		if err != nil {
			t.Fatal(err)
		}
		before := j.decoded.Load()
		p, err := j.Resolve(soon(t), a)
		if err != nil || len(p.Marks) != 1 || p.Marks[0].Name != name || len(p.Volumes) != 64 {
			t.Errorf("%s is %+v, %v; want mark %s", at, p, err, name)
		}
		// Volumes of the group, turns of one epoch and its neighbour, marks of one record.
		if n := j.decoded.Load() - before; n > 12*64 {
			t.Errorf("resolving %s decoded %d records of %d", at, n, j.Head().Seq)
		}
	}
}
