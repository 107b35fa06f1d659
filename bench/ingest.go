package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/novacron/afterimage/cbt"
)

// shape is a load: so many writes of one size under way at any time, each of its
// own goroutine, as an NBD server has them.
type shape struct {
	name  string
	bytes int64
	depth int
}

var shapes = []shape{{"64k_qd32", 64 << 10, 32}, {"4k_qd32", 4 << 10, 32}, {"4k_qd128", 4 << 10, 128}, {"4k_qd1", 4 << 10, 1}}

// figures that a shape gives: the first is its comparison with raw.
func (s shape) figures() []string {
	switch s.name {
	case "64k_qd32":
		return []string{"ingest_64k_qd32_vs_raw", "write_amplification_64k"}
	case "4k_qd32":
		return []string{"ingest_4k_qd32_vs_raw", "write_amplification_4k_qd32", "index_bytes_per_record"}
	case "4k_qd1":
		return []string{"ingest_4k_qd1_latency_vs_raw"}
	}
	return []string{"ingest_" + s.name + "_vs_raw"}
}

const (
	ingestRounds = 5
	ingestVolume = int64(16) << 30
	poolBytes    = 32 << 20 // what is written is cut out of it
)

// newPool is bytes that do not compress.
func newPool(rng *rand.ChaCha8) []byte {
	p := make([]byte, poolBytes)
	_, _ = rng.Read(p) // it always fills
	return p
}

// ingest measures s: rounds of ours, and of raw with the groups of the round
// before it.
func (r *journalRun) ingest(ctx context.Context, s shape, l look) error {
	suffix := l.suffix
	span := r.o.Span / ingestRounds
	var ours, raw []round
	var ratios, amplified, indexed []float64
	var device, process int64
	for n := range ingestRounds {
		r.progress("ingest "+s.name+suffix, n, ingestRounds)
		mine, groups, err := r.ingestRound(ctx, s, l, span, &device, &process, &indexed)
		if err != nil {
			return fmt.Errorf("ingest %s: %w", s.name, err)
		}
		theirs, err := r.rawRound(ctx, groups, mine.bytes, span)
		if err != nil {
			return fmt.Errorf("ingest %s: baseline: %w", s.name, err)
		}
		ours, raw = append(ours, mine), append(raw, theirs)
		amplified = append(amplified, float64(device)/float64(mine.payload))
		if s.depth == 1 {
			ratios = append(ratios, p50(mine)/p50(theirs))
		} else {
			ratios = append(ratios, mine.perSecond()/theirs.perSecond())
		}
	}
	names := s.figures()
	first := figure(names[0]+suffix, ratios)
	first.Ours, first.Baseline = rateOf(ours), rateOf(raw)
	first.Note = fmt.Sprintf("median group %d bytes", medianGroup(raw))
	r.res.Figures[names[0]+suffix] = first
	if len(names) > 1 {
		f := figure(names[1]+suffix, amplified)
		f.Note = fmt.Sprintf("counted at: %s; the process alone caused %.3f in the last round", r.res.Setting.WrittenBy, float64(process)/float64(ours[len(ours)-1].payload))
		r.res.Figures[names[1]+suffix] = f
	}
	if len(names) > 2 {
		r.res.Figures[names[2]+suffix] = figure(names[2]+suffix, indexed)
	}
	return nil
}

func p50(r round) float64 { return rateOf([]round{r}).P50 }

func medianGroup(raw []round) int64 {
	var v []float64
	for _, r := range raw {
		v = append(v, float64(r.bytes)/float64(r.ops))
	}
	return int64(median(v))
}

// ingestRound loads a journal for span, and waits until it has caught up: that
// time counts. device and process are the bytes written until it was closed.
func (r *journalRun) ingestRound(ctx context.Context, s shape, l look, span time.Duration, device, process *int64, indexed *[]float64) (out round, groups []int64, err error) {
	b, err := newBed(ctx, r.disk.dir, ingestVolume, l.keys)
	if err != nil {
		return out, nil, err
	}
	defer func() {
		err = errors.Join(err, b.close(), os.RemoveAll(b.dir))
	}()
	if err := r.disk.settle(); err != nil {
		return out, nil, err
	}
	b.groups.take()
	before := b.j.Head()
	d0, p0 := r.disk.written()
	out, err = r.load(ctx, b, s, span)
	if err != nil {
		return out, nil, err
	}
	groups = b.groups.take()
	out.bytes = b.j.Head().Bytes - before.Bytes
	records := int(b.j.Head().Seq - before.Seq)
	if records != out.ops {
		return out, nil, fmt.Errorf("%d writes were answered, the journal holds %d more records", out.ops, records)
	}
	if n := total(groups); n < out.bytes || n > out.bytes+out.bytes/10+1<<20 {
		return out, nil, fmt.Errorf("%d bytes of frames, but groups of %d bytes: the baseline would not be the same", out.bytes, n)
	}
	if err := errors.Join(b.close(), r.disk.settle()); err != nil {
		return out, nil, err
	}
	d1, p1 := r.disk.written()
	*device, *process = d1-d0, p1-p0
	if d0 < 0 {
		*device = *process
	}
	index, err := dirBytes(b.dir + "/index")
	*indexed = append(*indexed, float64(index)/float64(records))
	return out, groups, err
}

// load is the writers of one round, and the draining after them. Each writer has a
// part of the volume to itself, and finds there what it wrote last.
func (r *journalRun) load(ctx context.Context, b *bed, s shape, span time.Duration) (round, error) {
	type writer struct {
		laps []time.Duration
		off  int64
		data []byte
		err  error
	}
	writers := make([]writer, s.depth)
	part := ingestVolume / int64(s.depth)
	limit := max(r.disk.free()/3, 64<<20) // a fast disk must not fill
	start := time.Now()
	var wg sync.WaitGroup
	for i := range writers {
		rng := rand.New(rand.NewPCG(r.o.Seed, uint64(i)))
		wg.Go(func() {
			w := &writers[i]
			for n := int64(0); time.Since(start) < span && n*int64(s.depth) < limit; n += s.bytes {
				w.off = int64(i)*part + rng.Int64N(part/s.bytes)*s.bytes
				w.data = r.pool[rng.IntN((len(r.pool)-int(s.bytes))/512)*512:][:s.bytes]
				begun := time.Now()
				p, err := b.w.Record(ctx, cbt.Event{Kind: cbt.EventWrite, Volume: b.volume.ID, Extent: cbt.Extent{Offset: w.off, Length: s.bytes}, Data: w.data})
				if err == nil {
					err = p.Wait(ctx)
				}
				if err != nil {
					w.err = err
					return
				}
				w.laps = append(w.laps, time.Since(begun))
			}
		})
	}
	wg.Wait()
	var out round
	for i := range writers {
		if err := writers[i].err; err != nil {
			return out, err
		}
		out.laps = append(out.laps, writers[i].laps...)
	}
	if err := b.drain(ctx); err != nil {
		return out, err
	}
	out.took = time.Since(start)
	out.ops = len(out.laps)
	out.payload = int64(out.ops) * s.bytes
	for i := range writers {
		if err := b.check(ctx, writers[i].off, writers[i].data); err != nil {
			return out, err
		}
	}
	return out, nil
}

func (r *journalRun) rawRound(ctx context.Context, groups []int64, bytes int64, span time.Duration) (out round, err error) {
	a, err := r.disk.newAppender(ctx, r.random, bytes)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, a.close()) }()
	if err := r.disk.settle(); err != nil {
		return out, err
	}
	out, err = a.run(ctx, groups, span)
	if err == nil && out.bytes < bytes {
		err = fmt.Errorf("wrote %d of %d bytes", out.bytes, bytes)
	}
	return out, err
}
