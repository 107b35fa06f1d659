package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/link"
	"github.com/novacron/afterimage/testbed/scale"
	"github.com/novacron/afterimage/testbed/stamp"
)

// slowLimit is what may be sent to the slow peer in a second; the load is several
// times that.
const slowLimit = 1 << 20

// fan is a source and two replicas, each behind a path of its own; to c little may be
// sent in a second.
type fan struct {
	t       *testing.T
	a, b, c *daemon
	load    *stamps
	stop    context.CancelFunc // of the bulk
	bulk    chan error
}

func newFan(t *testing.T, vs []volume, seed uint64) *fan {
	t.Helper()
	f := &fan{t: t, a: newDaemon(t, "a"), b: newDaemon(t, "b"), c: newDaemon(t, "c")}
	f.a.space = space(t)
	peers := ""
	for i, d := range []*daemon{f.b, f.c} {
		d.space = space(t)
		path := lay(t, f.a.space, d.space, uint8(i+1), link.Config{RTT: 20 * time.Millisecond, Seed: seed})
		listen := fmt.Sprintf("%s:7700", path.Far())
		d.configure(fmt.Sprintf("site: %s\ndata: %s\nlisten: %s\npeers:\n  - {name: a, pin: %q}\ngroups:\n  - name: g\n    role: replica\n    peers: [a]\n",
			d.name, d.dir, listen, f.a.pin()))
		peers += fmt.Sprintf("  - {name: %s, address: %q, pin: %q", d.name, listen, d.pin())
		if d == f.c {
			peers += fmt.Sprintf(", limit: %d", slowLimit)
		}
		peers += "}\n"
	}
	f.a.configure(fmt.Sprintf("site: a\ndata: %s\npeers:\n%sgroups:\n  - name: g\n    role: primary\n    peers: [b, c]\n%s", f.a.dir, peers, volumesOf(f.a, vs)))
	return f
}

// pour writes 4 MiB a second that do not compress, round and round, until end.
func (f *fan) pour(rng *rand.Rand, size int64) {
	ctx, stop := context.WithCancel(context.Background())
	to, fill := through(f.a.connect("bulk")), rand.New(rand.NewPCG(rng.Uint64(), 0))
	f.stop, f.bulk = stop, make(chan error, 1)
	go func() {
		p := make([]byte, 64<<10)
		tick := time.NewTicker(time.Second / 64)
		defer tick.Stop()
		for n := int64(0); ; n++ {
			select {
			case <-ctx.Done():
				f.bulk <- nil
				return
			case <-tick.C:
			}
			for i := range p {
				p[i] = byte(fill.Uint32())
			}
			if err := to.write(p, n*int64(len(p))%size); err != nil {
				f.bulk <- err
				return
			}
		}
	}()
}

func (f *fan) end() {
	f.t.Helper()
	f.stop()
	if err := <-f.bulk; err != nil {
		f.t.Fatal(err)
	}
	if err := f.load.end(); err != nil {
		f.t.Fatal(err)
	}
}

// newest is the newest stamp of the newest point at a site.
func (f *fan) newest(d *daemon) uint64 {
	f.t.Helper()
	images, _, err := d.view("latest", "disk")
	if err != nil {
		f.t.Fatal(err)
	}
	r, err := stamp.Scan(bytes.NewReader(images["disk"]), 0, slots)
	if err != nil || !r.Whole(r.Max) {
		f.t.Fatalf("the newest point at %s is not whole: %s, %v", d.name, r, err)
	}
	return r.Max
}

// lags is what a shows of each peer.
func (f *fan) lags() map[string]control.Lag {
	f.t.Helper()
	out := map[string]control.Lag{}
	for _, l := range f.a.group().Lags {
		out[l.Peer] = l
	}
	return out
}

// truthful holds what both ends show of a replica's lag to what is missing there.
func (f *fan) truthful(d *daemon) {
	f.t.Helper()
	asked := time.Now()
	shown := map[string]*float64{"a": f.lags()[d.name].RPOSeconds, d.name: d.group().RPOSeconds}
	loss := f.load.loss(asked, f.newest(d)) // read after, so never more than it was
	for where, rpo := range shown {
		if rpo != nil && *rpo < loss.Seconds()-0.001 {
			f.t.Errorf("%s shows an RPO of %.3f s for %s, the loss would be %v", where, *rpo, d.name, loss)
		}
	}
}

// onlyTheSlowOneLags waits until b has what c, at the same time, has not.
func (f *fan) onlyTheSlowOneLags() {
	f.t.Helper()
	seq := f.a.group().Seq
	f.a.until("b has what c has not", func(ctx context.Context) bool {
		l := f.lags()
		if l["b"].Durable >= seq && l["c"].Durable < seq {
			return true
		}
		if l["c"].Durable >= seq { // c was quicker this time: with what is newer now
			seq = f.a.group().Seq
		}
		return false
	})
}

// Promises 9 and 16: of two peers one may be sent little: it lags, and both ends say so;
// the other has everything all the while, and once the limit is lifted both have.
func TestPromise9ASlowPeerSlowsNoOther(t *testing.T) {
	rng, seed := seeded(t)
	const bulkBytes = 16 << 20
	f := newFan(t, []volume{{"disk", slots * stamp.Size}, {"bulk", bulkBytes}}, seed)
	f.b.start()
	f.c.start()
	f.a.startSynced()
	f.load = &stamps{writer: rng.Uint64(), to: through(f.a.connect("disk"))}
	f.load.begin(context.Background())
	f.pour(rng, bulkBytes)
	seconds := uint64(5)
	switch {
	case scale.Sweeps() && os.Getenv("AFTERIMAGE_LONG") == "1":
		seconds = 300
	case scale.Sweeps():
		seconds = 120
	}
	for _, d := range []*daemon{f.b, f.c} {
		d.until("it has a point", func(context.Context) bool {
			_, _, err := d.view("latest", "disk")
			return err == nil
		})
	}
	rounds := 0
	for f.load.last() < 200*seconds {
		f.truthful(f.b)
		f.truthful(f.c)
		f.onlyTheSlowOneLags()
		rounds++
	}
	f.end()
	behind := f.lags()["c"].BehindBytes
	if err := f.a.cli(nil, "peer", "limit", "c", "off"); err != nil {
		t.Fatal(err)
	}
	seq := f.a.group().Seq
	for _, d := range []*daemon{f.b, f.c} {
		for last := uint64(0); last < seq; {
			d.until("more has arrived", func(ctx context.Context) bool {
				g, err := d.api.Group(ctx, "g")
				if err != nil || g.Durable < min(seq, last+500) {
					return false
				}
				last = g.Durable
				return true
			})
		}
		// What was sent is durable at the source, and nothing has come since.
		if g, ga := d.group(), f.a.group(); g.Chain != ga.Chain || g.Seq != ga.Seq || len(ga.Chain) != 64 {
			t.Errorf("%s is at #%d, chain %s; the source at #%d, chain %s", d.name, g.Seq, g.Chain, ga.Seq, ga.Chain)
		}
		if got := f.newest(d); got != f.load.last() {
			t.Errorf("%s has stamps up to %d, %d were written", d.name, got, f.load.last())
		}
	}
	t.Logf("%d stamps, looked %d times; at the end the slow peer was %d MiB behind", f.load.last(), rounds, behind>>20)
}
