package journal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/zeebo/blake3"
	"pgregory.net/rapid"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/testbed/scale"
)

func sumOf(b []byte) Chain { return blake3.Sum256(b) }

// sealBlock gives a block the length and the checksum that it should have.
func sealBlock(b []byte) {
	le := binary.LittleEndian
	copy(b, runBlockMagic)
	le.PutUint32(b[8:], uint32(len(b)))
	le.PutUint32(b[16:], blockCatalogue)
	le.PutUint32(b[4:], 0)
	le.PutUint32(b[4:], crc32.Checksum(b, castagnoli))
}

func sealRunPage(b []byte) {
	binary.LittleEndian.PutUint32(b[20:], 0)
	binary.LittleEndian.PutUint32(b[20:], crc32.Checksum(b, castagnoli))
}

func syncedOf(v cbt.Volume) cbt.Event { return cbt.Event{Kind: cbt.EventSynced, Volume: v.ID} }

// pairsOf is the entries of a block.
func pairsOf(b []byte, kind uint32) (out [][2][]byte, err error) {
	err = decodeBlock(b, kind, func(k, v []byte) error {
		out = append(out, [2][]byte{bytes.Clone(k), bytes.Clone(v)})
		return nil
	})
	return out, err
}

// A block gives back the pairs that went into it, and no flipped bit passes.
func TestRunBlocks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b blockBuilder
		var want [][2][]byte
		for range rapid.IntRange(0, 20).Draw(t, "pairs") {
			k := rapid.SliceOfN(rapid.Byte(), 1, 40).Draw(t, "key")
			if n := len(want); n > 0 && rapid.Bool().Draw(t, "shared") {
				k = append(bytes.Clone(want[n-1][0][:len(want[n-1][0])/2]), k...)
			}
			v := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "value")
			b.add(k, v)
			want = append(want, [2][]byte{k, v})
		}
		block := b.finish(blockVersions)
		got, err := pairsOf(block, blockVersions)
		if err != nil || len(got) != len(want) {
			t.Fatalf("%d pairs of %d: %v", len(got), len(want), err)
		}
		for i := range want {
			if !bytes.Equal(got[i][0], want[i][0]) || !bytes.Equal(got[i][1], want[i][1]) {
				t.Fatalf("pair %d is %x, want %x", i, got[i], want[i])
			}
		}
		at := rapid.IntRange(0, len(block)-1).Draw(t, "flipped")
		block[at] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if _, err := pairsOf(block, blockVersions); !errors.Is(err, errBadFrame) {
			t.Fatalf("byte %d is flipped: %v", at, err)
		}
	})
}

// Pages and tails come back as they were, and no flipped bit passes.
func TestRunPages(t *testing.T) {
	tail := func(f runPage) []byte {
		var b []byte
		for i := range f.Blocks {
			b = blockPlace{pageBytes * (1 + i), 100, blockVersions}.encode(b)
		}
		for i := range f.Points {
			b = runPoint{order{1, Seq(i + 1)}, time.Unix(int64(i), 0), Chain{byte(i)}, i}.encode(b)
		}
		return append(b, make([]byte, f.Leaves*32)...)
	}
	rng := newSeed(t)
	for n := range int64(40) {
		f := runPage{Magic: runFooterMagic, Number: uint64(n), Identity: *newIdentity(), Created: time.Unix(n, 0), Body: (n + 40) * pageBytes, Blocks: n % 5, Points: n % 7, Entries: n, Payload: n * 512}
		f.Leaves = (f.Body + leafBytes - 1) / leafBytes
		b := tail(f)
		f.Root = sumOf(b)
		page := f.encode()
		got, err := decodeRunPage(page, runFooterMagic)
		if err != nil || got != f {
			t.Fatalf("%+v came back as %+v: %v", f, got, err)
		}
		blocks, points, err := decodeRunTail(f, b)
		if err != nil || int64(len(blocks)) != f.Blocks || int64(len(points)) != f.Points {
			t.Fatalf("tail: %v, %v, %v", blocks, points, err)
		}
		page[rng.IntN(len(page))] ^= 1 << rng.IntN(8)
		if _, err := decodeRunPage(page, runFooterMagic); err == nil {
			t.Fatal("a flipped bit in a page passes")
		}
		b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
		if _, _, err := decodeRunTail(f, b); err == nil {
			t.Fatal("a flipped bit in a tail passes")
		}
	}
}

func FuzzRunBlock(f *testing.F) {
	var b blockBuilder
	b.add([]byte("key one"), []byte("value"))
	b.add([]byte("key two"), nil)
	f.Add(b.finish(blockCatalogue))
	f.Add([]byte(runBlockMagic))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = pairsOf(b, blockCatalogue)
		if len(b) >= blockHeaderBytes { // behind the checksum, too
			c := append([]byte(nil), b...)
			sealBlock(c)
			_, _ = pairsOf(c, blockCatalogue)
		}
	})
}

func FuzzRunFooter(f *testing.F) {
	p := runPage{Magic: runFooterMagic, Body: 2 * pageBytes, Leaves: 1, Points: 1, Blocks: 1}
	f.Add(p.encode(), make([]byte, p.tailBytes()))
	f.Fuzz(func(_ *testing.T, page, tail []byte) {
		if len(page) != pageBytes {
			return
		}
		sealRunPage(page)
		p, err := decodeRunPage(page, runFooterMagic)
		if err != nil || p.tailBytes() != int64(len(tail)) {
			return
		}
		p.Root = sumOf(tail)
		_, _, _ = decodeRunTail(p, tail)
	})
}

// A flipped byte of a run is named, wherever it is: by Verify, and by what reads it.
func TestFlippedRun(t *testing.T) {
	t.Parallel()
	f, w := faultFolding(t, faults{})
	var pins []Position
	for b := range byte(6) {
		at := f.put(int64(b%3)*4096, b+1, 4096+512)
		if _, err := f.j.Pin(soon(t), string('a'+rune(b)), Point{Position: at}, false); err != nil {
			t.Fatal(err)
		}
		pins = append(pins, at)
	}
	if err := f.age(); err != nil {
		t.Fatal(err)
	}
	m := f.j.history().state.Runs[0]
	f.j.close()
	path := "j/runs/" + runName(m.Run)
	o := f.o
	o.FS = w.fs
	step := int64(509)
	if scale.Race {
		step = 5003
	}
	for at := int64(3); at < m.Bytes; at += step {
		flip(t, w.mem, path, at)
		j, err := Open("j", o)
		var d *DamageError
		if err == nil {
			found, verr := j.Verify(context.Background(), nil)
			if verr != nil || len(found) == 0 {
				t.Fatalf("byte %d of %d is flipped: verify finds %v, %v", at, m.Bytes, found, verr)
			}
			for _, p := range pins {
				if err := f.checkImage(j, p); err != nil && !errors.As(err, &d) {
					t.Fatalf("byte %d of %d is flipped: %v", at, m.Bytes, err)
				}
			}
			err = j.Close()
		} else if errors.As(err, &d) && d.File == runName(m.Run) {
			err = nil
		}
		if err != nil {
			t.Fatalf("byte %d of %d is flipped: %v", at, m.Bytes, err)
		}
		flip(t, w.mem, path, at)
	}
}

// What an abandoned branch holds is kept like the rest, and stays apart.
func TestFoldKeepsBranches(t *testing.T) {
	f := newFoldingOf(t, vfs.NewMem(), shortLadder, faults{}, 512<<10, 64<<10)
	defer func() { f.j.close() }()
	fork := f.put(0, 1, 8192)
	abandoned := f.put(0, 2, 8192)
	if err := f.settle(); err != nil {
		t.Fatal(err)
	}
	old := f.j.Head().Position
	w, err := f.j.BeginEpoch(soon(t), "b", fork, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.w = w
	mustRecord(t, w, syncedOf(f.vols[0]))
	mustRecord(t, w, syncedOf(f.vols[1]))
	trunk := f.put(4096, 3, 4096)
	for _, p := range []Position{fork, abandoned, trunk} {
		if _, err := f.j.Pin(soon(t), p.String(), Point{Position: p}, false); err != nil {
			t.Fatal(err)
		}
	}
	want := map[Position][2]byte{fork: {1, 1}, abandoned: {2, 2}, trunk: {1, 3}}
	check := func() {
		t.Helper()
		for p, b := range want {
			got, err := readAs(t, f.j.Journal, p, f.vols[0])
			if err != nil || got[0] != b[0] || got[4096] != b[1] {
				t.Fatalf("at %s there is %d, %d, want %v: %v", p, got[0], got[4096], b, err)
			}
		}
	}
	check()
	if err := f.age(); err != nil {
		t.Fatal(err)
	}
	past := f.j.history()
	for _, p := range []Position{fork, abandoned, trunk} {
		if !past.folded(f.j.orderOf(p)) {
			t.Fatalf("%s is not folded", p)
		}
	}
	check()
	d, err := f.j.Diff(soon(t), abandoned, trunk)
	if err != nil || len(d[f.vols[0].ID]) == 0 || d[f.vols[0].ID][0].Offset != 0 || d[f.vols[0].ID][0].Length < 8192 {
		t.Errorf("between the branches differs %v, %v", d, err)
	}
	f.j.close()
	if err := f.o.FS.RemoveAll("j/index"); err != nil {
		t.Fatal(err)
	}
	f.j = start(t, "j", f.o)
	check()
	if _, err := f.j.View(soon(t), Point{Position: Position{old.Epoch, abandoned.Seq + 1}}); !errors.Is(err, ErrReclaimed) {
		t.Errorf("a record that was folded away opens: %v", err)
	}
}
