package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/scale"
)

const (
	diskBytes    = 32 << 20
	ballastBytes = 64 << 20
	// The journal leaves 64 MiB of its file system to others and takes segments of
	// 64 MiB whole: with the ballast there is room for one and the beginning of another.
	smallBytes = 224 << 20
)

// smallDisk mounts a file system of so many bytes for the test.
func smallDisk(t *testing.T, bytes int) string {
	t.Helper()
	if os.Geteuid() != 0 {
		scale.Missing(t, "mounting a small file system takes root")
	}
	dir, err := os.MkdirTemp("", "ai") // sockets lie in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", bytes)); err != nil {
		if os.IsPermission(err) {
			scale.Missing(t, "mounting is not permitted here")
		}
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// loader writes one block after the other, round and round, and remembers what it
// wrote last where. It is for one goroutine.
type loader struct {
	d       *daemon
	write   func(p []byte, off int64) error
	n       uint64
	longest time.Duration
	image   []byte
}

const blockBytes = 1 << 20

func newLoader(d *daemon) *loader {
	c := d.connect("root")
	return &loader{d: d, image: make([]byte, diskBytes), write: func(p []byte, off int64) error {
		ctx, stop := context.WithTimeout(d.t.Context(), patience)
		defer stop()
		return c.WriteAt(ctx, p, off, false)
	}}
}

// blocks writes n blocks; each write has to be answered well.
func (l *loader) blocks(n int) {
	l.d.t.Helper()
	for range n {
		l.n++
		p := make([]byte, blockBytes)
		for i := 0; i < len(p); i += 8 {
			binary.LittleEndian.PutUint64(p[i:], l.n<<32|uint64(i))
		}
		off := int64(l.n) * blockBytes % diskBytes
		stood, began := scale.Standstill(), time.Now()
		if err := l.write(p, off); err != nil {
			l.d.t.Fatalf("write %d: %v", l.n, err)
		}
		l.longest = max(l.longest, time.Since(began)-stood())
		copy(l.image[off:], p)
	}
}

// holdsItsImage compares the served disk, the newest point and what was written.
func (l *loader) holdsItsImage(protected bool) {
	l.d.t.Helper()
	ctx, stop := context.WithTimeout(l.d.t.Context(), patience)
	defer stop()
	served, err := readAll(ctx, l.d.connect("root"))
	if err != nil || !bytes.Equal(served, l.image) {
		l.d.t.Errorf("the disk holds what was written: %v, %v", bytes.Equal(served, l.image), err)
	}
	if !protected {
		return
	}
	images, _, err := l.d.view("latest")
	if err != nil {
		l.d.t.Fatal(err)
	}
	if at := firstDifference(l.image, images["root"]); at >= 0 {
		l.d.t.Errorf("the newest point differs from the disk at byte %d", at)
	}
}

// fill writes until the group says gap.
func (l *loader) fill(most int) {
	l.d.t.Helper()
	for range most {
		l.blocks(1)
		if l.d.group().State == control.StateGap {
			return
		}
	}
	l.d.t.Fatalf("%d MiB went into a journal that has room for less", most)
}

// protectedAgain waits until all is recorded again, under load, but no longer than
// there is room for it beside the whole disk, which is recorded anew.
func (l *loader) protectedAgain() {
	l.d.t.Helper()
	room := 8
	l.d.until("protection is back", func(ctx context.Context) bool {
		if room--; room >= 0 {
			l.blocks(1)
		}
		g, err := l.d.api.Group(ctx, "g")
		return err == nil && g.State == control.StateSynced
	})
}

// stalledNever wants no write to have waited for room.
func (l *loader) stalledNever() {
	l.d.t.Helper()
	if l.longest > 2*time.Second {
		l.d.t.Errorf("a write took %v", l.longest)
	}
}

// tellsOfItsGap holds every face of the site to saying that there is a gap, and why.
func (d *daemon) tellsOfItsGap() {
	d.t.Helper()
	st, err := d.api.Status(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	if g := st.Groups[0]; g.State != control.StateGap || !strings.Contains(g.Detail, "disk-full") {
		d.t.Errorf("status says %s, %q", g.State, g.Detail)
	}
	if v := d.group().Volumes[0]; v.State != "broken" || v.Cause != "disk-full" {
		d.t.Errorf("the volume is %s, cause %q", v.State, v.Cause)
	}
	for _, c := range [][]string{{"status"}, {"group", "show", "g"}} {
		if code, said := d.run(c...); code != 0 || !regexp.MustCompile(`\bgap\b`).MatchString(said) || !strings.Contains(said, "disk-full") {
			d.t.Errorf("%s ended with %d and says nothing of a gap and its cause\n%s", strings.Join(c, " "), code, said)
		}
	}
	gap := regexp.MustCompile(`#\d+\.\d+ .* root +disk-full`)
	if code, said := d.run("point", "list", "g"); code != 0 || !gap.MatchString(said) || strings.Contains(said, "still growing") {
		d.t.Errorf("point list ended with %d\n%s", code, said)
	}
	if !regexp.MustCompile(`level=(WARN|ERROR) msg="journal is full; the volume goes on unprotected" .*volume=root`).MatchString(d.log()) {
		d.t.Error("the log does not warn")
	}
}

// A disk without room opens a gap, is told everywhere, and stalls no writer; when
// there is room again protection returns by itself.
func TestFullDiskOpensAGapAndStallsNobody(t *testing.T) {
	d, small := newDaemon(t, "a"), smallDisk(t, smallBytes)
	ballast := small + "/ballast"
	if err := os.WriteFile(ballast, make([]byte, ballastBytes), 0o600); err != nil {
		t.Fatal(err)
	}
	d.configure(strings.Replace(single(d, []volume{{"root", diskBytes}}), "data: "+d.dir, "data: "+small+"\ncontrol: "+d.path("control.sock")+"\nnbd: "+d.path("nbd.sock"), 1))
	d.startSynced()
	l := newLoader(d)
	l.blocks(8)
	before := d.group()
	good := bytes.Clone(l.image)
	l.fill(180)
	l.blocks(40)
	d.tellsOfItsGap()
	l.holdsItsImage(false)
	if got, err := d.restore(pointOf(before)); err != nil || !bytes.Equal(got["root"], good) {
		t.Errorf("a point before the gap: %v, equal %v", err, bytes.Equal(got["root"], good))
	}
	if code, said := d.run("view", "restore", "g", "--at", "latest", "--to", d.path("latest.raw")); code != 0 {
		t.Errorf("the last point before the gap: %d\n%s", code, said)
	}

	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	l.protectedAgain()
	l.holdsItsImage(true)
	points, err := d.api.Points(t.Context(), control.PointsQuery{Group: "g"})
	if err != nil || len(points.Spans) < 2 || !points.Spans[len(points.Spans)-1].Open || points.Spans[0].Ended != "disk-full" {
		t.Errorf("spans %+v: %v", points.Spans, err)
	}
	t.Logf("the longest of %d writes took %v; %d gaps", l.n, l.longest, len(points.Gaps))
	l.stalledNever()
	d.stop()
	d.startSynced()
	l.write = newLoader(d).write
	l.blocks(4)
	l.holdsItsImage(true)
}

// A quota that is used up does the same as a full disk, and a larger one cures it
// with the next start.
func TestQuotaOpensAGapUntilItIsRaised(t *testing.T) {
	d := newDaemon(t, "a")
	text := single(d, []volume{{"root", diskBytes}})
	quota := func(of string) string {
		return strings.Replace(text, "role: primary\n", "role: primary\n    quota: "+of+"\n", 1)
	}
	d.configure(quota("64MiB"))
	d.startSynced()
	l := newLoader(d)
	l.fill(90)
	l.blocks(40)
	d.tellsOfItsGap()
	l.holdsItsImage(false)
	d.stop()
	d.start() // nothing has changed: it is told again, and the disk is served
	d.awaitState(control.StateGap)
	l.write = newLoader(d).write
	l.blocks(4)
	l.holdsItsImage(false)
	d.stop()
	d.configure(quota("256MiB"))
	d.startSynced()
	l.write = newLoader(d).write
	l.blocks(4)
	l.holdsItsImage(true)
	t.Logf("the longest of %d writes took %v", l.n, l.longest)
	l.stalledNever()
}

// The same where somebody else takes even the journal's reserve: not a byte is
// left for marks, cursors and the index.
func TestDiskWithoutAByteStallsNobody(t *testing.T) {
	d, small := newDaemon(t, "a"), smallDisk(t, smallBytes)
	d.configure(strings.Replace(single(d, []volume{{"root", diskBytes}}), "data: "+d.dir, "data: "+small+"\ncontrol: "+d.path("control.sock")+"\nnbd: "+d.path("nbd.sock"), 1))
	d.startSynced()
	l := newLoader(d)
	l.blocks(8)
	ballast := small + "/ballast"
	fillUp(t, ballast)
	l.blocks(120)
	d.awaitState(control.StateGap)
	d.tellsOfItsGap()
	l.holdsItsImage(false)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	l.protectedAgain()
	l.holdsItsImage(true)
	t.Logf("the longest of %d writes took %v", l.n, l.longest)
	l.stalledNever()
}

// fillUp writes a file until its file system takes no more.
func fillUp(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for p := make([]byte, 1<<20); len(p) > 0; {
		if _, err := f.Write(p); errors.Is(err, syscall.ENOSPC) {
			p = p[:len(p)/2]
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
