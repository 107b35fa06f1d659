package journal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/testbed/scale"
)

// herbarium is a closed journal as files, an earlier state of each, the frames that
// a peer holds, and a model of every point: what the sweep damages and compares with.
type herbarium struct {
	o      Options
	vs     []cbt.Volume
	now    map[string][]byte // by path
	before map[string][]byte // at a clean close half way
	images map[Position][][]byte
	points []Position
	spans  []Span
	head   Position
	frames map[Position][]byte // by each record that they hold
	peer   *Journal            // undamaged
}

const remembered = "what this site alone knows"

// collect writes two epochs over two volumes, closes in between and at the end, and
// models every record's image by itself.
func collect(t testing.TB, rng *rand.Rand, folds bool) *herbarium {
	t.Helper()
	mem := vfs.NewMem()
	h := &herbarium{vs: []cbt.Volume{volume("a", 64<<10), volume("b", 48<<10)}, images: make(map[Position][][]byte), frames: make(map[Position][]byte)}
	h.o = Options{FS: mem, Create: newIdentity(), SegmentBytes: 96 << 10}
	images := [][]byte{make([]byte, h.vs[0].Size), make([]byte, h.vs[1].Size)}
	var fork Position
	var forked [][]byte
	clone := func() [][]byte { return [][]byte{bytes.Clone(images[0]), bytes.Clone(images[1])} }
	write := func(w *Writer, n int) {
		for range n {
			k := rng.IntN(2)
			sectors := h.vs[k].Size / 512
			first := rng.Int64N(sectors)
			e := cbt.Extent{Offset: first * 512, Length: 512 * (1 + rng.Int64N(min(24, sectors-first)))}
			ev := cbt.Event{Kind: cbt.EventWrite, Volume: h.vs[k].ID, Extent: e}
			if rng.IntN(8) == 0 {
				ev.Kind = cbt.EventZero
				clear(images[k][e.Offset:e.End()])
			} else {
				ev.Data = make([]byte, e.Length)
				for i := range ev.Data {
					ev.Data[i] = byte(rng.Uint32())
				}
				copy(images[k][e.Offset:], ev.Data)
			}
			at := Position{w.epoch.ID, mustRecord(t, w, ev)}
			h.points = append(h.points, at)
			h.images[at] = clone()
		}
	}
	j := start(t, "j", h.o)
	w := beginWith(t, j.Journal, h.vs...)
	write(w, 30)
	fork, forked = h.points[24], h.images[h.points[24]]
	must(t, j.Remember("test/known", "older"))
	j.close()
	h.before = filesUnder(t, mem, "j")
	j = start(t, "j", h.o)
	w, err := j.BeginEpoch(soon(t), "a", fork, 0)
	must(t, err)
	images = [][]byte{bytes.Clone(forked[0]), bytes.Clone(forked[1])}
	for _, v := range h.vs {
		mustRecord(t, w, cbt.Event{Kind: cbt.EventSynced, Volume: v.ID})
	}
	write(w, 30)
	must(t, j.Remember("test/known", remembered))
	must(t, w.WaitDurable(soon(t)))
	if folds { // most points go, what is left of the first segments lies in a run
		must(t, j.WaitDurable(soon(t), j.Head().Position))
		m, err := j.Maintain(soon(t), Maintenance{Retention: Retention{Ladder: []Rung{{Every: time.Nanosecond}}}, FoldBytes: 1})
		must(t, err)
		if m.Runs == 0 {
			t.Fatalf("nothing was folded: %+v", m)
		}
	}
	h.points = slices.DeleteFunc(h.points, func(p Position) bool {
		v, err := j.View(soon(t), Point{Position: p})
		if err == nil {
			must(t, v.Close())
		}
		return err != nil
	})
	h.spans, err = j.Spans(soon(t))
	must(t, err)
	h.head = j.Head().Position
	for _, p := range h.points {
		if h.frames[p] != nil {
			continue
		}
		h.keep(t, j.Journal, p)
	}
	for _, b := range j.Branches() { // control records are in frames of their own
		for s := b.First(); s <= b.Last.Seq; s++ {
			if p := (Position{b.ID, s}); h.frames[p] == nil {
				h.keep(t, j.Journal, p)
			}
		}
	}
	j.close()
	h.now = filesUnder(t, mem, "j")
	o := h.o
	o.FS = plant(t, h.now)
	h.peer, err = Open("j", o)
	must(t, err)
	return h
}

func (h *herbarium) keep(t testing.TB, j *Journal, p Position) {
	t.Helper()
	f, err := j.FrameFor(soon(t), p)
	if errors.Is(err, ErrReclaimed) {
		return
	}
	must(t, err)
	b, err := io.ReadAll(f.Reader)
	must(t, err)
	for s := f.First.Seq; s <= f.Last.Seq; s++ {
		h.frames[Position{p.Epoch, s}] = b
	}
}

func (h *herbarium) fetch(_ context.Context, p Position) ([]byte, error) {
	if b := h.frames[p]; b != nil {
		return bytes.Clone(b), nil
	}
	return nil, ErrUnknownParent
}

// filesUnder reads all files under dir.
func filesUnder(t testing.TB, fs vfs.FS, dir string) map[string][]byte {
	t.Helper()
	out := make(map[string][]byte)
	names, err := fs.List(dir)
	must(t, err)
	for _, n := range names {
		p := path.Join(dir, n)
		st, err := fs.Stat(p)
		must(t, err)
		if st.IsDir() {
			maps.Copy(out, filesUnder(t, fs, p))
		} else if n != "LOCK" {
			if out[p] = nil; st.Size() > 0 {
				out[p] = contentOf(t, fs, p)
			}
		}
	}
	return out
}

// plant lays files out in a new file system.
func plant(t testing.TB, files map[string][]byte) *vfs.MemFS {
	t.Helper()
	mem := vfs.NewMem()
	for p, b := range files {
		must(t, mem.MkdirAll(path.Dir(p), 0o700))
		replaceFile(t, mem, p, b)
	}
	return mem
}

// boundaries is where structures of a file begin and end.
func boundaries(name string, b []byte) []int64 {
	out := []int64{0, int64(len(b)) / 2, int64(len(b)) - 1}
	switch {
	case strings.HasSuffix(name, segmentSuffix):
		for at := int64(pageBytes); at+frameHeaderBytes <= int64(len(b)); at += pageBytes {
			h, err := decodeFrameHeader(b[at:])
			if err != nil {
				out = append(out, at) // a trailer, or the end
				continue
			}
			out = append(out, at, at+20, at+frameHeaderBytes, at+frameHeaderBytes+recordFixedBytes, at+int64(h.MetaBytes), at+h.Bytes-1)
			at += h.Bytes - pageBytes
		}
	case strings.HasSuffix(name, siteLogName):
		for at := int64(0); at+siteEntryHead < int64(len(b)); at += siteEntryHead + int64(binary.LittleEndian.Uint32(b[at:])) {
			out = append(out, at, at+4, at+8, at+siteEntryHead)
		}
	}
	return slices.DeleteFunc(out, func(at int64) bool { return at < 0 || at >= int64(len(b)) })
}

// harm damages one file, or what two hold, and says how.
func (h *herbarium) harm(rng *rand.Rand, files map[string][]byte) string {
	names := slices.DeleteFunc(slices.Sorted(maps.Keys(files)), func(n string) bool { return len(files[n]) == 0 })
	name := names[rng.IntN(len(names))]
	if rng.IntN(3) > 0 { // mostly what holds the data
		segs := slices.DeleteFunc(slices.Clone(names), func(n string) bool {
			return strings.Contains(n, "/index/") || strings.HasSuffix(n, identityName)
		})
		name = segs[rng.IntN(len(segs))]
	}
	b := bytes.Clone(files[name])
	at := rng.Int64N(int64(len(b)))
	if bs := boundaries(name, b); rng.IntN(2) == 0 {
		at = bs[rng.IntN(len(bs))]
	}
	how := ""
	switch rng.IntN(8) {
	case 0, 1:
		b[at] ^= 1 << rng.IntN(8)
		how = "flip"
	case 2:
		n := min(int64(1)<<rng.IntN(15), int64(len(b))-at)
		clear(b[at : at+n])
		how = fmt.Sprintf("zero %d bytes", n)
	case 3:
		b = b[:at]
		how = "cut"
	case 4: // two pages change places
		p, q := rng.Int64N(int64(len(b))/pageBytes+1)*pageBytes, at&^(pageBytes-1)
		if n := min(pageBytes, int64(len(b))-max(p, q)); n > 0 {
			one := bytes.Clone(b[p : p+n])
			copy(b[p:p+n], b[q:q+n])
			copy(b[q:q+n], one)
		}
		how = fmt.Sprintf("swap with page at %d", p)
	case 5: // two files do
		other := names[rng.IntN(len(names))]
		b, files[other] = bytes.Clone(files[other]), b
		how = "swap with " + other
	case 6:
		other := names[rng.IntN(len(names))]
		b = bytes.Clone(files[other])
		how = "overwritten by " + other
	case 7:
		if old, ok := h.before[name]; ok && rng.IntN(3) > 0 {
			b = bytes.Clone(old)
			how = "rolled back"
			break
		}
		delete(files, name)
		return "remove " + name
	}
	files[name] = b
	return fmt.Sprintf("%s of %s at %d", how, name, at)
}

// named reports that an error of an opening or a read is one that says what is wrong.
func named(err error) bool {
	var d *DamageError
	for _, e := range []error{ErrTailLost, ErrRolledBack, ErrMissingSegment, ErrWrongJournal, ErrIncompatible, ErrNotFound, ErrNotContiguous, ErrUnknownParent, ErrReclaimed, ErrSiteLogLost} {
		if errors.Is(err, e) {
			return true
		}
	}
	return errors.As(err, &d) || errors.Is(err, os.ErrNotExist) || strings.Contains(err.Error(), "index") || strings.Contains(err.Error(), "pebble")
}

// look compares every stride-th point with the model; whole reports that all are
// there and nothing was an error.
func (h *herbarium) look(t testing.TB, j *Journal, stride int) (whole bool, err error) {
	whole = true
	for i := stride / 2; i < len(h.points); i += stride {
		p := h.points[i]
		view, err := j.View(soon(t), Point{Position: p})
		if err != nil {
			if whole = false; !named(err) {
				return false, fmt.Errorf("view of %s: %w", p, err)
			}
			continue
		}
		for k, v := range h.vs {
			b := make([]byte, v.Size)
			if err := view.ReadAt(soon(t), v.ID, b, 0); err != nil {
				if whole = false; !named(err) {
					return false, fmt.Errorf("read of %s: %w", p, err)
				}
				continue
			}
			if want := h.images[p][k]; !bytes.Equal(b, want) {
				at := 0
				for b[at] == want[at] {
					at++
				}
				return false, fmt.Errorf("WRONG BYTES at %s: volume %s differs from %d on", p, v.Name, at)
			}
		}
		if err := view.Close(); err != nil {
			return false, err
		}
	}
	return whole, nil
}

// endure opens damaged files and holds what can be read to the model. mend asks for
// a repair from the peer too.
func (h *herbarium) endure(t testing.TB, files map[string][]byte, mend bool) (opened bool, err error) {
	o := h.o
	o.FS = plant(t, files)
	var log bytes.Buffer
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, log.String())
		}
	}()
	for range 2 {
		j, err := Open("j", o)
		if err != nil {
			if !named(err) {
				return false, fmt.Errorf("open: %w", err)
			}
			return opened, h.leftAlone(t, o.FS, files)
		}
		opened = true
		err = h.inspect(t, j, files, mend)
		stale := errors.Is(err, errIndexStale)
		if cerr := j.Close(); cerr != nil || !stale {
			return true, errors.Join(err, cerr)
		}
	}
	return true, errors.New("the index is damaged still after it was built anew")
}

// leftAlone wants segments and runs as they were: an opening that refuses takes nothing
// away.
func (h *herbarium) leftAlone(t testing.TB, fs vfs.FS, files map[string][]byte) error {
	for name, b := range files {
		if !strings.HasSuffix(name, segmentSuffix) && !strings.HasSuffix(name, runSuffix) {
			continue
		}
		if there, err := exists(fs, name); err != nil || !there {
			return fmt.Errorf("the refused opening has removed %s: %w", name, err)
		}
		if len(b) > 0 && !bytes.Equal(contentOf(t, fs, name), b) { // an empty file has no content to read
			return fmt.Errorf("the refused opening has changed %s", name)
		}
	}
	return nil
}

// errIndexStale is that the next opening builds the index anew.
var errIndexStale = errors.New("the index is damaged")

// inspect holds an open journal to the model.
func (h *herbarium) inspect(t testing.TB, j *Journal, files map[string][]byte, mend bool) error {
	if got := j.Head().Position; got != h.head {
		return fmt.Errorf("opened in silence at %s of %s", got, h.head)
	}
	var known string
	indexed := slices.ContainsFunc(slices.Collect(maps.Keys(files)), func(n string) bool { return strings.Contains(n, "/index/") })
	if ok, err := j.Recall("test/known", &known); err != nil || ok && known != remembered && indexed { // nothing else here is newer
		return fmt.Errorf("the site log says %q, %v", known, err)
	}
	if spans, err := j.Spans(soon(t)); err == nil && !slices.EqualFunc(spans, h.spans, func(a, b Span) bool { return a.First == b.First && a.Last == b.Last }) {
		return fmt.Errorf("the points are %+v, they were %+v", spans, h.spans)
	}
	whole, err := h.look(t, j, 3)
	if err != nil || !mend {
		return err
	}
	return h.mend(t, j, whole)
}

// mend scrubs, holds the points called invalid to those that do not read, repairs,
// and wants every byte back.
func (h *herbarium) mend(t testing.TB, j *Journal, whole bool) error {
	found, err := j.Verify(soon(t), nil)
	if err != nil {
		if named(err) && strings.Contains(err.Error(), "index") {
			return errIndexStale
		}
		return fmt.Errorf("verify: %w", err)
	}
	if !whole && len(found) == 0 {
		return errors.New("what does not read is not found by verify")
	}
	if slices.ContainsFunc(found, func(d DamageError) bool { return d.File == "index" }) {
		return errIndexStale
	}
	if err := h.invalidAreBad(t, j); err != nil {
		return err
	}
	r, err := j.Repair(soon(t), h.fetch, h.peer.StoredCells)
	if err != nil {
		return fmt.Errorf("repair: %w", err)
	}
	if len(r.Left) > 0 {
		return fmt.Errorf("repair left %+v of %+v: %w", r.Left, found, r.Refused)
	}
	if whole, err = h.look(t, j, 2); err != nil || !whole {
		return fmt.Errorf("after the repair not all reads as it was: %w", err)
	}
	if found, err = j.Verify(soon(t), nil); err != nil || len(found) > 0 {
		return fmt.Errorf("after the repair verify finds %v, %w", found, err)
	}
	return nil
}

// invalidAreBad holds what is said of points to what reading them gives: a point that
// does not read is called invalid.
func (h *herbarium) invalidAreBad(t testing.TB, j *Journal) error {
	for i := 1; i < len(h.points); i += 5 {
		l, err := j.lineageAt(h.points[i])
		if err != nil {
			return err
		}
		why, err := j.invalidAt(l)
		if err != nil {
			return err
		}
		whole, err := (&herbarium{vs: h.vs, points: h.points[i : i+1], images: h.images}).look(t, j, 1)
		if err != nil {
			return err
		}
		if !whole && why == "" {
			return fmt.Errorf("%s does not read and is not called invalid: %+v", h.points[i], j.Damages())
		}
	}
	return nil
}

// Promise 6: whatever happens to the files of a journal at rest, no read is wrong and
// nothing is missing in silence: an opening refuses or works, a read gives what was
// written or names the damage, a point that is spoilt says so after a scrub, and a
// peer's frames bring every byte back. AFTERIMAGE_LONG=1 makes it fifty times as long.
func TestCorruptionSweep(t *testing.T) {
	t.Parallel()
	rng := newSeed(t)
	cases := scale.Few(5000)
	var h *herbarium
	opened, done := 0, 0
	for i := range cases {
		if i%(cases/10+1) == 0 { // every other one with folded history
			if h != nil {
				must(t, h.peer.Close())
			}
			h = collect(t, rng, i/(cases/10+1)%2 == 1)
			if len(h.points) < 5 {
				t.Fatalf("only %d points", len(h.points))
			}
			if ok, err := h.endure(t, h.now, true); !ok || err != nil {
				t.Fatalf("undamaged: opened %v, %v", ok, err)
			}
		}
		files := maps.Clone(h.now)
		how := h.harm(rng, files)
		if rng.IntN(4) == 0 { // all is read again
			maps.DeleteFunc(files, func(n string, _ []byte) bool { return strings.Contains(n, "/index/") })
			how += ", the index lost"
		}
		ok, err := h.endure(t, files, i%8 == 0)
		if err != nil {
			t.Fatalf("case %d, %s: %v", i, how, err)
		}
		if done++; ok {
			opened++
		}
	}
	must(t, h.peer.Close())
	t.Logf("%d of %d opened", opened, done)
	scale.CountedFew(t, "journal-corruptions", done, 5000)
}
