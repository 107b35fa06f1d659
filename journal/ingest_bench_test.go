package journal

import (
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/cbt"
)

// BenchmarkIngest compares durable ingest with the raw device path: one writer that
// puts the same bytes, in the groups that ours formed, past the page cache into a file
// written once before, each with one fdatasync. Rounds of both alternate, for the
// device drifts; what is printed are medians over rounds. A round of ours ends when
// chain, index and segments have caught up. The pool is filled, and segments of the
// round before are retired, outside the time.
//
//	go test ./journal -run '^$' -bench Ingest -benchtime 1x
func BenchmarkIngest(b *testing.B) {
	for _, s := range []struct {
		name         string
		bytes, depth int
	}{{"64k_qd32", 64 << 10, 32}, {"4k_qd32", 4 << 10, 32}, {"4k_qd128", 4 << 10, 128}, {"4k_qd1", 4 << 10, 1}} {
		b.Run(s.name, func(b *testing.B) {
			bed := newIngestBed(b)
			defer bed.j.close()
			var ratios, ours, raw, groups, amplified []float64
			for b.Loop() {
				for range 5 {
					mine := bed.ours(b, s.bytes, s.depth, time.Second)
					theirs := bed.raw(b, mine.groups)
					r := mine.rate / theirs.rate
					if s.depth == 1 {
						r = float64(mine.p50) / float64(theirs.p50)
						mine.rate, theirs.rate = float64(mine.p50.Microseconds()), float64(theirs.p50.Microseconds())
					}
					ratios, ours, raw = append(ratios, r), append(ours, mine.rate), append(raw, theirs.rate)
					groups = append(groups, float64(mine.stored)/float64(len(mine.groups)))
					amplified = append(amplified, float64(mine.stored)/float64(mine.payload))
				}
			}
			unit := "MB/s"
			if s.depth == 1 {
				unit = "us-p50"
			}
			b.ReportMetric(middle(ratios), "x-raw")
			b.ReportMetric(middle(ours), "ours-"+unit)
			b.ReportMetric(middle(raw), "raw-"+unit)
			b.ReportMetric(middle(groups)/1024, "KiB/group")
			b.ReportMetric(middle(amplified), "stored/payload")
			b.ReportMetric(0, "ns/op")
			b.Logf("%s: ratios %.2f ours %.0f raw %.0f", s.name, ratios, ours, raw)
		})
	}
}

func middle(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

const ingestBytes = 2 << 30 // at most, a round

// ingestBed is a journal on a real disk, and a file for the baseline beside it.
type ingestBed struct {
	j      *running
	w      *Writer
	v      cbt.Volume
	fs     *groupFS
	base   vfs.File
	buf    []byte
	source []byte
}

type ingestRound struct {
	rate            float64 // MB a second
	p50             time.Duration
	payload, stored int64
	groups          []int64
}

func newIngestBed(b *testing.B) *ingestBed {
	dir := b.TempDir()
	t := &ingestBed{fs: &groupFS{FS: vfs.Default}, v: volume("load", 16<<30), buf: alignedBytes(16 << 20), source: make([]byte, 32<<20)}
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(t.source)
	_, _ = rng.Read(t.buf)
	f, err := vfs.Default.OpenReadWrite(filepath.Join(dir, "raw"), vfs.WriteCategoryUnspecified)
	if err != nil {
		b.Fatal(err)
	}
	t.base = f
	b.Cleanup(func() { _ = f.Close() })
	if !direct(f) {
		b.Log("no O_DIRECT here: the figures say nothing about a disk")
	}
	for at := int64(0); at < ingestBytes; at += int64(len(t.buf)) {
		if err := writeDirect(f, t.buf, at); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	t.j = start(b, filepath.Join(dir, "j"), Options{FS: t.fs, Create: newIdentity(), Sync: SyncPower, PoolBytes: ingestBytes + 256<<20})
	t.w = beginWith(b, t.j.Journal, t.v)
	return t
}

// settle fills the pool and waits for what the disk still writes.
func (t *ingestBed) settle(b *testing.B) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ns, err := t.j.segmentList()
	for _, n := range ns[:max(len(ns)-1, 0)] {
		err = errors.Join(err, t.j.retireSegment(n))
	}
	if err := errors.Join(err, t.j.WaitPool(ctx), t.base.Sync()); err != nil {
		b.Fatal(err)
	}
}

func (t *ingestBed) ours(b *testing.B, size, depth int, span time.Duration) ingestRound {
	t.settle(b)
	t.fs.take()
	before := t.j.Head()
	laps := make([][]time.Duration, depth)
	errs := make([]error, depth)
	begun := time.Now()
	var g sync.WaitGroup
	for k := range depth {
		rng := rand.New(rand.NewPCG(uint64(before.Seq), uint64(k)))
		g.Go(func() {
			ctx := context.Background()
			for n := 0; time.Since(begun) < span && n*depth*size < ingestBytes; n++ {
				off := rng.Int64N(t.v.Size/int64(size)) * int64(size)
				data := t.source[rng.IntN((len(t.source)-size)/512)*512:][:size]
				at := time.Now()
				p, err := t.w.Record(ctx, cbt.Event{Kind: cbt.EventWrite, Volume: t.v.ID, Extent: cbt.Extent{Offset: off, Length: int64(size)}, Data: data})
				if err == nil {
					err = p.Wait(ctx)
				}
				if errs[k] = err; err != nil {
					return
				}
				laps[k] = append(laps[k], time.Since(at))
			}
		})
	}
	g.Wait()
	err := errors.Join(errs...)
	if err == nil {
		err = t.w.WaitDurable(context.Background())
	}
	if err == nil {
		err = t.j.drain(context.Background())
	}
	if err != nil {
		b.Fatal(err)
	}
	took := time.Since(begun)
	var all []time.Duration
	for _, l := range laps {
		all = append(all, l...)
	}
	slices.Sort(all)
	after := t.j.Head()
	r := ingestRound{p50: all[len(all)/2], payload: int64(len(all)) * int64(size), stored: after.Bytes - before.Bytes, groups: t.fs.take()}
	r.rate = float64(r.stored) / took.Seconds() / 1e6
	return r
}

func (t *ingestBed) raw(b *testing.B, groups []int64) ingestRound {
	laps := make([]time.Duration, 0, len(groups))
	var at, total int64
	begun := time.Now()
	for _, g := range groups {
		one := time.Now()
		for left := g; left > 0; {
			n := min(left, int64(len(t.buf)))
			if at+n > ingestBytes {
				at = 0
			}
			if err := writeDirect(t.base, t.buf[:n], at); err != nil {
				b.Fatal(err)
			}
			at, left, total = at+n, left-n, total+n
		}
		if err := t.base.SyncData(); err != nil {
			b.Fatal(err)
		}
		laps = append(laps, time.Since(one))
	}
	took := time.Since(begun)
	slices.Sort(laps)
	return ingestRound{p50: laps[len(laps)/2], stored: total, rate: float64(total) / took.Seconds() / 1e6}
}

// groupFS notes the bytes that reach segments between one sync and the next.
type groupFS struct {
	vfs.FS
	mu   sync.Mutex // guards all below
	open int64
	list []int64
}

func (g *groupFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := g.FS.OpenReadWrite(name, c, o...)
	if err == nil && strings.HasSuffix(name, segmentSuffix) {
		f = groupFile{f, g}
	}
	return f, err
}

func (g *groupFS) take() []int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := g.list
	g.list, g.open = nil, 0
	return out
}

type groupFile struct {
	vfs.File
	g *groupFS
}

func (f groupFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(p, off)
	f.g.mu.Lock()
	f.g.open += int64(n)
	f.g.mu.Unlock()
	return n, err
}

// Passed is told of a group that is written and synced at once.
func (f groupFile) Passed(n int64) {
	f.g.mu.Lock()
	f.g.list = append(f.g.list, n)
	f.g.mu.Unlock()
}

func (f groupFile) SyncData() error {
	f.g.mu.Lock()
	if f.g.open > 0 {
		f.g.list, f.g.open = append(f.g.list, f.g.open), 0
	}
	f.g.mu.Unlock()
	return f.File.SyncData()
}
