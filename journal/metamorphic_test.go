package journal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/journal/journaltest"
	"github.com/novacron/afterimage/testbed/scale"
)

// configuration is a way to run a journal that must not show in what it gives back.
type configuration struct {
	name  string
	depth int   // writes under way
	fold  int64 // bytes that must have gathered before a fold; negative: never
	every int   // Maintain is called after each so many operations
	set   func(*Options)
}

func (c configuration) options(t testing.TB) Options {
	o := Options{FS: vfs.NewMem(), Create: newIdentity()}
	c.set(&o)
	if o.Keys != nil {
		must(t, o.Keys.(*Keys).Add("tenant", bytes.Repeat([]byte{7}, 32)))
	}
	return o
}

// configurations are all pairs of a segment size with what else can be chosen. In the
// first four sizes the script fills whole segments, which those that fold must fold.
func configurations() []configuration {
	var out []configuration
	for i, segment := range []int64{48 << 10, 256 << 10, 1 << 20, largestFolded, 64 << 20} {
		for _, c := range []configuration{
			{"process, one write at a time, never folded", 0, -1, 0, func(o *Options) { o.Compress = CompressOff }},
			{"process, 16 writes under way, packed, folded at once", 16, 1, 1 + i, func(o *Options) { o.Compress, o.gatherFor, o.chunkBytes = CompressAlways, 5*time.Millisecond, 1 }},
			{"power, one write at a time, sealed, folded at once", 0, 1, 5, func(o *Options) {
				o.Sync, o.Keys, o.Compress, o.chunkBytes, o.indexBytes = SyncPower, &Keys{}, CompressOff, 4<<10, 1
			}},
			{"power, 64 writes under way, packed and sealed, folded late", 64, 1 << 20, 3, func(o *Options) {
				o.Sync, o.Keys, o.Compress, o.gatherFor = SyncPower, &Keys{}, CompressAlways, -1
			}},
			{"quota, packed now and then, folded when the script says", 8, 1, 0, func(o *Options) {
				o.QuotaBytes, o.Sync, o.gatherFor, o.indexBytes = 1<<30, SyncMode(i%2), time.Duration(i)*time.Millisecond-1, 64<<10
			}},
		} {
			set := c.set
			c.name = fmt.Sprintf("segments of %d KiB, %s", segment>>10, c.name)
			c.set = func(o *Options) { o.SegmentBytes = segment; set(o) }
			out = append(out, c)
		}
	}
	return out
}

const largestFolded = 2 << 20

// fillers are writes that fill the largest of the segments that must be folded, twice.
func fillers(rng *rand.Rand, s *journaltest.State) []journaltest.Op {
	const size = 1 << 20
	op := journaltest.Op{Kind: journaltest.Resize, Size: size}
	if s.Sizes()[0] == size {
		op.Size += 4096
	}
	op.After = s.Then(op)
	ops := []journaltest.Op{op}
	for range 2 * largestFolded / size {
		op = journaltest.Op{Kind: journaltest.Write, Len: size, Data: make([]byte, size)}
		for i := range op.Data {
			op.Data[i] = byte(rng.Uint32())
		}
		op.After = ops[len(ops)-1].After.Then(op)
		ops = append(ops, op, journaltest.Op{Kind: journaltest.Flush, After: op.After})
	}
	return ops
}

// One script of operations gives the same images at all kept points, however the
// journal is configured. AFTERIMAGE_LONG=1 makes the script fifty times as long.
func TestConfigurationsDoNotShow(t *testing.T) {
	t.Parallel()
	rng := newSeed(t)
	shape := journaltest.Shape{Sizes: []int64{1<<20 + 96<<10 + 512, 96 << 10}, MaxWrite: 1 << 20, Ladders: len(ladders)}
	author := journaltest.NewAuthor(rng, shape)
	ops := author.Script(scale.Long(6000) / 20)
	last := fillers(rng, author.State())
	cs := configurations()
	if !scale.Sweeps() {
		rng.Shuffle(len(cs), func(i, k int) { cs[i], cs[k] = cs[k], cs[i] })
		cs = cs[:2]
	}
	for _, c := range cs {
		if err := followScript(t, c, shape, ops, last); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
	}
	scale.Counted(t, "journal-configurations", len(cs), 20)
}

func followScript(t *testing.T, c configuration, shape journaltest.Shape, ops, last []journaltest.Op) error {
	d, err := newDriver(t, c.options(t), shape.Sizes)
	if err != nil {
		return err
	}
	d.depth, d.fold, d.every = c.depth, c.fold, c.every
	if err := d.run(rand.New(rand.NewPCG(1, 1)), ops); err != nil {
		return err
	}
	for _, op := range last {
		if err := errors.Join(d.do(op), d.land()); err != nil {
			return fmt.Errorf("%v: %w", op, err)
		}
	}
	d.now.step(time.Hour)
	if _, err := d.j.settled(soon(t)); err != nil { // what the index lacks is not folded
		return err
	}
	if err := d.maintain(len(ladders) - 1); err != nil {
		return err
	}
	if u := d.j.Usage(); c.fold >= 0 && d.o.SegmentBytes <= largestFolded && u.Runs == 0 {
		return fmt.Errorf("nothing was folded: %+v", u)
	}
	kept := 0
	for _, m := range d.moments {
		isGone, err := d.check(d.j.Journal, m)
		if err != nil {
			return err
		}
		if !isGone {
			kept++
		}
	}
	t.Logf("%s: %d of %d points kept", c.name, kept, len(d.moments))
	return d.end()
}
