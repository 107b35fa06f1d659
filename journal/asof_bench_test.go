package journal

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/cbt"
)

// Ratios to the plain file, each the median of short rounds in turns with the
// baseline, on a volume of imageBytes that was rewritten versions times over with
// writes of 512 B to 1 MiB; all caches of the kernel are cold for these files.
//
//	go test -run '^$' -bench 'Past|Opening' -benchtime 1x ./journal
const (
	imageBytes  = int64(512) << 20
	versions    = 10
	readRounds  = 5
	roundLength = 2 * time.Second
)

// past is a volume with a history, and its image at the middle as a plain file.
type past struct {
	*running
	dir   string
	v     cbt.Volume
	view  *View
	plain *os.File
}

func newPast(b *testing.B) *past {
	dir := b.TempDir()
	v := volume("a", imageBytes)
	p := &past{dir: dir, v: v}
	o := Options{Sync: SyncPower}
	create := o
	create.Create = newIdentity()
	j := start(b, filepath.Join(dir, "j"), create)
	w := beginWith(b, j.Journal, v)
	rng := rand.New(rand.NewPCG(1, 2))
	pool := make([]byte, 32<<20)
	for i := range pool {
		pool[i] = byte(rng.Uint32())
	}
	var flying []cbt.Pending
	var middle Position
	for written := int64(0); written < versions*imageBytes; {
		n := int64(512) << rng.IntN(12)
		off := rng.Int64N((imageBytes-n)/min(n, pageBytes)+1) * min(n, pageBytes)
		if written < imageBytes {
			n, off = 1<<20, written
		}
		at := rng.IntN(len(pool)-int(n)) &^ 511
		pend, err := w.Record(context.Background(), cbt.Event{Kind: cbt.EventWrite, Volume: v.ID, Extent: cbt.Extent{Offset: off, Length: n}, Data: pool[at : at+int(n)]})
		if err != nil {
			b.Fatal(err)
		}
		if flying = append(flying, pend); len(flying) > 64 {
			if err := flying[0].Wait(context.Background()); err != nil {
				b.Fatal(err)
			}
			flying = flying[1:]
		}
		if written += n; middle.IsZero() && written > versions/2*imageBytes {
			middle = Position{w.Epoch().ID, pend.(pendingRecord).seq}
		}
	}
	if err := w.WaitDurable(context.Background()); err != nil {
		b.Fatal(err)
	}
	j.close()
	p.running = start(b, filepath.Join(dir, "j"), o)
	view, err := p.View(context.Background(), Point{Position: middle})
	if err != nil {
		b.Fatal(err)
	}
	p.view = view
	name := filepath.Join(dir, "plain")
	if took := p.image(b, name); took == 0 {
		b.Fatal("no image")
	}
	if p.plain, err = os.OpenFile(name, os.O_RDONLY|unix.O_DIRECT, 0); err != nil {
		b.Fatal(err)
	}
	return p
}

func (p *past) end(b *testing.B) {
	_ = p.plain.Close() // read only
	if err := p.view.Close(); err != nil {
		b.Fatal(err)
	}
	p.close()
}

// image writes the view's image to a new file and says how long that took.
func (p *past) image(b *testing.B, name string) time.Duration {
	start := time.Now()
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_DIRECT, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	_ = unix.Fallocate(int(f.Fd()), 0, 0, imageBytes) // advice only
	err = p.view.Materialize(context.Background(), p.v.ID, func(e cbt.Extent, data []byte) error {
		if data == nil {
			return nil
		}
		_, err := f.WriteAt(data, e.Offset)
		return err
	})
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}

// rawRing is a plain loop over io_submit and io_getevents.
type rawRing struct {
	ctx  uintptr
	bufs [][]byte
}

func newRawRing(b *testing.B, depth int, n int64) *rawRing {
	r := &rawRing{}
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, uintptr(depth), uintptr(unsafe.Pointer(&r.ctx)), 0); errno != 0 {
		b.Fatal(errno)
	}
	b.Cleanup(func() { _, _, _ = unix.Syscall(unix.SYS_IO_DESTROY, r.ctx, 0, 0) })
	for range depth {
		r.bufs = append(r.bufs, alignedBytes(n))
	}
	return r
}

// op begins a read (0) or write (1) of slot's buffer.
func (r *rawRing) op(b *testing.B, slot int, opcode uint32, f *os.File, off int64) {
	cb := &iocb{data: uint64(slot), fd: uint32(f.Fd()), buf: uint64(uintptr(unsafe.Pointer(&r.bufs[slot][0]))), bytes: uint64(len(r.bufs[slot])), offset: off}
	*(*uint32)(unsafe.Add(unsafe.Pointer(cb), 16)) = opcode
	if _, _, errno := unix.Syscall(unix.SYS_IO_SUBMIT, r.ctx, 1, uintptr(unsafe.Pointer(&cb))); errno != 0 {
		b.Fatal(errno)
	}
}

func (r *rawRing) wait(b *testing.B) []ioEvent {
	events := make([]ioEvent, len(r.bufs))
	n, _, errno := unix.Syscall6(unix.SYS_IO_GETEVENTS, r.ctx, 1, uintptr(len(events)), uintptr(unsafe.Pointer(&events[0])), 0, 0)
	if errno != 0 {
		return nil
	}
	return events[:n]
}

// rawReads is reads a second of the plain file.
func (p *past) rawReads(b *testing.B, cells []int, depth int) float64 {
	start, n := time.Now(), 0
	if depth == 1 {
		buf := alignedBytes(pageBytes)
		for ; time.Since(start) < roundLength && n < len(cells); n++ {
			if _, err := p.plain.ReadAt(buf, int64(cells[n])*pageBytes); err != nil {
				b.Fatal(err)
			}
		}
		return float64(n) / time.Since(start).Seconds()
	}
	r := newRawRing(b, depth, pageBytes)
	for n < depth {
		r.op(b, n, 0, p.plain, int64(cells[n])*pageBytes)
		n++
	}
	for under := depth; under > 0; {
		for _, e := range r.wait(b) {
			under--
			if time.Since(start) < roundLength && n < len(cells) {
				r.op(b, int(e.data), 0, p.plain, int64(cells[n])*pageBytes)
				n, under = n+1, under+1
			}
		}
	}
	return float64(n) / time.Since(start).Seconds()
}

// reads is reads a second of the view.
func (p *past) reads(b *testing.B, cells []int, depth int) float64 {
	start := time.Now()
	var next, done atomic.Int64
	var wg sync.WaitGroup
	for range depth {
		wg.Go(func() {
			buf := make([]byte, pageBytes)
			for time.Since(start) < roundLength {
				n := int(next.Add(1)) - 1
				if n >= len(cells) {
					return
				}
				if err := p.view.ReadAt(context.Background(), p.v.ID, buf, int64(cells[n])*pageBytes); err != nil {
					b.Error(err)
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(done.Load()) / time.Since(start).Seconds()
}

// processorTime is the seconds that this process has computed, in the kernel too.
func processorTime() float64 {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u) // our own always works
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

func middleOf(v []float64) float64 { slices.Sort(v); return v[len(v)/2] }

// rawCopy copies the plain file as Materialize does, at a depth of eight.
func (p *past) rawCopy(b *testing.B, name string) time.Duration {
	start := time.Now()
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_DIRECT, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	_ = unix.Fallocate(int(f.Fd()), 0, 0, imageBytes) // advice only
	r := newRawRing(b, 8, 1<<20)
	at, writing := make([]int64, 8), make([]bool, 8)
	next := int64(0)
	for s := range 8 {
		at[s] = next
		r.op(b, s, 0, p.plain, next)
		next += 1 << 20
	}
	for under := 8; under > 0; {
		for _, e := range r.wait(b) {
			s := int(e.data)
			if writing[s] = !writing[s]; writing[s] {
				r.op(b, s, 1, f, at[s])
				continue
			}
			if under--; next < imageBytes {
				at[s] = next
				r.op(b, s, 0, p.plain, next)
				next, under = next+1<<20, under+1
			}
		}
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}

func BenchmarkPast(b *testing.B) {
	p := newPast(b)
	defer p.end(b)
	rng := rand.New(rand.NewPCG(3, 4))
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprintf("reads%d", depth), func(b *testing.B) {
			var ratios, ours, costs, rawCosts []float64
			for range readRounds {
				cells := rng.Perm(int(imageBytes / pageBytes))
				c0 := processorTime()
				mine := p.reads(b, cells, depth)
				c1 := processorTime()
				raw := p.rawReads(b, cells, depth)
				ratios, ours = append(ratios, mine/raw), append(ours, mine)
				costs = append(costs, (c1-c0)/mine/roundLength.Seconds())
				rawCosts = append(rawCosts, (processorTime()-c1)/raw/roundLength.Seconds())
			}
			b.ReportMetric(1e6*middleOf(costs), "cpu-µs/read")
			b.ReportMetric(1e6*middleOf(rawCosts), "raw-cpu-µs/read")
			b.ReportMetric(middleOf(ratios), "of-file")
			b.ReportMetric(middleOf(ours), "reads/s")
		})
	}
	b.Run("materialize", func(b *testing.B) {
		var ratios, ours []float64
		for range readRounds {
			mine, raw := p.image(b, filepath.Join(p.dir, "mine")), p.rawCopy(b, filepath.Join(p.dir, "raw"))
			ratios, ours = append(ratios, raw.Seconds()/mine.Seconds()), append(ours, float64(imageBytes)/mine.Seconds()/1e6)
		}
		b.ReportMetric(middleOf(ratios), "of-copy")
		b.ReportMetric(middleOf(ours), "MB/s")
	})
}
