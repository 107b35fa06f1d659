package journal

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/journal/journaltest"
	"github.com/novacron/afterimage/testbed/scale"
)

// configuration is a way to run a journal that must not show in what it gives back.
type configuration struct {
	name  string
	depth int // writes under way
	set   func(*Options)
}

func (c configuration) options() Options {
	o := Options{FS: vfs.NewMem(), Create: newIdentity()}
	c.set(&o)
	return o
}

// configurations are all pairs of a segment size with what else can be chosen.
func configurations() []configuration {
	var out []configuration
	for i, segment := range []int64{48 << 10, 256 << 10, 1 << 20, 64 << 20} {
		for _, c := range []configuration{
			{"process, one write at a time", 0, func(*Options) {}},
			{"process, 16 writes under way", 16, func(*Options) {}},
			{"power, one write at a time", 0, func(o *Options) { o.Sync = SyncPower }},
			{"power, 64 writes under way", 64, func(o *Options) { o.Sync = SyncPower }},
			{"quota", 8, func(o *Options) { o.QuotaBytes, o.Sync = 1<<30, SyncMode(i%2) }},
		} {
			set := c.set
			c.name = fmt.Sprintf("segments of %d KiB, %s", segment>>10, c.name)
			c.set = func(o *Options) { o.SegmentBytes = segment; set(o) }
			out = append(out, c)
		}
	}
	return out
}

// One script of operations gives the same images at all kept points, however the
// journal is configured.
func TestConfigurationsDoNotShow(t *testing.T) {
	rng := newSeed(t)
	shape := journaltest.Shape{Sizes: []int64{1<<20 + 96<<10 + 512, 96 << 10}, MaxWrite: 1 << 20, Ladders: 2}
	ops := journaltest.NewAuthor(rng, shape).Script(scale.Scale(6000) / 20)
	cs := configurations()
	if !scale.Sweeps() {
		rng.Shuffle(len(cs), func(i, k int) { cs[i], cs[k] = cs[k], cs[i] })
		cs = cs[:2]
	}
	for _, c := range cs {
		if err := followScript(t, c, shape, ops); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
	}
	scale.Counted(t, "journal-configurations", len(cs), 20)
}

func followScript(t *testing.T, c configuration, shape journaltest.Shape, ops []journaltest.Op) error {
	d, err := newDriver(t, c.options(), shape.Sizes)
	if err != nil {
		return err
	}
	d.depth = c.depth
	if err := d.run(rand.New(rand.NewPCG(1, 1)), ops); err != nil {
		return err
	}
	kept := 0
	for _, m := range d.moments {
		gone, err := d.check(d.j.Journal, m)
		if err != nil {
			return err
		}
		if !gone {
			kept++
		}
	}
	t.Logf("%s: %d of %d points kept", c.name, kept, len(d.moments))
	return d.end()
}
