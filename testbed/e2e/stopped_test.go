package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt/cbttest"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/scale"
)

// sluice stands between the site and a socket of the machine. It passes all on, until
// what the machine says meets its condition: that and what follows waits until open is
// called, and reached is closed. So the site can be stopped just there.
type sluice struct {
	path    string
	shut    atomic.Bool // nobody new is let in
	reached chan struct{}
	passed  chan struct{}
	once    sync.Once
}

// newSluice makes a sluice before the socket at behind. For each connection tell is
// asked for the two readers that see what the site and what the machine say; a reader
// of the machine's calls hold where it has to wait.
func newSluice(t *testing.T, behind string, tell func(s *sluice, site, machine io.Reader) (io.Reader, io.Reader)) *sluice {
	t.Helper()
	s := &sluice{path: behind + "-s", reached: make(chan struct{}), passed: make(chan struct{})}
	l, err := net.Listen("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); s.open() })
	go func() {
		for {
			site, err := l.Accept()
			if err != nil {
				return
			}
			machine, err := net.Dial("unix", behind)
			if err == nil && s.shut.Load() {
				err = machine.Close()
				machine = nil
			}
			if machine == nil || err != nil {
				site.Close()
				continue
			}
			up, down := tell(s, site, machine)
			pump := func(to, from net.Conn, r io.Reader) {
				_, _ = io.Copy(to, r)
				to.Close()
				from.Close()
			}
			go pump(machine, site, up)
			go pump(site, machine, down)
		}
	}()
	return s
}

func (s *sluice) hold() {
	s.once.Do(func() { close(s.reached) })
	<-s.passed
}

// open lets all pass from now on.
func (s *sluice) open() {
	select {
	case <-s.passed:
	default:
		close(s.passed)
	}
}

// await waits until the condition is met.
func (s *sluice) await(t *testing.T, what string) {
	t.Helper()
	late := time.NewTimer(2 * patience)
	defer late.Stop()
	select {
	case <-s.reached:
	case <-late.C:
		t.Fatalf("%s: not within %v", what, 2*patience)
	}
}

// qmpReply holds the reply to the first command that wanted says yes to: QEMU has done
// what it says, and the site does not know.
func qmpReply(t *testing.T, behind string, wanted func(command, bitmap string) bool) *sluice {
	return newSluice(t, behind, func(s *sluice, site, machine io.Reader) (io.Reader, io.Reader) {
		var mu sync.Mutex
		var id any
		up := lines(site, func(line []byte) {
			var q struct {
				Execute   string `json:"execute"`
				ID        any    `json:"id"`
				Arguments struct {
					Name string `json:"name"`
				} `json:"arguments"`
			}
			mu.Lock()
			defer mu.Unlock()
			if id == nil && json.Unmarshal(line, &q) == nil && wanted(q.Execute, q.Arguments.Name) {
				id = q.ID
			}
		})
		return up, lines(machine, func(line []byte) {
			var r struct {
				ID any `json:"id"`
			}
			mu.Lock()
			it := id != nil && json.Unmarshal(line, &r) == nil && r.ID == id
			mu.Unlock()
			if it {
				s.hold()
			}
		})
	})
}

// qmpRequest holds the first command of that name before QEMU hears of it.
func qmpRequest(t *testing.T, behind, command string) *sluice {
	return newSluice(t, behind, func(s *sluice, site, machine io.Reader) (io.Reader, io.Reader) {
		return lines(site, func(line []byte) {
			var q struct {
				Execute string `json:"execute"`
			}
			if json.Unmarshal(line, &q) == nil && q.Execute == command {
				s.hold()
			}
		}), machine
	})
}

// lines is r, each line of which is shown to see before it can be read.
func lines(r io.Reader, see func([]byte)) io.Reader {
	out, in := io.Pipe()
	go func() {
		b := bufio.NewReader(r)
		for {
			line, err := b.ReadBytes('\n')
			see(line)
			if _, failed := in.Write(line); failed != nil || err != nil {
				in.CloseWithError(io.EOF)
				return
			}
		}
	}()
	return out
}

// readPart holds what the machine's disk sends after so many bytes.
func readPart(t *testing.T, behind string, bytes int64) *sluice {
	var mu sync.Mutex
	return newSluice(t, behind, func(s *sluice, site, machine io.Reader) (io.Reader, io.Reader) {
		return site, readerFunc(func(p []byte) (int, error) {
			n, err := machine.Read(p)
			mu.Lock()
			bytes -= int64(n)
			over := bytes < 0
			mu.Unlock()
			if over {
				s.hold()
			}
			return n, err
		})
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// stopThere stops the site while the sluice holds it, lets its guest write, and wakes
// the site up again; it returns how long the slowest write took. Where the watchdog had
// to kill the site for having slept too long, it is started again.
func (x *tapped) stopThere(s *sluice, what string, write func(n int) time.Duration) {
	x.t.Helper()
	s.await(x.t, what)
	x.signal(syscall.SIGSTOP)
	x.until("every thread of the site has stopped", func(context.Context) bool { return stopped(x.cmd.Process.Pid) })
	slowest := write(20)
	s.open()
	x.signal(syscall.SIGCONT)
	x.t.Logf("stopped in the middle of %s: the slowest of 20 writes took %v", what, slowest)
	if !x.answersOrGone() {
		x.t.Log("its watchdog has killed the site")
		x.launch()
	}
}

// stopped reports whether no thread of a process runs: a signal takes its time.
func stopped(pid int) bool {
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(stats) == 0 {
		return false
	}
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			return false
		}
		if _, after, ok := strings.Cut(string(text), ") "); !ok || !strings.HasPrefix(after, "T") {
			return false
		}
	}
	return true
}

// watchdogLines is how many sockets the watchdog of a process has open.
func watchdogLines(pid int) (n int) {
	children, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, path := range children {
		text, _ := os.ReadFile(path)
		for _, child := range strings.Fields(string(text)) {
			line, _ := os.ReadFile("/proc/" + child + "/cmdline")
			if !strings.Contains(string(line), "\x00watchdog\x00") {
				continue
			}
			fds, _ := filepath.Glob("/proc/" + child + "/fd/*")
			for _, fd := range fds {
				if to, _ := os.Readlink(fd); strings.HasPrefix(to, "socket:") {
					n++
				}
			}
		}
	}
	return n
}

// answersOrGone waits until the daemon answers, or has ended.
func (d *daemon) answersOrGone() bool {
	d.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := d.api.Status(cbttest.Context(d.t, patience)); err == nil {
			return true
		}
		select {
		case <-d.exited:
			return false
		case <-tick.C:
		}
	}
}

// oneAfterAnother writes to a spot of the disk; each write is answered before the next.
type oneAfterAnother struct {
	*recorder
	x    *tapped
	w    *writer
	to   target
	base []byte // the disk before the first of them
}

func (x *tapped) oneAfterAnother(rng *rand.Rand) *oneAfterAnother {
	return &oneAfterAnother{recorder: &recorder{sizes: []int64{x.size}}, x: x, w: x.spots(rng)[0], to: through(x.machine.Guest(x.t, "disk")), base: slices.Clone(x.disk)}
}

// write writes n times, and returns how long the slowest took.
func (o *oneAfterAnother) write(n int) (slowest time.Duration) {
	o.x.t.Helper()
	for range n {
		began, done := time.Now(), make(chan error, 1)
		go func() { done <- o.issue(o.to, draw(o.w.rng, o.w.area)) }()
		select {
		case err := <-done:
			if err != nil {
				o.x.t.Fatalf("the guest saw an error: %v", err)
			}
		case <-time.After(patience):
			o.x.t.Fatalf("a write of the guest hangs for %v", patience)
		}
		slowest = max(slowest, time.Since(began))
	}
	return slowest
}

// judge holds n random points of spans, in their order, to what was written: all of it up
// to some write, no fewer than an earlier point has, and nothing else.
func (o *oneAfterAnother) judge(rng *rand.Rand, n int, spans ...control.Span) {
	o.x.t.Helper()
	var points []control.Point
	for range n {
		s := spans[rng.IntN(len(spans))]
		points = append(points, control.Point{Epoch: s.First.Epoch, Seq: s.First.Seq + rng.Uint64N(s.Last.Seq-s.First.Seq+1)})
	}
	slices.SortFunc(points, func(a, b control.Point) int {
		return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Seq, b.Seq))
	})
	a, from := o.w.area, 0
	for _, p := range points {
		at := fmt.Sprintf("#%d.%d", p.Epoch, p.Seq)
		got, _, err := o.x.view(at)
		if err != nil {
			o.x.t.Fatal(err)
		}
		image := got["disk"]
		held := prefixes([][]byte{slices.Clone(o.base)}, o.log, 0, a, image[a.off:a.off+a.length])
		held = slices.DeleteFunc(held, func(k int) bool { return k < from })
		if len(held) == 0 {
			o.x.t.Fatalf("point %s is after no number of writes from %d to %d", at, from, len(o.log))
		}
		from = held[0]
		if !bytes.Equal(image[:a.off], o.base[:a.off]) || !bytes.Equal(image[a.off+a.length:], o.base[a.off+a.length:]) {
			o.x.t.Fatalf("point %s differs from the disk where nobody wrote", at)
		}
	}
}

// Promises 3 and 8: the site is stopped when QEMU has carried out one step of a rotation
// of bitmaps and the site does not know of it. The guest is let go; the site wakes up,
// tells the gap, and reads the delta.
func TestPromise3StoppedInTheMiddleOfARotation(t *testing.T) {
	if scale.Race {
		t.Skip("a source that is slow lets go by itself, which is another case")
	}
	for _, step := range []string{"block-dirty-bitmap-remove", "block-dirty-bitmap-add"} {
		t.Run(step, func(t *testing.T) {
			rng, _ := seeded(t)
			m := cbttest.StartQEMU(t, cbttest.DiskSpec{Name: "disk", Bytes: 16 << 20, Format: "qcow2"})
			var mu sync.Mutex
			removed := false // a rotation removes the oldest bitmap of its own, and adds one
			s := qmpReply(t, m.QMP, func(command, bitmap string) bool {
				mu.Lock()
				defer mu.Unlock()
				kept := strings.HasPrefix(bitmap, "ai-") && len(bitmap) > 12 && bitmap[12] == 'b'
				removed = removed || kept && command == "block-dirty-bitmap-remove"
				return removed && kept && command == step
			})
			m.QMP = s.path
			x := newTapped(t, m, rng)
			o := x.oneAfterAnother(rng)
			o.write(20)
			x.stopThere(s, "a rotation, "+step, o.write)
			x.pointsGoOn(2)
			o.write(20)
			ps := x.pointsGoOn(2)
			closed := ps.Spans[len(ps.Spans)-2]
			r, again := x.group().Volumes[0].Resync, x.reread()
			if x.lives == 1 {
				again -= x.size
			}
			t.Logf("points ended at #%d by %s; gaps %+v; %d bytes read again; resync %+v", closed.Last.Seq, closed.Ended, ps.Gaps, again, r)
			if !slices.Contains([]string{"stall", "tap-ended", "tap-error", "opening"}, closed.Ended) {
				t.Errorf("the points ended by %q", closed.Ended)
			}
			if r == nil || r.Full || again == 0 || r.Read > x.size/4 {
				t.Errorf("%d bytes were read again, resync %+v, want a delta", again, r)
			}
			if a := x.group().Volumes[0].Added; a == nil || a.Writes == 0 || a.P50 <= 0 || a.P99 < a.P50 || a.Max < a.P99 {
				t.Errorf("what capture adds: %+v", a)
			} else {
				t.Logf("what capture adds: %+v", *a)
			}
			if n := x.metric("afterimage_capture_added_seconds_count"); n < 1 {
				t.Errorf("the metric tells of %v writes", n)
			}
			o.judge(rng, 10, closed)
			o.judge(rng, 10, ps.Spans[len(ps.Spans)-1])
			x.newestIsDisk("stopped in a rotation")
		})
	}
}

// Promises 3 and 8: the site is stopped when it has read a part of the disk for the first
// time. The guest is let go; nothing is a point until all has been read again.
func TestPromise3StoppedInTheMiddleOfTheFirstRead(t *testing.T) {
	if scale.Race {
		t.Skip("a source that is slow lets go by itself, which is another case")
	}
	rng, _ := seeded(t)
	m := cbttest.StartQEMU(t, cbttest.DiskSpec{Name: "disk", Bytes: 16 << 20})
	s := readPart(t, m.NBD, 6<<20)
	x := prepareTapped(t, m, rng)
	text, err := os.ReadFile(x.config)
	if err != nil {
		t.Fatal(err)
	}
	x.configure(strings.Replace(string(text), "nbd: "+m.NBD, "nbd: "+s.path, 1))
	o := x.oneAfterAnother(rng)
	x.start()
	s.await(t, "a part of the disk is read")
	o.write(5)
	ps, err := x.api.Points(t.Context(), control.PointsQuery{Group: "g"})
	if st := x.group(); err != nil || st.State == control.StateSynced || len(ps.Spans) > 0 {
		t.Errorf("with a part of the disk read the group is %s and has points: %+v, %v", st.State, ps.Spans, err)
	}
	x.stopThere(s, "the first read", o.write)
	x.pointsGoOn(1)
	o.write(20)
	ps = x.pointsGoOn(1)
	r, read := x.group().Volumes[0].Resync, x.reread()
	t.Logf("%d bytes were read in all of this life; resync %+v; spans %+v", read, r, ps.Spans)
	if x.lives == 1 {
		read -= 1 << 20 // at least that of the 6 MiB that had come was accounted for
	}
	// A machine that is too busy can make the tap let go once more: that costs a delta.
	if read < x.size || len(ps.Spans) == 1 && (r == nil || !r.Full || r.Read < x.size) {
		t.Errorf("%d bytes were read since, resync %+v, want all of the disk", read, r)
	}
	o.judge(rng, 20, ps.Spans[0])
	x.newestIsDisk("stopped in the first read")
}

// pointsGoOn waits until there are at least so many spans, the last of them open.
func (d *daemon) pointsGoOn(spans int) (ps control.Points) {
	d.t.Helper()
	d.until("there are points again", func(ctx context.Context) bool {
		var err error
		ps, err = d.api.Points(ctx, control.PointsQuery{Group: "g"})
		return err == nil && len(ps.Spans) >= spans && ps.Spans[len(ps.Spans)-1].Open
	})
	return ps
}
