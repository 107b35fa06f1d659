package journal

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/cbt"
)

// What does not open says which loss it is, and opens cut when the loss is
// accepted: nothing of it reads wrong, the cut bytes are kept, the evidence is in
// the site log, and the next epoch begins with a gap that says so.
func TestAcceptLoss(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(*testing.T, *aged)
		kept bool
	}{
		{"newest zeroed", func(t *testing.T, a *aged) { a.replace(t, a.last, make([]byte, len(a.content(t, a.last)))) }, false},
		{"rolled back", func(t *testing.T, a *aged) {
			b := a.content(t, a.last)
			clear(b[len(b)-2*pageBytes:])
			a.replace(t, a.last, b)
		}, false},
		{"site log gone back", func(t *testing.T, a *aged) {
			b := contentOf(t, a.fs, "j/"+siteLogName)
			replaceFile(t, a.fs, "j/"+siteLogName, b[:len(b)/2])
		}, true},
		{"a frame's header in the replayed tail", func(t *testing.T, a *aged) {
			a.forget(t)
			flip(t, a.fs, a.path(3), pageBytes+50)
		}, true},
		{"a segment missing, the index lost", func(t *testing.T, a *aged) {
			a.forget(t)
			must(t, a.fs.Remove(a.path(3)))
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newAged(t)
			c.do(t, a)
			if j, err := Open("j", a.o); !IsLoss(err) {
				if err == nil {
					_ = j.Close()
				}
				t.Fatalf("open: %v", err)
			}
			before := listing(t, a.fs, "j/segments")
			o := a.o
			o.AcceptLoss = true
			j := start(t, "j", o)
			ls, err := j.Losses()
			if err != nil || len(ls) != 1 || ls[0].Cause == "" || c.kept == (len(ls[0].Kept) == 0) {
				t.Fatalf("the site log says %+v, %v", ls, err)
			}
			for _, name := range ls[0].Kept {
				if ok, err := exists(a.fs, "j/lost/"+name); err != nil || !ok {
					t.Errorf("%s is not kept: %v", name, err)
				}
			}
			if after := listing(t, a.fs, "j/segments"); !c.kept && !slices.Equal(before, after) {
				t.Errorf("segments changed from %v to %v", before, after)
			}
			head := j.Head()
			checkAged(t, j.Journal, a, head.Position)
			w, err := j.BeginEpoch(soon(t), "a", Position{}, 0)
			must(t, err)
			put(t, w, a.v, 0, bytes.Repeat([]byte{99}, 4096))
			hs, err := j.Happenings(soon(t), head.Time, head.Time.AddDate(1, 0, 0))
			if said := slices.ContainsFunc(hs, func(h Happening) bool { return h.Kind == KindGap && h.Cause == cbt.CauseLost }); err != nil || !said {
				t.Errorf("no gap tells of the loss: %+v, %v", hs, err)
			}
			j.close()
			j = start(t, "j", a.o) // it opens as any other now
			defer j.close()
			if ls, err := j.Losses(); err != nil || len(ls) != 1 || !ls[0].Said {
				t.Errorf("afterwards %+v, %v", ls, err)
			}
			checkAged(t, j.Journal, a, head.Position)
		})
	}
}

func listing(t testing.TB, fs vfs.FS, dir string) []string {
	t.Helper()
	names, err := fs.List(dir)
	must(t, err)
	slices.Sort(names)
	return names
}

// checkAged reads an aged journal's volume as of p.
func checkAged(t testing.TB, j *Journal, a *aged, p Position) {
	t.Helper()
	b, err := readAs(t, j, p, a.v)
	must(t, err)
	for i := range agedWrites {
		want := byte(i + 1)
		if a.seqs[i] > p.Seq {
			want = 0
		}
		if !bytes.Equal(b[i*4096:(i+1)*4096], bytes.Repeat([]byte{want}, 4096)) {
			t.Fatalf("as of %s block %d reads %d, want %d", p, i, b[i*4096], want)
		}
	}
}

// A frame that does not verify, with whole ones further behind than frames are ever
// unsynced, is no torn tail: neither at the site that wrote them nor at a replica,
// where the frames say nothing of what is durable here.
func midFileIsNoTail(t *testing.T, f faults) error {
	for _, replica := range []bool{false, true} {
		a := &aged{fs: vfs.NewMem(), v: volume("a", agedWrites*4096)}
		a.o = Options{FS: a.fs, Create: newIdentity(), SegmentBytes: 1 << 20, faults: f}
		j := start(t, "j", a.o)
		w := beginWith(t, j.Journal, a.v)
		for i := range agedWrites {
			put(t, w, a.v, int64(i)*4096, bytes.Repeat([]byte{byte(i + 1)}, 4096))
		}
		for range 40 { // beyond maxUnsynced
			put(t, w, a.v, 0, make([]byte, 16<<10))
			must(t, w.WaitDurable(soon(t)))
		}
		head := j.Head()
		j.close()
		// As after a crash: no index, no anchor.
		if replica {
			a.forget(t)
		} else {
			must(t, a.fs.RemoveAll("j/index"))
			l, err := openSiteLog(a.fs, "j")
			must(t, err)
			must(t, errors.Join(l.remember(anchorKey, Cursor{}), l.close()))
		}
		flip(t, a.fs, a.path(1), 20*pageBytes+50)
		flip(t, a.fs, a.path(1), 21*pageBytes+50) // one of the two is a frame's header
		o := a.o
		o.Create = nil
		k, err := Open("j", o)
		if err == nil {
			got := k.Head()
			if err := k.Close(); err != nil {
				return err
			}
			if got.Seq < head.Seq {
				return fmt.Errorf("opened in silence at record %d of %d", got.Seq, head.Seq)
			}
		} else if !errors.Is(err, ErrTailLost) {
			return err
		}
	}
	return nil
}
