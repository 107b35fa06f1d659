package journal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/testbed/scale"
)

// footprint is what a journal of a size takes.
type footprint struct {
	records  int
	volumes  int
	tib      int           // of each volume
	under    int           // records under way at most
	peak     int64         // heap while it was written, at the moments it was looked at
	open     int64         // heap that an open journal holds after a clean close
	reread   int64         // bytes of frames that an opening after a kill read again
	tail     time.Duration // how long that took
	written  int64         // bytes of all frames
	perIndex float64       // bytes of index a record
}

const (
	tib          = int64(1) << 40
	slopeSegment = 4 << 20
	// maxPeak is maxPending in records of recordRoom, as much of frames and index
	// under way, and garbage as large.
	maxPeak = 4 * maxPending
)

// weigh records payload-free events all over the volumes of a new journal, kills it,
// opens it, closes it and opens it again.
func weigh(t *testing.T, rng *rand.Rand, records, volumes, volumeTiB int) footprint {
	t.Helper()
	f := footprint{records: records, volumes: volumes, tib: volumeTiB}
	o := Options{Create: newIdentity(), SegmentBytes: slopeSegment}
	dir := t.TempDir()
	j := start(t, dir, o)
	var vs []cbt.Volume
	for i := range volumes {
		vs = append(vs, volume(fmt.Sprintf("v%d", i), int64(volumeTiB)*tib))
	}
	w := beginWith(t, j.Journal, vs...)
	before := heapAfterGC()
	defer debug.SetGCPercent(debug.SetGCPercent(100)) // as a server does
	ctx := soon(t)
	if records > 1_000_000 {
		ctx = t.Context()
	}
	var last cbt.Pending
	for i := range records {
		ev := cbt.Event{Kind: cbt.EventZero, Volume: vs[rng.IntN(volumes)].ID}
		if i%2 == 1 {
			ev.Kind = cbt.EventTrim
		}
		size := int64(cbt.CellBytes) << (4 * rng.IntN(4)) // 4 KiB to 16 MiB
		ev.Extent = cbt.Extent{Offset: rng.Int64N(int64(volumeTiB)*tib/size) * size, Length: size}
		var err error
		if last, err = w.Record(ctx, ev); err != nil {
			t.Fatal(err)
		}
		if i%(records/64) == 0 { // nobody waits: what is under way must be bounded all the same
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			f.peak = max(f.peak, int64(m.HeapAlloc)-before)
			j.mu.Lock()
			f.under = max(f.under, int(j.next-1-j.written))
			j.mu.Unlock()
		}
	}
	if err := errors.Join(last.Wait(soon(t)), w.WaitDurable(soon(t))); err != nil {
		t.Fatal(err)
	}
	head := j.Head()
	f.written = head.Bytes
	_ = j.fail(errors.New("killed")) // no clean close
	if err := j.end(); !errors.Is(err, ErrFailed) {
		t.Fatal(err)
	}
	vs, w, last, j = nil, nil, nil, nil
	begun := time.Now()
	k, err := Open(dir, o)
	f.tail = time.Since(begun)
	if err != nil {
		t.Fatal(err)
	}
	f.reread = k.reread
	if got := k.Head().Position; got != head.Position {
		t.Fatalf("the head is %s, was %s", got, head.Position)
	}
	if err := errors.Join(k.db.Flush(), k.Close()); err != nil {
		t.Fatal(err)
	}
	before = heapAfterGC()
	if k, err = Open(dir, o); err != nil {
		t.Fatal(err)
	}
	f.open = heapAfterGC() - before
	f.perIndex = float64(k.db.Metrics().DiskSpaceUsage()) / float64(records)
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d records, %d volumes of %d TiB: heap %d open, %d at most while writing, %d records under way; %d bytes of frames, of which the opening after a kill read %d in %v; %.1f bytes of index a record",
		f.records, f.volumes, f.tib, f.open, f.peak, f.under, f.written, f.reread, f.tail, f.perIndex)
	return f
}

// slope is the rise of y with x by least squares.
func slope(fs []footprint, x, y func(footprint) float64) float64 {
	var sx, sy, sxx, sxy float64
	n := float64(len(fs))
	for _, f := range fs {
		a, b := x(f), y(f)
		sx, sy, sxx, sxy = sx+a, sy+b, sxx+a*a, sxy+a*b
	}
	return (n*sxy - sx*sy) / (n*sxx - sx*sx)
}

// Memory and what an opening reads again follow neither the size of the volumes nor
// the number of records: these are the slopes that doc.go states. AFTERIMAGE_LONG=1
// goes to 10,000,000 records in 64 volumes of 64 TiB.
func TestSlopes(t *testing.T) {
	rng := newSeed(t)
	unit := scale.Scale(500_000)
	if os.Getenv("AFTERIMAGE_LONG") == "1" {
		unit = 5_000_000
	}
	var bySize, byRecords []footprint
	for _, s := range []int{1, 16, 64} {
		bySize = append(bySize, weigh(t, rng, unit/5, 64, s))
	}
	byRecords = append(byRecords, bySize[2])
	for _, n := range []int{unit / 2, unit, 2 * unit} {
		byRecords = append(byRecords, weigh(t, rng, n, 64, 64))
	}
	millions := func(f footprint) float64 { return float64(f.records) / 1e6 }
	heap := func(f footprint) float64 { return float64(f.open) }
	perTiB := slope(bySize, func(f footprint) float64 { return float64(f.tib * f.volumes) }, heap)
	perMillion := slope(byRecords, millions, heap)
	seconds := slope(byRecords, millions, func(f footprint) float64 { return f.tail.Seconds() })
	reread := slope(byRecords, millions, func(f footprint) float64 { return float64(f.reread) })
	t.Logf("slopes: %.0f bytes of heap a TiB of volume; a million records: %.0f bytes of heap, %.0f bytes read again and %.3f s to open after a kill",
		perTiB, perMillion, reread, seconds)
	if perTiB > 1<<10 {
		t.Errorf("an open journal takes %.0f bytes more with each TiB of volume", perTiB)
	}
	if limit := max(1<<20, float64(256<<10)/(2*float64(unit)/1e6)); perMillion > limit { // noise, over a short range
		t.Errorf("an open journal takes %.0f bytes more with each million records", perMillion)
	}
	for _, f := range append(bySize, byRecords...) {
		if f.under > maxPending/recordRoom+1 {
			t.Errorf("%d records are under way at once", f.under)
		}
		if f.peak > maxPeak {
			t.Errorf("%d records took %d bytes of heap while they were written", f.records, f.peak)
		}
		if f.reread > (flushSegments+2)*slopeSegment+2*targetFrame {
			t.Errorf("of %d bytes an opening after a kill read %d again", f.written, f.reread)
		}
	}
	scale.Counted(t, "journal-slope-records", 2*unit, 1_000_000)
}
