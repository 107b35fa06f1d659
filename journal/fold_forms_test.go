package journal

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/testbed/scale"
)

// Folding keeps every form of payload readable: at the primary, at a site that folds
// what it has no key for and is given the key later, and from an index built anew.
// What is neither sealed nor packed is packed in the run.
func TestFoldForms(t *testing.T) {
	t.Parallel()
	for _, form := range forms {
		t.Run(form.name, func(t *testing.T) {
			ladder := []Rung{{0, time.Minute}, {30 * time.Second, 10 * time.Minute}, {2 * time.Minute, 0}}
			f := newFolding(t, vfs.NewMem(), Retention{Ladder: ladder})
			f.j.close()
			f.o.Compress = form.compress
			if form.sealed {
				f.o.Keys = ringOf(t, "acme-1")
			}
			f.open()
			images := 30
			if scale.Race {
				images = 6
			}
			for range 3 {
				f.write(70, 2*time.Second)
				f.maintain()
				if err := f.checkImages(f.j.Journal, images); err != nil {
					t.Fatal(err)
				}
			}
			f.write(40, 2*time.Second)
			f.j.close()
			keys := f.o.Keys
			f.o.Keys = nil
			f.clock.step(10 * time.Minute)
			f.j = start(t, "j", f.o) // no epoch: it only keeps
			if got := f.maintain(); got.Folded == 0 {
				t.Fatal("nothing is folded without a key")
			}
			if found, err := f.j.Verify(soon(t), nil); err != nil || len(found) > 0 {
				t.Fatalf("verify: %v, %v", found, err)
			}
			if err := f.checkImages(f.j.Journal, 1); form.sealed != errors.Is(err, ErrNoKey) || (!form.sealed && err != nil) {
				t.Fatalf("read without a key: %v", err)
			}
			f.j.close()
			f.o.Keys = keys
			if err := f.o.FS.RemoveAll("j/index"); err != nil {
				t.Fatal(err)
			}
			f.j = start(t, "j", f.o)
			defer f.j.close()
			if err := f.checkImages(f.j.Journal, 40); err != nil {
				t.Fatalf("from an index built anew: %v", err)
			}
			packed, all := packedInRuns(t, f.j.Journal)
			t.Logf("%d of %d versions in runs are packed", packed, all)
			if (packed > all/10) != (form.compress == CompressAlways) || all == 0 {
				t.Fatalf("%d of %d versions in runs are packed", packed, all)
			}
		})
	}
}

// packedInRuns counts the versions that lie in runs, and those that are packed there.
func packedInRuns(t testing.TB, j *Journal) (packed, all int) {
	t.Helper()
	err := j.scanPrefix(prefixIndex, func(k, v []byte) error {
		e, err := decodeIndexKey(k)
		if err != nil {
			return err
		}
		p, err := decodePlace(v, e.node.level)
		if err != nil || p.format == valueZero || !p.file.isRun() {
			return err
		}
		if all++; p.packed() {
			packed++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return packed, all
}

// What is packed in a run is what LZ4 makes at least a quarter smaller, and nothing
// that is sealed, packed, a piece, or larger than 64 KiB.
func TestPackForRun(t *testing.T) {
	j := &Journal{packer: newPacker(CompressAuto, SyncPower)}
	rng := newSeed(t)
	text, random := noise(rng, 64<<10), make([]byte, 64<<10)
	for i := range random {
		random[i] = byte(rng.Uint32())
	}
	for _, c := range []struct {
		name   string
		format byte
		level  int
		data   []byte
		want   bool
	}{
		{"a cell", valueCells, levelCell, text[:4096], true}, {"64 KiB", valueCells, levelCell + 1, text, true},
		{"1 MiB", valueCells, levelMegabyte, text, false}, {"noise", valueCells, levelCell + 1, random, false},
		{"sealed", valueSealedCells, levelCell, text[:4096], false}, {"a piece", valuePiece, levelSector, text[:2048], false},
		{"packed", valuePacked, levelCell, text[:1000], false},
	} {
		before := place{format: c.format, crcs: []byte{1, 2, 3, 4}}
		p, stored := j.packForRun(before, node{c.level, 1 << 20}, bytes.Clone(c.data))
		if got := p.format == valuePacked && c.format != valuePacked; got != c.want {
			t.Errorf("%s: packed %v", c.name, got)
		}
		if !c.want {
			continue
		}
		plain := make([]byte, len(c.data))
		if err := unpack(p.of.codec, plain, stored); err != nil || !bytes.Equal(plain, c.data) {
			t.Errorf("%s: unpacks to something else: %v", c.name, err)
		}
		if len(stored) > len(c.data)*3/4 || int64(len(stored)) != p.stored || !p.intact(stored) {
			t.Errorf("%s: %d bytes, %d said", c.name, len(stored), p.stored)
		}
		if _, err := decodePlace(p.encode(nil), c.level); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
