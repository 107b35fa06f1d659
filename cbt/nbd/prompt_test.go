package nbd_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/cbt/nbd/nbdtest"
)

// promptly is a memory disk that takes writes in the reading goroutine, and can hold
// up Settle.
type promptly struct {
	*nbdtest.Memory
	refuse func(off int64) bool // Begin does
	live   context.Context
	letGo  context.CancelFunc

	mu      sync.Mutex // guards what follows
	held    chan struct{}
	settles int
	begun   int
	most    int           // settled together
	unsafe  []func()      // begun, not settled
	in      chan struct{} // signalled when a Settle is held up
}

func newPromptly(size int64) *promptly {
	p := &promptly{Memory: nbdtest.NewMemory(size), in: make(chan struct{}, 1)}
	p.live, p.letGo = context.WithCancel(context.Background())
	return p
}

func (p *promptly) export() *nbd.Export {
	return &nbd.Export{Name: "d", Size: p.Size(), Device: p}
}

func (p *promptly) Begin(b []byte, off int64) (nbd.Begun, bool) {
	if p.live.Err() != nil || p.refuse != nil && p.refuse(off) {
		return nil, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.begun++
	safe, data := make(chan struct{}), bytes.Clone(b) // b is the caller's again
	p.unsafe = append(p.unsafe, func() {
		p.Memory.WriteAt(context.Background(), data, off, false)
		close(safe)
	})
	return &promptWrite{p, safe}, true
}

func (p *promptly) Settle() {
	p.mu.Lock()
	todo, held := p.unsafe, p.held
	p.unsafe = nil
	p.settles++
	p.most = max(p.most, len(todo))
	p.mu.Unlock()
	if held != nil {
		p.in <- struct{}{}
		<-held
	}
	for _, f := range todo {
		f()
	}
}

func (p *promptly) LetGo(f func()) func() bool { return context.AfterFunc(p.live, f) }

type promptWrite struct {
	p    *promptly
	safe chan struct{}
}

func (w *promptWrite) Wait() error {
	select {
	case <-w.safe:
	case <-w.p.live.Done():
	}
	return nil
}

// Writes, zeroes and reads at random, of all sizes and overlapping, many under way at
// once: an answered write is seen by every later read, whichever way each of them took.
func TestPromptWritesAreAsOthers(t *testing.T) {
	const size, workers, rounds = 4 << 20, 8, 150
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	p := newPromptly(size)
	p.refuse = func(off int64) bool { return off/4096%7 == 3 }
	c := serve(t, "unix", nbd.ServerOptions{}, p.export()).dial(t, nbd.DialOptions{Export: "d"})
	var done sync.WaitGroup
	for k := range int64(workers) {
		done.Go(func() {
			rng, ctx := rand.New(rand.NewPCG(seed, uint64(k))), testContext(t)
			const mine = size / workers
			model := make([]byte, mine)
			for range rounds {
				off := rng.Int64N(mine - 1)
				n := 1 + rng.Int64N(min(mine-off, 1<<(1+rng.IntN(19))))
				part := model[off : off+n]
				var err error
				switch rng.IntN(4) {
				case 0:
					clear(part)
					err = c.Zero(ctx, cbt.Extent{Offset: k*mine + off, Length: n}, false, false)
				case 1:
					got := make([]byte, n)
					if err = c.ReadAt(ctx, got, k*mine+off); err == nil && !bytes.Equal(got, part) {
						t.Errorf("read %d+%d is not what was written", k*mine+off, n)
						return
					}
				default:
					for i := range part {
						part[i] = byte(rng.Uint32())
					}
					err = c.WriteAt(ctx, bytes.Clone(part), k*mine+off, rng.IntN(8) == 0)
				}
				if err != nil {
					t.Errorf("request: %v", err)
					return
				}
			}
			if got := p.Bytes()[k*mine : (k+1)*mine]; !bytes.Equal(got, model) {
				t.Errorf("worker %d: the disk is not what was written", k)
			}
		})
	}
	done.Wait()
	if p.begun == 0 || p.settles == 0 {
		t.Errorf("%d begun, %d settled: nothing went this way", p.begun, p.settles)
	}
	t.Logf("%d begun, %d times settled, at most %d together", p.begun, p.settles, p.most)
}

// A Settle that is held up holds up nobody once the device has let go: what was begun is
// answered, and requests are read and answered as before, though it never returns.
func TestHeldUpSettleIsLetGo(t *testing.T) {
	p := newPromptly(1 << 20)
	held := make(chan struct{})
	defer close(held)
	p.held = held
	c := serve(t, "unix", nbd.ServerOptions{}, p.export()).dial(t, nbd.DialOptions{Export: "d"})
	ctx := testContext(t)
	first := make(chan error, 1)
	go func() { first <- c.WriteAt(ctx, make([]byte, 4096), 0, false) }()
	<-p.in
	second := make(chan error, 1) // nobody reads it yet
	go func() { second <- c.WriteAt(ctx, bytes.Repeat([]byte{2}, 4096), 8192, false) }()
	p.letGo()
	must(t, <-first)
	must(t, <-second)
	for i := range int64(100) {
		must(t, c.WriteAt(ctx, bytes.Repeat([]byte{byte(i)}, 512), i*512, i%10 == 0))
	}
	got := make([]byte, 512)
	must(t, c.ReadAt(ctx, got, 99*512))
	if got[0] != 99 {
		t.Errorf("read %d", got[0])
	}
	must(t, c.Close())
}

// The server ends in bounded time though a Settle never returns.
func TestServerEndsWithAHeldUpSettle(t *testing.T) {
	p := newPromptly(1 << 20)
	held := make(chan struct{})
	defer close(held)
	p.held = held
	s := serve(t, "unix", nbd.ServerOptions{Grace: 1, Drain: 1}, p.export())
	c := s.dial(t, nbd.DialOptions{Export: "d"})
	first := make(chan error, 1)
	go func() { first <- c.WriteAt(testContext(t), make([]byte, 4096), 0, false) }()
	<-p.in
	s.cancel()
	if err := <-first; err == nil {
		t.Error("a write that is not safe was answered well")
	}
	if err := s.wait(); err == nil {
		t.Error("the server ended as if nothing were left")
	}
}

// What arrives while writes are begun is settled with them, where several came together
// before; a write that comes alone is settled at once.
func TestWritesThatArriveMeanwhileAreSettledTogether(t *testing.T) {
	p := newPromptly(1 << 20)
	h := shake(t, serve(t, "unix", nbd.ServerOptions{}, p.export()))
	h.open("d")
	block := make([]byte, 4096)
	two := func(a, b uint64) {
		h.write(uint32(0x25609513), uint16(0), uint16(1), a, a*4096, uint32(4096), block, uint32(0x25609513), uint16(0), uint16(1), b, b*4096, uint32(4096), block)
	}
	answers := func(n int) {
		t.Helper()
		for range n {
			if _, errno := h.simple(); errno != 0 {
				t.Fatalf("errno %d", errno)
			}
		}
	}
	p.refuse = func(off int64) bool { // Begin asks
		if off == 2*4096 || off == 4*4096 { // in the reading goroutine: nothing is settled before this returns
			n := uint64(off) / 4096
			two(n+1, n+2)
		}
		return false
	}
	two(1, 2)
	answers(6)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.most != 4 { // the first two were alone before, the others were not
		t.Errorf("at most %d were settled together", p.most)
	}
}
