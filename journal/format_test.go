package journal

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/cbt"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares a dump of b to testdata/name; runs of equal lines are a star.
func golden(t *testing.T, name string, b []byte) {
	t.Helper()
	var out strings.Builder
	last := ""
	for _, l := range strings.SplitAfter(hex.Dump(b), "\n") {
		if body := l[min(len(l), 8):]; body != last {
			out.WriteString(l)
			last = body
		} else if !strings.HasSuffix(out.String(), "*\n") {
			out.WriteString("*\n")
		}
	}
	fmt.Fprintf(&out, "%08x\n", len(b))
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(out.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if out.String() != string(want) {
		t.Errorf("%s differs; the layout on disk and wire is fixed. Got\n%s", name, &out)
	}
}

func fixedID(b byte) cbt.ID {
	var id cbt.ID
	for i := range id {
		id[i] = b
	}
	return id
}

var fixedTime = time.Unix(1_763_800_000, 123_456_789)

// fixedFrame is a frame with a record of every kind that this version writes.
func fixedFrame() (frameHeader, []byte) {
	e := Epoch{Number: 3, ID: EpochID(fixedID(0xe3)), Site: "a", Begun: fixedTime.UTC(), Parent: Cursor{Position{EpochID(fixedID(0xe2)), 40}, Chain{0xcc}}}
	j := &Journal{
		identity: Identity{fixedID(0x11), fixedID(0x22), fixedID(0x33)}, inc: cbt.Incarnation(fixedID(0x44)),
		branches: []Branch{{Epoch: e}}, chained: []frameEnd{{Cursor: e.Parent}}, synced: 40,
	}
	data := bytes.Repeat([]byte{0xab}, 1024)
	c := &commit{ordinal: 1, first: 41, recs: []*record{
		{kind: KindEpoch, body: encodeBody(e)},
		{kind: KindVolume, volume: 1, body: encodeBody(volumeBody{Ordinal: 1, ID: cbt.VolumeID(fixedID(0x55)), Name: "root", Size: 1 << 30})},
		{kind: KindSynced, volume: 1},
		{kind: KindWrite, volume: 1, extent: cbt.Extent{Offset: 3584, Length: 1024}, data: data, cells: cellCRCs(3584, data)},
		{kind: KindZero, volume: 1, extent: cbt.Extent{Offset: 1 << 20, Length: 1 << 29}},
		{kind: KindTrim, volume: 1, extent: cbt.Extent{Offset: 4096, Length: 4096}},
		{kind: KindFill, volume: 1, extent: cbt.Extent{Offset: 512, Length: 512}, data: data[:512], cells: cellCRCs(512, data[:512])},
		{kind: KindMark, body: encodeBody(Mark{Name: "before-attack", App: true})},
		{kind: KindMachine, body: encodeBody(machineBody{"web", []byte("<domain/>")})},
		{kind: KindGap, volume: 1, body: encodeBody(gapBody{cbt.CauseStall, "500ms"})},
	}}
	for i, r := range c.recs {
		r.time = fixedTime.Add(time.Duration(i) * time.Millisecond)
	}
	return frameOfCommit(j, c)
}

// frameOfCommit lays out records that no Writer recorded.
func frameOfCommit(j *Journal, c *commit) (frameHeader, []byte) {
	c.payload.epoch = j.branches[c.ordinal-1].ID
	for i, r := range c.recs {
		if c.payload.placeLocked(r); r.stored > 0 {
			c.fillIn(r, c.first+Seq(i), j.identity)
		}
	}
	h, image, _ := j.buildFrame(c)
	return h, image
}

func TestGoldenLayout(t *testing.T) {
	_, frame := fixedFrame()
	golden(t, "frame.txt", frame)
	for _, magic := range []string{segmentMagic, trailerMagic} {
		p := segmentPage{Magic: magic, Number: 7, Identity: Identity{fixedID(0x11), fixedID(0x22), fixedID(0x33)}, Epoch: EpochID(fixedID(0xe3)), EpochNum: 3, Seq: 41, ChainSeq: 40, Chain: Chain{0xcc}, Time: fixedTime}
		golden(t, "segment-"+magic+".txt", p.encode())
	}
	entry, _ := encodeSiteEntry(siteEntry{Key: "cursor/b", Value: []byte(`{"seq":41}`)}, Chain{0xcc})
	golden(t, "site-entry.txt", entry)
	var index []byte
	h, meta, recs := decodeAll(t, frame)
	for i, r := range recs {
		if !r.kind.hasExtent() {
			continue
		}
		if err := indexRecord(r, 2, h.First+Seq(i), 7, pageBytes, func(k, v []byte) error {
			index = append(append(index, k...), v...)
			index = append(index, make([]byte, (16-len(index)%16)%16)...)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "index.txt", index)
	if len(meta) != h.MetaBytes {
		t.Errorf("%d bytes of header and records, %d decoded", h.MetaBytes, len(meta))
	}
}

func decodeAll(t testing.TB, frame []byte) (frameHeader, []byte, []*record) {
	t.Helper()
	h, meta, recs, err := readMeta(bytes.NewReader(frame), int64(len(frame)))
	if err != nil {
		t.Fatal(err)
	}
	return h, meta, recs
}

// patch rewrites the frame at a place with its header and records changed.
func patch(t testing.TB, fs vfs.FS, path string, off int64, change func(meta []byte)) {
	t.Helper()
	f, err := fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	head := make([]byte, frameHeaderBytes)
	if _, err := f.ReadAt(head, off); err != nil {
		t.Fatal(err)
	}
	h, err := decodeFrameHeader(head)
	if err != nil {
		t.Fatal(err)
	}
	meta := make([]byte, h.MetaBytes)
	_, err = f.ReadAt(meta, off)
	change(meta)
	sealMeta(meta)
	if err == nil {
		_, err = f.WriteAt(meta, off)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// The three masks of a frame do what the layout says, whether the opening reads
// the frame again or knows it from the index.
func TestFeatureMasks(t *testing.T) {
	t.Parallel()
	for _, mask := range []struct {
		name string
		at   int
		open error
		use  error
	}{{"incompatible", 8, ErrIncompatible, nil}, {"read-only compatible", 12, nil, ErrReadOnly}, {"compatible", 16, nil, nil}} {
		for _, rebuild := range []bool{false, true} {
			for bit := range 32 {
				open := mask.open
				if mask.at == 8 && 1<<bit&knownIncompat != 0 {
					open = nil
				}
				if err := openWithFeature(t, mask.at, bit, rebuild, open, mask.use); err != nil {
					t.Fatalf("%s bit %d, index rebuilt %v: %v", mask.name, bit, rebuild, err)
				}
			}
		}
	}
}

func openWithFeature(t *testing.T, at, bit int, rebuild bool, open, use error) error {
	fs := vfs.NewMem()
	o := Options{FS: fs, Create: newIdentity()}
	j := start(t, "j", o)
	v := volume("a", 64<<10)
	w := beginWith(t, j.Journal, v)
	s := put(t, w, v, 0, bytes.Repeat([]byte{1}, 512))
	if err := w.WaitDurable(soon(t)); err != nil {
		return err
	}
	frames := ship(t, j.Journal, Position{})
	last, err := j.frameOf(soon(t), Position{w.epoch.ID, s})
	if err != nil {
		return err
	}
	j.close()
	patch(t, fs, "j/segments/"+segmentName(1), last.offset, func(meta []byte) { meta[at+bit/8] |= 1 << (bit % 8) })
	if rebuild {
		if err := errors.Join(fs.RemoveAll("j/index"), fs.Remove("j/"+siteLogName)); err != nil {
			return err
		}
	}
	k, err := Open("j", o)
	if err != nil {
		if open == nil || !errors.Is(err, open) {
			return err
		}
		return nil
	}
	if err := k.Close(); open != nil || err != nil {
		return fmt.Errorf("it opened: %w", err)
	}
	j = start(t, "j", o)
	defer j.close()
	b, err := readAs(t, j.Journal, Position{w.epoch.ID, s}, v)
	if err != nil || b[0] != 1 {
		return fmt.Errorf("read %d: %w", b[0], err)
	}
	if use != nil { // a replica may not write after it either
		if _, _, err := (shipped{bytes: forged(t, frames[0].bytes)}).to(j.Journal); !errors.Is(err, use) {
			return fmt.Errorf("append frame: %w", err)
		}
	}
	if _, err := j.BeginEpoch(soon(t), "a", Position{}, 0); !errors.Is(err, use) {
		return fmt.Errorf("begin epoch: %w", err)
	}
	return nil
}

func TestSegmentFeatureMasks(t *testing.T) {
	for at, want := range map[int]error{8: ErrIncompatible, 12: nil, 16: nil} {
		fs := vfs.NewMem()
		o := Options{FS: fs, Create: newIdentity()}
		j := start(t, "j", o)
		beginWith(t, j.Journal, volume("a", 64<<10))
		j.close()
		f, err := fs.OpenReadWrite("j/segments/"+segmentName(1), vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, pageBytes)
		_, err = f.ReadAt(b, 0)
		if err != nil {
			t.Fatal(err)
		}
		p, err := decodeSegmentPage(b, segmentMagic)
		if err != nil {
			t.Fatal(err)
		}
		switch at {
		case 8:
			p.Features.Incompat = 1 << 9
		case 12:
			p.Features.ROCompat = 1 << 9
		case 16:
			p.Features.Compat = 1 << 9
		}
		_, err = f.WriteAt(p.encode(), 0)
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		k, err := Open("j", o)
		if !errors.Is(err, want) {
			t.Fatalf("mask at %d: %v, want %v", at, err, want)
		}
		if err == nil {
			if k.readOnly != (at == 12) {
				t.Fatalf("mask at %d: read-only is %v", at, k.readOnly)
			}
			if err := k.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Records of unknown kinds are passed over by their length: seqs stay dense, other
// records are read, and a replica passes them on.
func TestUnknownKinds(t *testing.T) {
	fs := vfs.NewMem()
	o := Options{FS: fs, Create: newIdentity()}
	j := start(t, "j", o)
	v := volume("a", 64<<10)
	w := beginWith(t, j.Journal, v)
	put(t, w, v, 0, bytes.Repeat([]byte{1}, 512))
	j.mu.Lock() // what a newer version would write
	j.enqueueLocked(&record{kind: 0x7ffe, volume: 1, body: []byte("not JSON either")})
	j.mu.Unlock()
	s := put(t, w, v, 512, bytes.Repeat([]byte{2}, 512))
	j.close()
	if err := errors.Join(fs.RemoveAll("j/index"), fs.Remove("j/"+siteLogName)); err != nil {
		t.Fatal(err)
	}
	j = start(t, "j", o)
	defer j.close()
	if h := j.Head(); h.Seq != s {
		t.Fatalf("the head is %d, want %d", h.Seq, s)
	}
	dst := start(t, "r", Options{FS: vfs.NewMem(), Create: o.Create})
	defer dst.close()
	deliver(t, dst.Journal, ship(t, j.Journal, Position{}))
	for _, k := range []*running{j, dst} {
		p, err := resolve(t, k.Journal, fmt.Sprintf("#%d", s))
		if err != nil {
			t.Fatal(err)
		}
		b, err := readAs(t, k.Journal, p.Position, v)
		if err != nil || b[0] != 1 || b[512] != 2 {
			t.Fatalf("read %d, %d: %v", b[0], b[512], err)
		}
		if k.Head().Durable != j.Head().Durable {
			t.Fatal("the chains differ")
		}
	}
}
