package nbd_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/cbt/nbd/nbdtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestRoundTrip drives random requests from many goroutines, each in its own
// part of the disk, against a plain byte slice.
func TestRoundTrip(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		for _, plain := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/plain=%v", network, plain), func(t *testing.T) {
				const parts, partBytes = 8, 1 << 20
				m := nbdtest.NewMemory(parts * partBytes)
				s := serve(t, network, nbd.ServerOptions{}, m.Export("disk"))
				c := s.dial(t, nbd.DialOptions{Export: "disk", NoStructuredReplies: plain})
				model := make([]byte, parts*partBytes)
				seed := rand.Uint64()
				t.Logf("seed %d", seed)
				var wg sync.WaitGroup
				for part := range parts {
					wg.Go(func() {
						r := rand.New(rand.NewPCG(seed, uint64(part)))
						if err := exercise(t, c, r, model[part*partBytes:][:partBytes], int64(part*partBytes)); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
				must(t, c.Flush(testContext(t)))
				if !bytes.Equal(m.Bytes(), model) {
					t.Error("disk and model differ")
				}
				must(t, c.Close())
			})
		}
	}
}

// exercise works on [base, +len(model)) of c, alone.
func exercise(t *testing.T, c *nbd.Client, r *rand.Rand, model []byte, base int64) error {
	ctx := testContext(t)
	for range 100 {
		off := r.IntN(len(model))
		n := 1 + r.IntN(min(len(model)-off, 100_000))
		part, e := model[off:off+n], cbt.Extent{Offset: base + int64(off), Length: int64(n)}
		fua := r.IntN(2) == 0
		var err error
		switch r.IntN(5) {
		case 0:
			err = c.Zero(ctx, e, fua, r.IntN(2) == 0)
			clear(part)
		case 1:
			err = c.Trim(ctx, e, fua)
			clear(part)
		case 2, 3:
			for i := range part {
				part[i] = byte(r.Uint32())
			}
			err = c.WriteAt(ctx, part, e.Offset, fua)
		default:
			got := make([]byte, n)
			if err = c.ReadAt(ctx, got, e.Offset); err == nil && !bytes.Equal(got, part) {
				err = fmt.Errorf("read of %v differs from the model", e)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func TestInfo(t *testing.T) {
	m := nbdtest.NewMemory(1<<40 + 512)
	ro, tap := m.Export("ro"), m.Export("tap")
	ro.ReadOnly, ro.MultiConn = true, true
	tap.NoFlush = true
	s := serve(t, "unix", nbd.ServerOptions{}, ro, tap)
	c := s.dial(t, nbd.DialOptions{Export: "ro"})
	want := nbd.Info{
		Size: 1<<40 + 512, ReadOnly: true, CanFlush: true, CanFUA: true, CanMultiConn: true, Structured: true,
		MinBlock: 1, PreferredBlock: 4096, MaxPayload: 32 << 20,
	}
	got := c.Info()
	got.Flags = 0
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("read-only export (-want +got):\n%s", d)
	}
	ctx := testContext(t)
	if err := c.WriteAt(ctx, make([]byte, 512), 0, false); !errors.Is(err, nbd.EPERM) {
		t.Errorf("write to a read-only export: %v", err)
	}
	c = s.dial(t, nbd.DialOptions{Export: "tap"})
	if i := c.Info(); i.CanFlush || i.CanFUA || i.CanMultiConn || !i.CanTrim || !i.CanZero {
		t.Errorf("capture export: %+v", i)
	}
	if err := c.Flush(ctx); !errors.Is(err, nbd.ErrUnsupported) {
		t.Errorf("flush on a capture export: %v", err)
	}
	if _, err := nbd.Dial(ctx, "unix", s.address, nbd.DialOptions{Export: "none"}); !errors.Is(err, nbd.ErrUnknownExport) {
		t.Errorf("unknown export: %v", err)
	}
}

// TestLargeRanges crosses the 32-bit limits of the protocol.
func TestLargeRanges(t *testing.T) {
	const size = 20 << 30
	m := nbdtest.NewMemory(size)
	s := serve(t, "unix", nbd.ServerOptions{}, m.Export("disk"))
	c := s.dial(t, nbd.DialOptions{Export: "disk", MetaContexts: []string{nbd.ContextAllocation}})
	ctx := testContext(t)
	big := bytes.Repeat([]byte{7}, 40<<20)
	must(t, c.WriteAt(ctx, big, 5<<30-1000, false))
	back := make([]byte, len(big))
	must(t, c.ReadAt(ctx, back, 5<<30-1000))
	if !bytes.Equal(big, back) {
		t.Error("a transfer of 40 MiB is not what was written")
	}
	first, last := int64(5<<30-64<<10), int64(5<<30+40<<20)
	got, err := c.BlockStatus(ctx, nbd.ContextAllocation, cbt.Extent{Length: size})
	must(t, err)
	want := []nbd.StatusFlags{
		{Extent: cbt.Extent{Length: first}, Flags: nbd.StateHole | nbd.StateZero},
		{Extent: cbt.Extent{Offset: first, Length: last - first}},
		{Extent: cbt.Extent{Offset: last, Length: size - last}, Flags: nbd.StateHole | nbd.StateZero},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("status (-want +got):\n%s", d)
	}
	must(t, c.Zero(ctx, cbt.Extent{Length: size}, true, false))
	got, err = c.BlockStatus(ctx, nbd.ContextAllocation, cbt.Extent{Length: size})
	must(t, err)
	if len(got) != 1 || got[0].Flags != nbd.StateHole|nbd.StateZero {
		t.Errorf("status after zeroing all: %v", got)
	}
	if m.Flushes() == 0 {
		t.Error("FUA did not arrive")
	}
}
