package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

const (
	openingFigure = "open_seconds_per_million_records"
	childDepth    = 64
	childReports  = 4096 // writes between two lines of the child
	childPool     = 64 << 20
)

// opening times Open after a kill -9 of the process that was writing 4 KiB blocks.
func (r *journalRun) opening(ctx context.Context) error {
	if r.o.Child == nil || !r.wants(look{}, openingFigure) {
		return nil
	}
	var values []float64
	var ours []round
	for n := range min(3, r.o.rounds) {
		r.progress("open after kill -9", n, min(3, r.o.rounds))
		o, err := r.openOnce(ctx)
		if err != nil {
			return fmt.Errorf("open after kill -9: %w", err)
		}
		values, ours = append(values, o.took.Seconds()/float64(o.ops)*1e6), append(ours, o)
	}
	f := figure(openingFigure, values)
	f.Ours = rateOf(ours)
	f.Note = fmt.Sprintf("%d records in %.0f MB in the last round", ours[len(ours)-1].ops, float64(ours[len(ours)-1].bytes)/1e6)
	r.res.Figures[openingFigure] = f
	return nil
}

// openOnce has a child write, kills it, and opens what is left.
func (r *journalRun) openOnce(ctx context.Context) (out round, err error) {
	dir := r.disk.dir + "/killed"
	if err := os.Mkdir(dir, 0o700); err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	c := r.o.Child(ctx, dir)
	lines, err := c.StdoutPipe()
	if err != nil {
		return out, err
	}
	if err := c.Start(); err != nil {
		return out, err
	}
	answered, err := followChild(lines, r.o.Records)
	kill := errors.Join(c.Process.Kill(), ignoreExit(c.Wait()))
	if err = errors.Join(err, kill); err != nil {
		return out, err
	}
	if err := r.disk.dropCache(); err != nil {
		return out, err
	}
	start := time.Now()
	j, err := journal.Open(dir+"/journal", journal.Options{Sync: journal.SyncPower})
	out.took = time.Since(start)
	if err != nil {
		return out, err
	}
	h := j.Head()
	out.ops, out.bytes = int(h.Seq), h.Bytes
	if out.ops < answered {
		err = fmt.Errorf("%d writes were answered before the kill, %d records are there after it", answered, out.ops)
	}
	return out, errors.Join(err, j.Close())
}

// followChild reads how many writes were answered until there are enough.
func followChild(lines io.Reader, enough int) (answered int, err error) {
	s := bufio.NewScanner(lines)
	for s.Scan() {
		if answered, err = strconv.Atoi(strings.TrimSpace(s.Text())); err != nil {
			return answered, fmt.Errorf("the writing process says %q", s.Text())
		}
		if answered >= enough {
			return answered, nil
		}
	}
	return answered, errors.Join(fmt.Errorf("the writing process ended after %d writes", answered), s.Err())
}

// ignoreExit drops the state that a killed process leaves.
func ignoreExit(err error) error {
	var state interface{ ExitCode() int }
	if errors.As(err, &state) {
		return nil
	}
	return err
}

// JournalChild writes 4 KiB blocks to a new journal below dir, and tells w every
// now and then how many were answered. It ends only with ctx, or by being killed.
func JournalChild(ctx context.Context, dir string, w io.Writer) error {
	b, err := newBed(ctx, dir, ingestVolume, 0, childPool, nil)
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	var seed [32]byte
	pool := newStock(rand.NewChaCha8(seed))
	var flying []cbt.Pending
	for n := 0; err == nil && ctx.Err() == nil; n++ {
		if len(flying) == childDepth {
			if err = flying[0].Wait(ctx); err != nil {
				break
			}
			flying = flying[1:]
			if answered := n - childDepth + 1; answered%childReports == 0 {
				if _, err = fmt.Fprintln(w, answered); err != nil {
					break
				}
			}
		}
		var p cbt.Pending
		p, err = b.w.Record(ctx, cbt.Event{Kind: cbt.EventWrite, Volume: b.volume.ID,
			Extent: cbt.Extent{Offset: rng.Int64N(ingestVolume/cellBytes) * cellBytes, Length: cellBytes}, Data: pool[rng.IntN(stockBytes/512-8)*512:][:cellBytes]})
		flying = append(flying, p)
	}
	return errors.Join(err, b.close())
}
