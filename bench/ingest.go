package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
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
	ingestVolume = int64(16) << 30
	stockBytes   = 32 << 20 // what is written is cut out of it
	maxPool      = int64(6) << 30
)

// newStock is bytes that do not compress.
func newStock(rng *rand.ChaCha8) []byte {
	p := make([]byte, stockBytes)
	_, _ = rng.Read(p) // it always fills
	return p
}

// ingest measures s: rounds of ours, and of raw with the groups of the round
// before it. A first, short round says how large the pool must be, and counts for
// nothing else.
func (r *journalRun) ingest(ctx context.Context, s shape, l look) error {
	r.progress("ingest "+s.name+l.suffix, 0, r.o.rounds)
	span := r.o.Span / time.Duration(r.o.rounds)
	trial, err := r.ingestRound(ctx, s, l, span/4, r.o.pool)
	if err != nil {
		return fmt.Errorf("ingest %s: %w", s.name, err)
	}
	pool := int64(trial.perSecond()*span.Seconds()*3/2) + r.o.pool
	pool = min(pool, maxPool, r.disk.free()/4)
	a, err := r.disk.newAppender(ctx, r.random, pool)
	if err != nil {
		return fmt.Errorf("ingest %s: baseline: %w", s.name, err)
	}
	var ours []ingested
	var raw []round
	var took time.Duration
	for n := 0; err == nil && (n < r.o.rounds || took < r.o.Span-span/4); n++ {
		r.progress("ingest "+s.name+l.suffix, n, max(n+1, r.o.rounds))
		var mine ingested
		var theirs round
		if mine, err = r.ingestRound(ctx, s, l, span, pool); err == nil {
			theirs, err = r.rawRound(ctx, a, mine, span)
		}
		ours, raw = append(ours, mine), append(raw, theirs)
		took += mine.took
	}
	if err = errors.Join(err, a.close()); err != nil {
		return fmt.Errorf("ingest %s: %w", s.name, err)
	}
	r.ingestFigures(s, l, ours, raw)
	return nil
}

func (r *journalRun) ingestFigures(s shape, l look, ours []ingested, raw []round) {
	var rounds []round
	var ratios, amplified, indexed []float64
	for n, mine := range ours {
		rounds = append(rounds, mine.round)
		amplified = append(amplified, float64(mine.device)/float64(mine.payload))
		indexed = append(indexed, float64(mine.index)/float64(mine.ops))
		if s.depth == 1 {
			ratios = append(ratios, p50(mine.round)/p50(raw[n]))
		} else {
			ratios = append(ratios, mine.perSecond()/raw[n].perSecond())
		}
	}
	names := s.figures()
	f := figure(names[0]+l.suffix, ratios)
	f.Ours, f.Baseline = rateOf(rounds), rateOf(raw)
	f.Note = fmt.Sprintf("median group %d bytes", medianGroup(raw))
	r.res.Figures[names[0]+l.suffix] = f
	if len(names) > 1 {
		last := ours[len(ours)-1]
		f := figure(names[1]+l.suffix, amplified)
		f.Note = fmt.Sprintf("counted at: %s; the process alone caused %.3f in the last round", r.res.Setting.WrittenBy, float64(last.process)/float64(last.payload))
		r.res.Figures[names[1]+l.suffix] = f
	}
	if len(names) > 2 {
		r.res.Figures[names[2]+l.suffix] = figure(names[2]+l.suffix, indexed)
	}
}

// ingested is a round of ours, and what it left.
type ingested struct {
	round
	groups          []int64
	device, process int64 // bytes written until the journal was closed
	index           int64 // bytes of it
}

func p50(r round) float64 { return rateOf([]round{r}).P50 }

func medianGroup(raw []round) int64 {
	var v []float64
	for _, r := range raw {
		v = append(v, float64(r.bytes)/float64(r.ops))
	}
	return int64(median(v))
}

// ingestRound loads a journal for span, or until its pool is used up, and waits
// until it has caught up: that time counts.
func (r *journalRun) ingestRound(ctx context.Context, s shape, l look, span time.Duration, pool int64) (out ingested, err error) {
	b, err := newBed(ctx, r.disk.dir, ingestVolume, 0, pool, l.keys)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, b.close(), os.RemoveAll(b.dir)) }()
	if err := r.disk.settle(); err != nil {
		return out, err
	}
	b.groups.take()
	before := b.j.Head()
	d0, p0 := r.disk.written()
	if out.round, err = r.load(ctx, b, s, span, pool); err != nil {
		return out, err
	}
	out.groups = b.groups.take()
	out.bytes = b.j.Head().Bytes - before.Bytes
	if n := int(b.j.Head().Seq - before.Seq); n != out.ops {
		return out, fmt.Errorf("%d writes were answered, the journal holds %d more records", out.ops, n)
	}
	if n := total(out.groups); n < out.bytes || n > out.bytes+out.bytes/10+1<<20 {
		return out, fmt.Errorf("%d bytes of frames, but groups of %d bytes: the baseline would not be the same", out.bytes, n)
	}
	if err := errors.Join(b.close(), r.disk.settle()); err != nil {
		return out, err
	}
	d1, p1 := r.disk.written()
	out.device, out.process = d1-d0, p1-p0
	if d0 < 0 {
		out.device = out.process
	}
	out.index, err = dirBytes(b.dir + "/index")
	return out, err
}

// load is the writers of one round, and the draining after them. Each writer has a
// part of the volume to itself, and finds there what it wrote last.
func (r *journalRun) load(ctx context.Context, b *bed, s shape, span time.Duration, pool int64) (round, error) {
	type writer struct {
		laps []time.Duration
		off  int64
		data []byte
		err  error
	}
	writers := make([]writer, s.depth)
	part := ingestVolume / int64(s.depth)
	var stored atomic.Int64 // at most, with what frames take beside the payload
	limit := pool - r.o.pool/4
	start := time.Now()
	var wg sync.WaitGroup
	for i := range writers {
		rng := rand.New(rand.NewPCG(r.o.Seed, uint64(i)))
		wg.Go(func() {
			w := &writers[i]
			for time.Since(start) < span && stored.Add(s.bytes+cellBytes/int64(min(s.depth, 4))) < limit {
				w.off = int64(i)*part + rng.Int64N(part/s.bytes)*s.bytes
				w.data = r.stock[rng.IntN((len(r.stock)-int(s.bytes))/512)*512:][:s.bytes]
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

// rawRound writes what ours wrote, in its groups.
func (r *journalRun) rawRound(ctx context.Context, a *appender, ours ingested, span time.Duration) (round, error) {
	if err := r.disk.settle(); err != nil {
		return round{}, err
	}
	out, err := a.run(ctx, ours.groups, span/2)
	if err == nil && out.bytes < ours.bytes {
		err = fmt.Errorf("baseline wrote %d of %d bytes", out.bytes, ours.bytes)
	}
	return out, err
}
