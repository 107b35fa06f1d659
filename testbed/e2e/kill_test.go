package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/scale"
)

// writer is one writer of an area through one connection: what is under way when
// the other end dies is its last note, and that alone.
type writer struct {
	area
	rng  *rand.Rand
	base []byte // the area when this life's log began
}

// load writes in several areas at once until its server is killed, or until it is
// told to end.
type load struct {
	*recorder
	answers atomic.Int64
	enough  atomic.Bool
	done    sync.WaitGroup
	err     error // of a writer; read after done
	failed  sync.Once
}

// end lets every writer finish what it has under way.
func (l *load) end() error {
	l.enough.Store(true)
	l.done.Wait()
	return l.err
}

// write starts a writer on its own connection.
func (l *load) write(w *writer, c *nbd.Client) {
	to := through(c)
	l.done.Go(func() {
		for !l.enough.Load() {
			if err := l.issue(to, draw(w.rng, w.area)); err != nil {
				l.failed.Do(func() { l.err = err })
				return
			}
			l.answers.Add(1)
		}
	})
}

// judgeAfterKill tells what is wrong with an area after a kill: it has to hold
// every answered write of its writer, and of the one under way all or nothing.
func (l *load) judgeAfterKill(w *writer, got []byte) error {
	writes := of(l.log, w.area)
	images := make([][]byte, len(l.sizes))
	for i := range images {
		images[i] = make([]byte, l.sizes[i])
	}
	copy(images[w.volume][w.off:], w.base)
	answered := 0
	for answered < len(writes) && writes[answered].ended != 0 {
		answered++
	}
	if len(writes)-answered > 1 {
		return fmt.Errorf("the writer had %d writes under way", len(writes)-answered)
	}
	for _, n := range writes[:answered] {
		n.apply(images)
	}
	if len(prefixes(images, writes[answered:], 0, w.area, got)) == 0 {
		at := firstDifference(images[w.volume][w.off:w.off+w.length], got)
		return fmt.Errorf("bytes %d+%d of volume %d are not as %d answered writes leave them: byte %d of it differs", w.off, w.length, w.volume, answered, at)
	}
	return nil
}

// Promises 1, 2 and 3: kill -9 of the source in the middle of a load loses no
// answered write and leaves no gap: an embedded volume's image, its head and its
// newest point are one, and points go on where the last life's ended.
func TestPromise2KillOfEmbeddedSourceLosesNothing(t *testing.T) {
	rng, _ := seeded(t)
	vs := []volume{{"root", 2 << 20}, {"data", 4 << 20}}
	d := newDaemon(t, "a")
	d.configure(single(d, vs))
	d.startSynced()
	s := newScribe(t, vs)
	var writers []*writer
	for _, a := range s.split(4) {
		writers = append(writers, &writer{area: a, rng: rand.New(rand.NewPCG(rng.Uint64(), 0)), base: make([]byte, a.length)})
	}
	kills := scale.Scale(20)
	written := 0
	for range kills {
		l := &load{recorder: &recorder{sizes: s.sizes}}
		for _, w := range writers {
			l.write(w, d.connect(vs[w.volume].name))
		}
		enough := int64(100 + rng.IntN(1000))
		d.until("the load has written", func(context.Context) bool { return l.answers.Load() >= enough })
		d.kill()
		l.done.Wait()
		d.claimsNoOpenInterval()
		written += int(l.answers.Load())
		d.startSynced()
		live := d.live(vs)
		newest, at, err := d.view("latest")
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range vs {
			if i := firstDifference(live[v.name], newest[v.name]); i >= 0 {
				t.Fatalf("the newest point, #%d.%d, differs from the disk %s at byte %d", at.Epoch, at.Seq, v.name, i)
			}
		}
		for _, w := range writers {
			got := live[vs[w.volume].name][w.off : w.off+w.length]
			if err := l.judgeAfterKill(w, got); err != nil {
				t.Fatalf("after kill -9: %v", err)
			}
			w.base = got
		}
	}
	d.checkNoGap(kills+1, len(vs))
	t.Logf("%d answered writes, none missing", written)
	scale.Counted(t, "kill9-embedded", kills, 20)
}

// claimsNoOpenInterval holds the list of points of a site whose daemon is dead to
// saying of none that it still grows.
func (d *daemon) claimsNoOpenInterval() {
	d.t.Helper()
	var ps control.Points
	if err := d.cli(&ps, "point", "list", "g"); err != nil {
		d.t.Fatal(err)
	}
	for _, span := range ps.Spans {
		if span.Open {
			d.t.Errorf("nothing is captured, and the points from #%d.%d on still grow", span.First.Epoch, span.First.Seq)
		}
	}
}

// live reads the disks as their clients see them.
func (d *daemon) live(vs []volume) map[string][]byte {
	d.t.Helper()
	images := map[string][]byte{}
	for _, v := range vs {
		c := d.connect(v.name)
		var err error
		if images[v.name], err = readAll(d.t.Context(), c); err != nil {
			d.t.Fatal(err)
		}
		if err := c.Close(); err != nil && !errors.Is(err, nbd.ErrDisconnected) {
			d.t.Error(err)
		}
	}
	return images
}

// checkNoGap holds the points to this: each life's end is ended by the next one's
// opening and by nothing else, and between them lie only the new epoch's own record
// and one that opens the interval of each volume.
func (d *daemon) checkNoGap(lives, volumes int) {
	d.t.Helper()
	ps, err := d.api.Points(d.t.Context(), control.PointsQuery{Group: "g"})
	if err != nil {
		d.t.Fatal(err)
	}
	if len(ps.Gaps) != 0 {
		d.t.Errorf("gaps: %+v", ps.Gaps)
	}
	lineage := d.group().Lineage
	if len(lineage) != lives {
		d.t.Fatalf("%d epochs in %d lives", len(lineage), lives)
	}
	// While volumes join, in the first life, a span ends where the next begins.
	for len(ps.Spans) > 1 && ps.Spans[0].Ended == "" && ps.Spans[1].First.Seq == ps.Spans[0].Last.Seq+1 {
		ps.Spans = ps.Spans[1:]
	}
	if len(ps.Spans) != lives {
		d.t.Fatalf("%d spans of points in %d lives: %+v", len(ps.Spans), lives, ps.Spans)
	}
	for i, span := range ps.Spans {
		own := lineage[i]
		last := i == lives-1
		switch {
		case span.First.Epoch != own.Epoch || span.Last.Epoch != own.Epoch || span.Last.Seq != own.Last:
			d.t.Errorf("points #%d.%d to #%d.%d in the epoch %+v", span.First.Epoch, span.First.Seq, span.Last.Epoch, span.Last.Seq, own)
		case span.Open != last || !last && span.Ended != string(cbt.CauseOpening):
			d.t.Errorf("span %d of %d: open %v, ended by %q", i+1, lives, span.Open, span.Ended)
		case i > 0 && own.First != lineage[i-1].Last+1:
			d.t.Errorf("epoch %d begins at #%d, the one before ended at #%d", own.Epoch, own.First, lineage[i-1].Last)
		case i > 0 && span.First.Seq != own.First+uint64(volumes):
			d.t.Errorf("epoch %d begins at #%d, and its points at #%d with %d volumes", own.Epoch, own.First, span.First.Seq, volumes)
		}
	}
}
