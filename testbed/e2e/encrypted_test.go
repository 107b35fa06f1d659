package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/guest"
	"github.com/novacron/afterimage/testbed/scale"
)

// The files of a guest that are encrypted: as many as that, of text.
const (
	homeDisk  = 256 << 20
	homeFiles = 240 // all of which are counted
	homeMean  = 256 << 10
)

// A guest's database writes for a while, and nobody is alarmed. Then every file of its
// home is encrypted, one after the other, in place: that is noticed, the last point before
// it is pinned, and in its file system is every file as it was; what the suspicion names
// was written to since.
func TestEncryptionOfAGuestsFilesPinsACleanPoint(t *testing.T) {
	scale.Guest(t)
	scale.Tools(t, "mke2fs", "e2fsck", "debugfs")
	rng, _ := seeded(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*guestPatience)
	defer cancel()
	home := map[string][]byte{}
	words := strings.Fields("the of invoice and to customer in is you that it he was for on are contract with as his they be at one have this from or had by")
	for i := range homeFiles {
		var b bytes.Buffer
		for n := homeMean/2 + rng.IntN(homeMean); b.Len() < n; {
			b.WriteString(words[rng.IntN(len(words))])
			b.WriteByte(" \n"[rng.IntN(12)/11])
		}
		home[fmt.Sprintf("%02d/%03d.txt", i%16, i)] = b.Bytes()
	}
	d := newDaemon(t, "a")
	d.configure(single(d, []volume{{"disk", homeDisk}}))
	d.startSynced()
	image := filepath.Join(t.TempDir(), "image")
	if err := guest.WorkloadDisk(ctx, image, homeDisk, home); err != nil {
		t.Fatal(err)
	}
	putImage(t, d, image)
	g, err := guest.Start(ctx, guest.Config{Dir: d.dir, Disks: []guest.Disk{{Path: "nbd+unix:///g/disk?socket=" + d.path("nbd.sock")}}})
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
	work := func(order string) {
		t.Helper()
		line, err := g.Ask(ctx, order, "worked ")
		if err != nil {
			t.Fatal(err)
		}
		t.Log(line)
	}
	work(fmt.Sprintf("workload kind=%d mib=%d", guest.WorkDatabase, 96))
	quiet := d.suspicions()
	if len(quiet) != 0 {
		t.Errorf("a database is suspect: %+v", quiet)
	}
	before := d.group().Seq
	began := time.Now()
	work(fmt.Sprintf("workload kind=%d", guest.WorkEncrypt))
	var s control.Suspicion
	d.until("the encryption is noticed", func(context.Context) bool {
		if all := d.suspicions(); len(all) > len(quiet) {
			s = all[len(all)-1]
		}
		return s.Pin != "" && len(s.Extents) > 0
	})
	t.Logf("clean is #%d.%d, the newest record before it was #%d; %d ranges", s.Clean.Epoch, s.Clean.Seq, before, len(s.Extents))
	if s.Since.Before(began) {
		t.Errorf("it began at %v, and is said to have at %v", began, s.Since)
	}
	clean, err := d.restore(fmt.Sprintf("#%d.%d", s.Clean.Epoch, s.Clean.Seq))
	if err != nil {
		t.Fatal(err)
	}
	for name, got := range homeOf(t, clean["disk"]) {
		if !bytes.Equal(got, home[name]) {
			t.Errorf("%s is not as it was at the clean point", name)
		}
		delete(home, name)
	}
	if len(home) > 0 {
		t.Errorf("%d files are missing at the clean point", len(home))
	}
	now, err := d.restore("latest")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range s.Extents {
		if e.Length <= 0 || bytes.Equal(clean["disk"][e.Offset:e.Offset+e.Length], now["disk"][e.Offset:e.Offset+e.Length]) {
			t.Errorf("nothing was written to the suspect range of %d bytes at %d", e.Length, e.Offset)
		}
	}
	scale.Counted(t, "encrypted-files-clean", homeFiles-len(home), 240)
}

func (d *daemon) suspicions() []control.Suspicion {
	d.t.Helper()
	p, err := d.api.Points(d.t.Context(), control.PointsQuery{Group: "g"})
	if err != nil {
		d.t.Fatal(err)
	}
	return p.Suspect
}

// putImage writes a file to the volume, but for its zeros.
func putImage(t *testing.T, d *daemon, path string) {
	t.Helper()
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	c, piece := d.connect("disk"), 64<<10
	for off := 0; off < len(image); off += piece {
		if p := image[off:min(off+piece, len(image))]; len(bytes.Trim(p, "\x00")) > 0 {
			if err := c.WriteAt(t.Context(), p, int64(off), false); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// homeOf is every file below /home of a file system, whose journal is replayed first.
func homeOf(t *testing.T, image []byte) map[string][]byte {
	t.Helper()
	path, to := filepath.Join(t.TempDir(), "clean"), t.TempDir()
	if err := writeSparse(path, image); err != nil {
		t.Fatal(err)
	}
	if out, code := tool("e2fsck", "-f", "-y", path); code > 1 {
		t.Fatalf("e2fsck: %d\n%s", code, out)
	}
	if out, code := tool("debugfs", "-R", "rdump /home "+to, path); code != 0 {
		t.Fatalf("debugfs: %s", out)
	}
	files := map[string][]byte{}
	found, err := filepath.Glob(filepath.Join(to, "home", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range slices.Sorted(slices.Values(found)) {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		name, err := filepath.Rel(filepath.Join(to, "home"), f)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = b
	}
	return files
}
