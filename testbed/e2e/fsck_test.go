package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/novacron/afterimage/testbed/guest"
	"github.com/novacron/afterimage/testbed/scale"
	"github.com/novacron/afterimage/testbed/stamp"
)

// guestDisk is small: its file system is checked hundreds of times.
const (
	guestDisk  = 64 << 20
	guestSlots = 64
)

// said is what was known of the guest while it wrote: all points from seq on hold
// its files up to low, those up to seq none above high.
type said struct{ seq, low, high uint64 }

// Promise 4: at any point of a guest's ext4 in use there is a file system that a
// crash could have left, with every file that the guest had been told is durable.
//
// A point is what a power cut leaves, so the file system's own journal has to be
// replayed before it is judged. e2fsck -n does not do that: it would look at the
// metadata as they lay in their places before the last transactions, find that old
// file system consistent, and pass for nothing. e2fsck -E journal_only writes, and a
// view is read-only: it gets a copy of its own, which lies over the view as a boot's
// overlay does.
func TestPromise4GuestFileSystemAtAnyPoint(t *testing.T) {
	scale.Guest(t)
	scale.Tools(t, "mkfs.ext4", "e2fsck", "debugfs")
	rng, _ := seeded(t)
	d := newDaemon(t, "a")
	d.configure(single(d, []volume{{"disk", guestDisk}}))
	d.startSynced()
	makeFileSystem(t, d)
	epoch, first := d.group().Epoch, d.group().Seq
	want := scale.Scale(200)
	sayings := letWrite(t, d, uint64(3*want+50))
	last := sayings[len(sayings)-1].seq
	t.Logf("the guest made records #%d to #%d and %d files", first+1, last, sayings[len(sayings)-1].low)
	points := map[uint64]bool{first: true, last: true}
	for len(points) < want {
		points[first+rng.Uint64N(last-first+1)] = true
	}
	var g errgroup.Group
	g.SetLimit(2)
	for seq := range points {
		g.Go(func() error {
			if err := judgeFileSystem(t, d, fmt.Sprintf("#%d.%d", epoch, seq), known(sayings, seq)); err != nil {
				return fmt.Errorf("point #%d: %w", seq, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	mustFindDamage(t, d, fmt.Sprintf("#%d.%d", epoch, last), known(sayings, last))
	scale.Counted(t, "oracle-fsck-points", len(points), 200)
}

// makeFileSystem puts an empty ext4 on the volume.
func makeFileSystem(t *testing.T, d *daemon) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ext4")
	if out, err := exec.Command("mkfs.ext4", "-q", "-b", "4096", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0", path, fmt.Sprintf("%dK", guestDisk>>10)).CombinedOutput(); err != nil {
		t.Fatalf("make file system: %v: %s", err, out)
	}
	putImage(t, d, path)
}

// letWrite boots a guest on the volume, lets it write n files, and is told how far
// it is meanwhile.
func letWrite(t *testing.T, d *daemon, n uint64) []said {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	began := time.Now()
	g, err := guest.Start(ctx, guest.Config{Dir: d.dir, Disks: []guest.Disk{{Path: "nbd+unix:///g/disk?socket=" + d.path("nbd.sock"), Discard: true}}})
	if errors.Is(err, guest.ErrNoKernel) {
		scale.Missing(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if _, err := g.Wait(ctx, "ready "); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Ask(ctx, fmt.Sprintf("files slots=%d count=%d", guestSlots, n), "stamped"); err != nil {
		t.Fatal(err)
	}
	var out []said
	for low := uint64(0); low < n; {
		if low, err = g.WaitStamped(ctx, low+1); err != nil {
			t.Fatal(err)
		}
		seq := d.group().Seq
		if _, err := g.Ask(ctx, "ping", "pong"); err != nil { // what it told before this it had made by then
			t.Fatal(err)
		}
		out = append(out, said{seq, low, g.Stamped() + 1}) // and one that it had not told of
	}
	if _, err := g.Ask(ctx, "pause", "paused"); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d files after %v under %s", n, time.Since(began).Round(time.Second), g.Config.Accel)
	return append(out, said{d.group().Seq, n, n})
}

// known is what is known of the point at seq.
func known(ss []said, seq uint64) said {
	k := said{seq: seq}
	for _, s := range ss {
		if s.seq <= seq {
			k.low = max(k.low, s.low)
		}
		if s.seq >= seq && k.high == 0 {
			k.high = s.high
		}
	}
	return k
}

// judgeFileSystem replays the file system's journal over a copy of the point, checks
// it, and looks for the guest's files.
func judgeFileSystem(t *testing.T, d *daemon, at string, k said) error {
	images, _, err := d.view(at)
	if err != nil {
		return err
	}
	return judgeImage(t.TempDir(), images["disk"], k)
}

func judgeImage(dir string, image []byte, k said) error {
	path := filepath.Join(dir, "overlay")
	if err := writeSparse(path, image); err != nil {
		return err
	}
	defer os.Remove(path)
	// 1 says that something was corrected, which is the replay.
	if out, code := tool("e2fsck", "-E", "journal_only", "-y", path); code > 1 {
		return fmt.Errorf("the journal is not replayed, exit %d: %s", code, out)
	}
	if out, code := tool("e2fsck", "-f", "-n", path); code != 0 {
		return fmt.Errorf("the file system is not clean, exit %d: %s", code, out)
	}
	files := filepath.Join(dir, "files")
	if err := os.Mkdir(files, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(files)
	if out, code := tool("debugfs", "-R", "rdump /stamped "+files, path); code != 0 {
		return fmt.Errorf("the files do not read, exit %d: %s", code, out)
	}
	return judgeFiles(filepath.Join(files, "stamped"), k)
}

// judgeFiles wants every file whole that has its name; none missing of the newest
// guestSlots, nor of what the guest had said.
func judgeFiles(dir string, k said) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) && k.low == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	have, top := map[uint64]bool{}, uint64(0)
	for _, e := range entries {
		n, err := strconv.ParseUint(e.Name(), 10, 64)
		if err != nil {
			if strings.HasSuffix(e.Name(), ".part") {
				continue
			}
			return fmt.Errorf("there is a file %q", e.Name())
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		if len(b) != (int(n%7)+1)*stamp.Size {
			return fmt.Errorf("file %d has %d bytes", n, len(b))
		}
		for off := 0; off < len(b); off += stamp.Size {
			if s, err := stamp.Decode(b[off : off+stamp.Size]); err != nil || s.Number != n {
				return fmt.Errorf("file %d holds stamp %d at %d: %v", n, s.Number, off, err)
			}
		}
		have[n], top = true, max(top, n)
	}
	if top < k.low || top > k.high {
		return fmt.Errorf("the newest file is %d, the guest had made %d to %d", top, k.low, k.high)
	}
	for n := top; n > 0 && n+guestSlots > top; n-- {
		if !have[n] {
			return fmt.Errorf("file %d is missing, %d is there", n, top)
		}
	}
	return nil
}

// mustFindDamage sees that the judgement can fail: a file that is not there yet, and
// sectors of a file and of a directory that went back to zeros.
func mustFindDamage(t *testing.T, d *daemon, at string, k said) {
	t.Helper()
	images, _, err := d.view(at)
	if err != nil {
		t.Fatal(err)
	}
	image := images["disk"]
	if err := judgeImage(t.TempDir(), image, said{low: k.high + 1, high: k.high + 1}); err == nil {
		t.Error("a file that was never written is not missed")
	}
	for what, spoilt := range map[string]func(block []byte) bool{
		"the newest file": func(b []byte) bool { x, err := stamp.Decode(b); return err == nil && x.Number == k.low },
		"the root":        func(b []byte) bool { return bytes.Contains(b, []byte("lost+found")) },
	} {
		damaged, hit := bytes.Clone(image), 0
		for off := 0; off < len(image); off += stamp.Size {
			if spoilt(image[off : off+stamp.Size]) {
				clear(damaged[off : off+512])
				hit++
			}
		}
		if err := judgeImage(t.TempDir(), damaged, k); err == nil || hit == 0 {
			t.Errorf("%s: %d sectors that went back to zeros are not found", what, hit)
		}
	}
}

// tool runs a program and returns what it says and its exit.
func tool(name string, args ...string) (string, int) {
	cmd := exec.Command(name, args...)
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		return err.Error(), -1
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// writeSparse writes image without its zeros.
func writeSparse(path string, image []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	err = f.Truncate(int64(len(image)))
	for off := 0; err == nil && off < len(image); off += 4096 {
		if p := image[off : off+4096]; len(bytes.Trim(p, "\x00")) > 0 {
			_, err = f.WriteAt(p, int64(off))
		}
	}
	return errors.Join(err, f.Close())
}
