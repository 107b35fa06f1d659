package site

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/scale"
)

// A sends to B and to C, and dies. B is promoted before, at and after the end of what C
// holds; in the first two C is ahead of B or level with it. C follows by what it lacks,
// counted in bytes, and what it held beyond the fork stays a branch that can be read.
func TestThirdSiteFollowsWhoeverIsPromoted(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name string
		late string                                 // who misses the last writes
		at   func(head, shared uint64) (seq uint64) // where B is promoted
	}{
		{"before the end of C", "b", func(_, shared uint64) uint64 { return shared - 7 }},
		{"at the end of C", "c", func(_, shared uint64) uint64 { return shared }},
		{"after the end of C", "c", func(head, _ uint64) uint64 { return head - 3 }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { followsPromoted(t, c.late, c.at) })
	}
	scale.Counted(t, "third-site-promotions", len(cases), 3)
}

func followsPromoted(t *testing.T, late string, where func(head, shared uint64) uint64) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	w, ctx := newWorld(t).seats("a", "b", "c"), context.Background()
	cb := w.at("b", "- name: web\n  peers: [a, c]\n"+oneDisk)
	cc := w.at("c", "- {name: web, peers: [a, b]}\n")
	b, c := w.run(cb), w.run(cc)
	a := w.run(w.at("a", "- name: web\n  role: primary\n  peers: [b, c]\n"+oneDisk))
	a.awaitState("web", control.StateSynced)
	l := &load{running: a, rng: rand.New(rand.NewPCG(seed, 7)), size: 2 << 20}
	for range 150 {
		l.writeOnce()
	}
	awaitLevel(a, b, "web")
	awaitLevel(a, c, "web")
	shared := l.head()
	ahead := c
	if late == "b" {
		b.stop()
	} else {
		c.stop()
		ahead = b
	}
	for range 20 {
		l.writeOnce()
	}
	awaitLevel(a, ahead, "web")
	head, all := l.head(), int64(0)
	for _, x := range l.writes {
		all += x.n
	}
	a.stop()
	if late == "b" {
		b = w.run(cb)
	} else {
		c = w.run(cc)
	}
	c.awaitState("web", control.StateWaiting)
	b.awaitState("web", control.StateWaiting)
	held := c.groupLine("web").Seq // of C, in the reign of A

	fork := where(head, shared)
	if _, err := b.Failover(ctx, control.FailoverRequest{Group: "web", At: fmt.Sprintf("#1.%d", fork), Force: true, NoMachine: true}, func(control.Progress) {}); err != nil {
		t.Fatal(err)
	}
	t.Logf("promoted at #1.%d, C holds #1.%d", fork, held)
	b.awaitState("web", control.StateSynced)
	there := &load{running: b, rng: l.rng, size: l.size}
	for _, x := range l.writes {
		if x.seq <= fork {
			there.writes = append(there.writes, x)
		}
	}
	for range 10 {
		there.writeOnce()
	}
	awaitLevel(b, c, "web")
	third := &load{running: c, rng: l.rng, size: l.size, writes: there.writes}
	third.restores("latest", there.head())
	third.restores(fmt.Sprintf("#1.%d", fork), fork)
	third.writes = l.writes
	third.restores(fmt.Sprintf("#1.%d", held), held) // its tail, where it has one beyond the fork
	await(t, "B knows", func() bool {
		x := b.lagOf("web", "c", "out")
		return x.BehindWrites == 0 && x.RPOSeconds != nil
	})
	// What C lacked: B's own writes, and of A's those between C's end and the fork.
	if x := b.lagOf("web", "c", "out"); int64(x.MovedFor) > all/3 || x.MovedFor == 0 {
		t.Errorf("C was sent %d bytes where %d were written", x.MovedFor, all)
	}
	if n := len(c.history(t)); n != 2 {
		t.Errorf("C knows %d reigns", n)
	}
}

// history is the reigns that a site knows of, by number.
func (r *running) history(t *testing.T) map[uint64]bool {
	t.Helper()
	l, release, err := r.groups[0].use()
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	out := map[uint64]bool{}
	for _, b := range l.j.Branches() {
		out[b.Number] = true
	}
	return out
}
