package e2e

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt/cbttest"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/port"
	"github.com/novacron/afterimage/testbed/scale"
)

// tapped is a site that taps the one disk of a machine, and what its guest wrote.
type tapped struct {
	*daemon
	machine *cbttest.Machine
	size    int64
	metrics string
	disk    []byte // the disk while nobody writes
}

// newTapped fills the machine's disk and starts the site.
func newTapped(t *testing.T, m *cbttest.Machine, rng *rand.Rand) *tapped {
	t.Helper()
	x := prepareTapped(t, m, rng)
	x.startSynced()
	return x
}

// prepareTapped is newTapped, and starts nothing: the site reads the disk through m.NBD.
func prepareTapped(t *testing.T, m *cbttest.Machine, rng *rand.Rand) *tapped {
	t.Helper()
	x := &tapped{daemon: newDaemon(t, "a"), machine: m, size: m.Disks[0].Bytes, metrics: port.Address(t)}
	x.configure(fmt.Sprintf(`site: a
data: %s
metrics: %s
groups:
  - name: g
    role: primary
    qemu: {qmp: %s, watchdog_qmp: %s, nbd: %s}
    volumes:
      - {name: disk, size: %d, qemu: {node: disk}}
`, x.dir, x.metrics, m.QMP, m.Spare, m.NBD, x.size))
	guest := m.Guest(t, "disk")
	noise := make([]byte, 1<<20)
	for off := int64(0); off < x.size; off += int64(len(noise)) {
		for i := range noise {
			noise[i] = byte(rng.Uint32())
		}
		if err := guest.WriteAt(t.Context(), noise, off, false); err != nil {
			t.Fatal(err)
		}
	}
	x.disk = m.Image(t, "disk")
	return x
}

// reread is how many bytes this life of the daemon has read from the live disk.
func (x *tapped) reread() int64 {
	x.t.Helper()
	return int64(x.metric("afterimage_resync_read_bytes_total"))
}

// metric is one of the daemon's.
func (x *tapped) metric(want string) float64 {
	x.t.Helper()
	resp, err := http.Get("http://" + x.metrics + "/metrics")
	if err != nil {
		x.t.Fatal(err)
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), " "); ok && strings.HasPrefix(name, want+"{") {
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				x.t.Fatal(err)
			}
			return n
		}
	}
	x.t.Fatalf("no metric %s", want)
	return 0
}

// spots are where the guest writes: far apart, and a small part of the disk.
func (x *tapped) spots(rng *rand.Rand) []*writer {
	const length = 384 << 10
	var out []*writer
	for k := range int64(4) {
		a := area{0, k*(x.size/4) + 65536*rng.Int64N(8), length}
		out = append(out, &writer{area: a, rng: rand.New(rand.NewPCG(rng.Uint64(), 0)), base: x.disk[a.off : a.off+length]})
	}
	return out
}

// newestIsDisk holds the newest point to the disk, which nobody writes to, and
// remembers it.
func (x *tapped) newestIsDisk(after string) {
	x.t.Helper()
	x.disk = x.machine.Image(x.t, "disk")
	got, p, err := x.view("latest")
	if err != nil {
		x.t.Fatal(err)
	}
	if at := firstDifference(x.disk, got["disk"]); at >= 0 {
		x.t.Fatalf("%s the newest point, #%d.%d, differs from the disk at byte %d", after, p.Epoch, p.Seq, at)
	}
}

// lastClosed is the newest point of the newest span that has ended, and why it did.
func (x *tapped) lastClosed() (control.Span, control.Points) {
	x.t.Helper()
	ps, err := x.api.Points(x.t.Context(), control.PointsQuery{Group: "g"})
	if err != nil {
		x.t.Fatal(err)
	}
	if len(ps.Spans) < 2 || !ps.Spans[len(ps.Spans)-1].Open {
		x.t.Fatalf("spans of points: %+v", ps.Spans)
	}
	return ps.Spans[len(ps.Spans)-2], ps
}

// judgeTap tells what is wrong with a writer's area at the last point before a tap
// broke: it has to hold all that was answered up to tick safe, and cannot hold what
// was begun after tick gone.
func (l *load) judgeTap(w *writer, whole, got []byte, safe, gone uint64) error {
	writes := of(l.log, w.area)
	least, most := 0, 0
	for _, n := range writes {
		if n.ended != 0 && n.ended <= safe {
			least++
		}
		if n.began <= gone {
			most++
		}
	}
	base := [][]byte{append([]byte(nil), whole...)}
	for _, n := range writes[:least] {
		n.apply(base)
	}
	if len(prefixes(base, writes[least:most], 0, w.area, got)) > 0 {
		return nil
	}
	return fmt.Errorf("bytes %d+%d are not as %d to %d writes leave them; %d had been answered", w.off, w.length, least, most, least)
}

// Promises 2 and 3: kill -9 of the source while it taps a machine: the guest's
// writes go on; every write that was answered before is in the last point; the
// interval is closed; the next begins by itself, after a delta and not a full copy.
func TestPromise3KillOfTappedSourceCostsADelta(t *testing.T) {
	rng, _ := seeded(t)
	m := cbttest.StartStorageDaemon(t, cbttest.DiskSpec{Name: "disk", Bytes: 32 << 20, Format: "qcow2"})
	x := newTapped(t, m, rng)
	if n := x.reread(); n < x.size {
		t.Fatalf("the first synchronisation read %d bytes of %d", n, x.size)
	}
	kills := scale.Scale(20)
	var reread []string
	written := 0
	for range kills {
		l := &load{recorder: &recorder{sizes: []int64{x.size}}}
		writers := x.spots(rng)
		for _, w := range writers {
			l.write(w, m.Guest(t, "disk"))
		}
		enough := int64(50 + rng.IntN(500))
		x.until("the guest has written", func(context.Context) bool { return l.answers.Load() >= enough })
		before := l.now()
		x.kill()
		gone := l.now()
		alone := l.answers.Load()
		x.launch()
		x.awaitState(control.StateSynced)
		x.until("the guest has written in the new interval", func(context.Context) bool { return l.answers.Load() > alone+50 })
		if err := l.end(); err != nil {
			t.Fatalf("the guest saw the kill: %v", err)
		}
		written += int(l.answers.Load())
		n := x.reread()
		reread = append(reread, fmt.Sprintf("%dKiB", n>>10))
		if n == 0 || n > x.size/4 {
			t.Errorf("%d bytes were read again, of a disk of %d", n, x.size)
		}
		closed, _ := x.lastClosed()
		if closed.Ended != "opening" {
			t.Errorf("the interval ended by %q", closed.Ended)
		}
		got, _, err := x.view(fmt.Sprintf("#%d.%d", closed.Last.Epoch, closed.Last.Seq))
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range writers {
			if err := l.judgeTap(w, x.disk, got["disk"][w.off:w.off+w.length], before, gone); err != nil {
				t.Fatalf("the last point before kill -9: %v", err)
			}
		}
		x.newestIsDisk("after kill -9")
	}
	t.Logf("%d answered writes; read again after each kill, of %d KiB: %s", written, x.size>>10, strings.Join(reread, " "))
	scale.Counted(t, "kill9-tapped", kills, 20)
}

// Promise 8: a source that is stopped holds the guest for less than 2 s, for its
// watchdog lets the tap go; once it goes on, so does the protection, by itself.
func TestPromise8StoppedSourceDoesNotHoldTheGuest(t *testing.T) {
	if scale.Race {
		t.Skip("what is measured in seconds is measured without the race detector")
	}
	rng, _ := seeded(t)
	m := cbttest.StartQEMU(t, cbttest.DiskSpec{Name: "disk", Bytes: 16 << 20, Format: "qcow2"})
	x := newTapped(t, m, rng)
	w := x.spots(rng)[0]
	r := &recorder{sizes: []int64{x.size}}
	to := through(m.Guest(t, "disk"))
	// writes writes for d and at least least times, and returns how long the slowest
	// took, but for as long as the machine itself let nobody run.
	writes := func(d time.Duration, least int) (slowest time.Duration, n int) {
		stood := scale.Standstill()
		for end := time.Now().Add(d); time.Now().Before(end) || n < least; n++ {
			began := time.Now()
			if err := r.issue(to, draw(w.rng, w.area)); err != nil {
				t.Fatalf("the guest saw an error: %v", err)
			}
			slowest = max(slowest, time.Since(began))
		}
		return slowest - stood(), n
	}
	writes(300*time.Millisecond, 10)
	x.signal(syscall.SIGSTOP)
	slowest, n := writes(4*time.Second, 50)
	x.signal(syscall.SIGCONT)
	t.Logf("the source stopped: %d writes, the slowest took %v", n, slowest)
	if slowest >= 2*time.Second {
		t.Errorf("the guest was held for %v, %d writes were answered", slowest, n)
	}
	x.until("the gap is known", func(ctx context.Context) bool {
		ps, err := x.api.Points(ctx, control.PointsQuery{Group: "g"})
		return err == nil && len(ps.Gaps) > 0
	})
	x.awaitState(control.StateSynced)
	closed, ps := x.lastClosed()
	t.Logf("gaps %+v; points ended at #%d by %s", ps.Gaps, closed.Last.Seq, closed.Ended)
	if x.lives != 1 {
		t.Errorf("the source had %d lives", x.lives)
	}
	if slowest, n := writes(300*time.Millisecond, 10); slowest >= 2*time.Second {
		t.Errorf("after SIGCONT: %d writes, the slowest took %v", n, slowest)
	}
	x.newestIsDisk("after SIGCONT")
	if again := x.reread() - x.size; again <= 0 || again > x.size/4 {
		t.Errorf("%d bytes were read again, of a disk of %d", again, x.size)
	}
}
