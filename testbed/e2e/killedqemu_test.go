package e2e

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/novacron/afterimage/cbt/cbttest"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/scale"
)

// bitmaps is how many of ours are in use at the machine's disk.
func (x *tapped) bitmaps() (n int) {
	x.t.Helper()
	var nodes []struct {
		Name    string `json:"node-name"`
		Bitmaps []struct {
			Name      string `json:"name"`
			Recording bool   `json:"recording"`
		} `json:"dirty-bitmaps"`
	}
	if err := x.machine.Own.Execute(cbttest.Context(x.t, patience), "query-named-block-nodes", nil, &nodes); err != nil {
		x.t.Fatal(err)
	}
	for _, node := range nodes {
		for _, b := range node.Bitmaps {
			if node.Name == "disk" && b.Recording && strings.HasPrefix(b.Name, "ai-") {
				n++
			}
		}
	}
	return n
}

// fullReads is what the log tells of reads of the whole disk: read and journaled bytes.
func (x *tapped) fullReads() (read, journaled []int64) {
	x.t.Helper()
	text, err := os.ReadFile(x.path("daemon.log"))
	if err != nil {
		x.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		_, tail, ok := strings.Cut(line, " read=")
		if !ok || !strings.Contains(line, "msg=resynced") || !strings.Contains(line, "full=true") {
			continue
		}
		var r, j int64
		if _, err := fmt.Sscanf(tail, "%d journaled=%d", &r, &j); err != nil {
			x.t.Fatalf("%s: %v", line, err)
		}
		read, journaled = append(read, r), append(journaled, j)
	}
	return read, journaled
}

// killMachine is kill -9 of QEMU under a guest that writes, at any moment of a write. The
// write that was under way is done again after the boot, as a guest's own journal does,
// and a few more, before anybody looks.
func (o *oneAfterAnother) killMachine(door *sluice, writes int) {
	x := o.x
	x.t.Helper()
	failed, enough := make(chan *note, 1), make(chan struct{})
	go func() {
		for n := 0; ; n++ {
			if n == writes {
				close(enough)
			}
			w := draw(o.w.rng, o.w.area)
			if err := o.issue(o.to, w); err != nil {
				failed <- w
				return
			}
		}
	}()
	x.until("the guest has written", func(context.Context) bool {
		select {
		case <-enough:
			return true
		default:
			return false
		}
	})
	if n := x.bitmaps(); n == 0 {
		x.t.Error("no bitmap is in use")
	}
	door.shut.Store(true)
	x.machine.Kill()
	under := <-failed
	x.awaitState(control.StateGap)
	x.machine.Boot(x.t)
	o.to = through(x.machine.Guest(x.t, "disk"))
	apply := o.to.write
	if under.data == nil {
		apply = func([]byte, int64) error { return o.to.clear(under.off, under.length) }
	}
	if err := apply(under.data, under.off); err != nil {
		x.t.Fatal(err)
	}
	o.answered(under)
	o.write(5)
	if ps := x.points(); ps.Spans[len(ps.Spans)-1].Open || x.group().State == control.StateSynced {
		x.t.Error("there are points while nobody looks at the machine")
	}
	door.shut.Store(false)
}

func (d *daemon) points() control.Points {
	d.t.Helper()
	ps, err := d.api.Points(d.t.Context(), control.PointsQuery{Group: "g"})
	if err != nil {
		d.t.Fatal(err)
	}
	return ps
}

// Promise 3: kill -9 of QEMU while bitmaps are in use, per write and in bitmap cycles:
// nothing is believed of what the bitmaps were; the disk is read whole and compared, and
// only what differs is journaled; points before and after are true. A qcow2 image that
// was not flushed has fallen back to what it was long before: that too is what the disk
// holds, and the history tells both.
func TestPromise3QEMUKilledWithBitmapsInUse(t *testing.T) {
	if scale.Race {
		t.Skip("a source that is slow lets go by itself, which is another case")
	}
	for _, tc := range []struct{ mode, format, state string }{
		{"per-write", "raw", control.StateSynced}, {"per-write", "qcow2", control.StateSynced},
		{"bitmap, every: 100ms", "raw", control.StateCycles},
	} {
		mode, state, lost := tc.mode, tc.state, tc.format == "qcow2"
		t.Run(tc.format+" "+mode, func(t *testing.T) {
			rng, _ := seeded(t)
			m := cbttest.StartQEMU(t, cbttest.DiskSpec{Name: "disk", Bytes: 16 << 20, Format: tc.format})
			door := newSluice(t, m.QMP, func(_ *sluice, site, machine io.Reader) (io.Reader, io.Reader) { return site, machine })
			x := prepareTapped(t, m, rng)
			text, err := os.ReadFile(x.config)
			if err != nil {
				t.Fatal(err)
			}
			x.configure(strings.NewReplacer("qmp: "+m.QMP+",", "qmp: "+door.path+",", "    volumes:", "    stall_budget: 5s\n    capture: {mode: "+mode+"}\n    volumes:").Replace(string(text)))
			x.start()
			x.awaitState(state)
			o := x.oneAfterAnother(rng)
			more := func(than int) func(context.Context) bool {
				return func(ctx context.Context) bool {
					ps, err := x.api.Points(ctx, control.PointsQuery{Group: "g"})
					return err == nil && len(ps.Spans) > than && (state == control.StateCycles || ps.Spans[len(ps.Spans)-1].Open)
				}
			}
			writes := 50
			if state == control.StateCycles {
				writes = 500
			}
			o.killMachine(door, writes)
			before := x.points().Spans
			x.until("there are points again", more(len(before)))
			o.write(20)
			if state == control.StateCycles {
				x.until("there are more points", more(len(before)+5))
			}
			x.awaitState(state)
			read, journaled := x.fullReads()
			// Holes are not read, and known to be zeros.
			if len(read) != 2 || !lost && read[1] < x.size*3/4 || journaled[1] == 0 || journaled[1] > x.size/4 {
				t.Fatalf("whole reads: read %d, journaled %d; want all of %d compared a second time, and what differs journaled", read, journaled, x.size)
			}
			after := x.points().Spans[len(before):]
			o.judge(rng, 10, before...)
			judged := 10
			if !lost {
				o.judge(rng, 10, after...)
				judged += 10
			}
			x.until("the newest point is the disk", func(context.Context) bool { // a cycle's comes a little later
				got, _, err := x.view("latest")
				return err == nil && firstDifference(x.machine.Image(t, "disk"), got["disk"]) < 0
			})
			t.Logf("kill -9 of QEMU after %d writes: bytes_read %d of %d, bytes_journaled %d; the points ended by %s; %d points judged, of %d spans before and %d after",
				len(o.log), read[1], x.size, journaled[1], before[len(before)-1].Ended, judged, len(before), len(after))
			if !lost {
				scale.Counted(t, "qemu-kill-points", 20, 20)
			}
		})
	}
}
