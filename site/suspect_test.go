package site

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/detect"
)

// What is overwritten with noise is noticed, told of everywhere, and the point before
// it is pinned and clean; what was written before it was no alarm, and where nobody
// wants to know nothing is looked at.
func TestEncryptionIsNoticed(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"on", "off"} {
		t.Run(mode, func(t *testing.T) {
			w, ctx := newWorld(t), context.Background()
			var judged atomic.Int64
			o := Options{passed: func(step string) {
				if step == "judged" {
					judged.Add(1)
				}
			}}
			c := w.configure("a", "groups: [{name: web, role: primary, detect: {mode: "+mode+"}, volumes: [{name: root, size: 32MiB, embedded: {image: root.img}}]}]\n")
			a := w.runWith(c, o)
			a.awaitState("web", control.StateSynced)
			d := a.device("web/root")
			write := func(off int64, p []byte) {
				t.Helper()
				if err := d.WriteAt(ctx, p, off, false); err != nil {
					t.Fatal(err)
				}
			}
			rng := rand.New(rand.NewPCG(1, 2))
			text := bytes.Repeat([]byte("the quick brown fox jumps over the lazy dog 0123456789 / "), 20<<10)[:1<<20]
			noise := make([]byte, 1<<20)
			for i := range noise {
				noise[i] = byte(rng.Uint32())
			}
			for i := range int64(24) {
				write(i<<20, text)
			}
			rested := func() { // a stretch of time that began after all that was written
				n := judged.Load()
				await(t, "a judgement", func() bool { return mode == "off" || judged.Load() >= n+2 })
			}
			rested()
			if n := suspicionsOf(t, a); len(n) > 0 {
				t.Fatalf("an alarm before anything happened: %+v", n)
			}
			a.stop() // the margin before the attack ends where a reign begins
			a = w.runWith(c, o)
			a.awaitState("web", control.StateSynced)
			d = a.device("web/root")
			for i := range int64(12) {
				write(i<<20, noise)
			}
			if mode == "off" {
				if a.groups[0].life.reigning().watching != nil || judged.Load() > 0 {
					t.Error("somebody looks")
				}
				return
			}
			await(t, "the alarm", func() bool { return len(suspicionsOf(t, a)) > 0 })
			s := suspicionsOf(t, a)[0]
			if s.Volume != "root" || s.Pin == "" || s.Clean == nil || s.Turned < 8<<20 || s.Ratio < 0.25 || len(s.Extents) == 0 || s.Extents[len(s.Extents)-1].Offset+s.Extents[len(s.Extents)-1].Length > 12<<20 {
				t.Fatalf("told %+v", s)
			}
			l, release := a.lifeOf()
			defer release()
			p, err := pointAt(ctx, l.j, s.Clean.Epoch, journal.Seq(s.Clean.Seq))
			if err != nil {
				t.Fatal(err)
			}
			v, err := l.j.View(ctx, p)
			if err != nil {
				t.Fatal(err)
			}
			defer v.Close()
			at := make([]byte, detect.SampleBytes)
			for off := int64(0); off < 24<<20; off += 1 << 20 {
				if err := v.ReadAt(ctx, v.Volumes()[0].ID, at, off); err != nil || detect.Classify(at) != detect.Legible {
					t.Errorf("the clean point at %d: %v, class %d", off, err, detect.Classify(at))
				}
			}
			found := false
			for _, n := range a.groupLine("web").Notices {
				found = found || n.Level == control.Alarm && strings.Contains(n.Text, "volume root") && strings.Contains(n.Text, "in bytes ") && strings.Contains(n.Hint, s.Pin)
			}
			ps, err := a.Points(ctx, control.PointsQuery{Group: "web"})
			if err != nil || !found || len(ps.Suspect) == 0 || len(ps.Pins) == 0 || ps.Pins[0].Name != s.Pin {
				t.Errorf("notice %v, suspect %v, pins %+v, %v", found, ps.Suspect, ps.Pins, err)
			}
		})
	}
}

func suspicionsOf(t *testing.T, r *running) []control.Suspicion {
	t.Helper()
	l, release := r.lifeOf()
	defer release()
	s, err := l.suspicions()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// BenchmarkWatchedIngest writes with and without a detector beside it; the second
// figure over the first is what it costs.
func BenchmarkWatchedIngest(b *testing.B) {
	for _, mode := range []string{"off", "on"} {
		b.Run(mode, func(b *testing.B) {
			dir := b.TempDir()
			c, err := config.Parse(filepath.Join(dir, "a.yml"), []byte("site: a\ndata: d\ngroups: [{name: web, role: primary, quota: 1GiB, detect: {mode: "+mode+"}, volumes: [{name: root, size: 256MiB, embedded: {image: root.img}}]}]\n"))
			if err != nil {
				b.Fatal(err)
			}
			s, err := Open(c, Options{})
			if err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(b.Context())
			done := make(chan error, 1)
			go func() { done <- s.Run(ctx) }()
			x, err := s.lookupExport(ctx, "web/root")
			if err != nil {
				b.Fatal(err)
			}
			p := make([]byte, 64<<10)
			for i := range p {
				p[i] = byte(i * i >> 3)
			}
			var before, after unix.Rusage
			if err := unix.Getrusage(unix.RUSAGE_SELF, &before); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(p)))
			n := int64(0)
			for b.Loop() {
				p[0]++
				if err := x.Device.WriteAt(ctx, p, n%4096*int64(len(p)), false); err != nil {
					b.Fatal(err)
				}
				n++
			}
			if err := unix.Getrusage(unix.RUSAGE_SELF, &after); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(after.Utime.Nano()+after.Stime.Nano()-before.Utime.Nano()-before.Stime.Nano())/float64(n), "cpu-ns/op")
			cancel()
			if err := errors.Join(<-done, s.Close()); err != nil {
				b.Fatal(err)
			}
		})
	}
}
