package journal

import (
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/journal/journaltest"
	"github.com/novacron/afterimage/testbed/scale"
)

// prefixShapes are the groups whose every prefix is read: small and ragged volumes,
// one whose writes are larger than the frames' target of a chunk, and a crowd.
var prefixShapes = []journaltest.Shape{
	{Sizes: []int64{64 << 10}, MaxWrite: 64 << 10, Ladders: 1},
	{Sizes: []int64{96<<10 - 512, 33 << 10}, MaxWrite: 24 << 10, Ladders: 1},
	{Sizes: []int64{8 << 10, 16 << 10, 24 << 10, 32 << 10}, MaxWrite: 8 << 10, Ladders: 1},
	{Sizes: []int64{2<<20 + 4096}, MaxWrite: 1 << 20, Ladders: 1},
}

// Promise 4: after every prefix of what was written the group is byte for byte the
// model's: as it was recorded, folded into runs with every write kept, and opened
// again after that. AFTERIMAGE_LONG=1 makes it fifty times as long.
func TestEveryPrefix(t *testing.T) {
	t.Parallel()
	rng, total := newSeed(t), 0
	for i, want := 0, scale.Long(10000); total < want; i++ {
		shape := prefixShapes[i%len(prefixShapes)]
		n := min(400, want-total)
		if shape.Sizes[0] > 1<<20 {
			n = min(n, 60)
		}
		d, err := newDriver(t, Options{FS: vfs.NewMem(), Create: newIdentity(), SegmentBytes: 256 << 10, Sync: SyncMode(i % 2)}, shape.Sizes)
		if err != nil {
			t.Fatal(err)
		}
		a := journaltest.NewAuthor(rng, shape)
		if err := d.run(rng, a.Script(n)); err != nil {
			t.Fatal(err)
		}
		for _, pass := range []struct {
			name    string
			prepare func() error
		}{
			{"as recorded", func() error { return nil }},
			{"folded", func() error { return d.maintain(0) }},
			{"opened again", func() error { return d.reopen() }},
		} {
			if err := pass.prepare(); err != nil {
				t.Fatalf("%s: %v", pass.name, err)
			}
			if err := d.checkAll(); err != nil {
				t.Fatalf("group %d, %s: %v", i, pass.name, err)
			}
		}
		total += len(d.moments)
		if err := d.end(); err != nil {
			t.Fatal(err)
		}
	}
	scale.Counted(t, "journal-prefixes", total, 10000)
}

// checkAll holds the journal to every moment, none of which may be gone.
func (d *driver) checkAll() error {
	for _, m := range d.moments {
		isGone, err := d.check(d.j.Journal, m)
		if err != nil {
			return err
		}
		if isGone {
			return fmt.Errorf("record %s is no point any more", m.at)
		}
	}
	return nil
}
