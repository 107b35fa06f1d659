package recovery

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
)

func dial(t testing.TB, uri string) *nbd.Client {
	t.Helper()
	u, err := url.Parse(uri)
	must(t, err)
	c, err := nbd.Dial(testContext(t), "unix", u.Query().Get("socket"), nbd.DialOptions{Export: "disk", MetaContexts: []string{nbd.ContextAllocation}})
	must(t, err)
	t.Cleanup(func() { _ = c.Close() }) // the test is over
	return c
}

// A served view answers reads of any offset and length, sectors or not, on several
// connections with several under way on each, and calls no byte a hole that is not
// zero: what a machine that boots from it does.
func TestViewServesAnyRead(t *testing.T) {
	vw, v, content := restorable(t)
	uri := serveOne(t, ViewDevice(vw, v.ID), v.Size, true)
	rng := seeded(t)
	var wg sync.WaitGroup
	for range 4 {
		c := dial(t, uri)
		for range 4 {
			rng := rand.New(rand.NewPCG(rng.Uint64(), 9))
			wg.Go(func() {
				ctx := testContext(t)
				for range 40 {
					n := 1 + rng.Int64N(int64(1)<<rng.IntN(22))
					off := rng.Int64N(v.Size - n)
					p := make([]byte, n)
					if err := c.ReadAt(ctx, p, off); err != nil || !bytes.Equal(p, content[off:off+n]) {
						t.Errorf("read %d bytes at %d: %v, or other bytes than were written", n, off, err)
						return
					}
					e := cbt.Extent{Offset: off, Length: n}.Round()
					runs, err := c.Status(ctx, e)
					if err != nil {
						t.Errorf("status of %v: %v", e, err)
						return
					}
					for at, i := e.Offset, 0; i < len(runs); i++ {
						end := min(at+runs[i].Length, e.End())
						if runs[i].Zero && len(bytes.TrimLeft(content[at:end], "\x00")) > 0 {
							t.Errorf("status of %v calls data at %d zeros", e, at)
							return
						}
						at = end
					}
				}
			})
		}
	}
	wg.Wait()
}

// Random 4 KiB reads of a view, and of the same view as it is served, 32 at a time.
func BenchmarkViewExport(b *testing.B) {
	vw, v, _ := restorable(b)
	device := ViewDevice(vw, v.ID)
	c := dial(b, serveOne(b, device, v.Size, true))
	rate := func(read func(ctx context.Context, p []byte, off int64) error) float64 {
		var n atomic.Int64
		var wg sync.WaitGroup
		start := time.Now()
		for k := range 32 {
			rng := rand.New(rand.NewPCG(uint64(k), 4))
			wg.Go(func() {
				for p := make([]byte, 4096); time.Since(start) < 2*time.Second; n.Add(1) {
					if err := read(context.Background(), p, rng.Int64N(v.Size/4096)*4096); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		return float64(n.Load()) / time.Since(start).Seconds()
	}
	for range 3 {
		b.ReportMetric(rate(device.ReadAt), "view-reads/s")
		b.ReportMetric(rate(c.ReadAt), "served-reads/s")
	}
}
