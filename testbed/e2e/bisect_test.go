package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/port"
	"github.com/novacron/afterimage/testbed/scale"
)

// What a bisection searches: bisectFS bytes of ext4, behind which all but one record lie.
const (
	bisectFS   = 16 << 20
	bisectDisk = 32 << 20
	mostMounts = 20
)

// A file system that one write in 100,000 has broken: by the command, with a program that
// looks at each view with e2fsck, that very record is found.
func TestBisectFindsTheRecordThatBrokeAFileSystem(t *testing.T) {
	if scale.Race || testing.Short() {
		t.Skip("it writes a hundred thousand records")
	}
	scale.Tools(t, "mkfs.ext4", "e2fsck", "nbdcopy")
	rng, _ := seeded(t)
	d := newDaemon(t, "a")
	d.configure(fmt.Sprintf("site: a\ndata: %s\nlisten: %s\ngroups:\n  - name: g\n    role: primary\n    volumes: [{name: root, size: %d, embedded: {image: root.img}}]\n", d.dir, port.Address(t), bisectDisk))
	d.startSynced()
	image := d.path("fs.raw")
	if out, err := exec.Command("mkfs.ext4", "-q", "-b", "4096", "-O", "^has_journal", "-E", "lazy_itable_init=0", image, fmt.Sprintf("%dK", bisectFS>>10)).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	fs, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	c := d.connect("root")
	for off := 0; off < len(fs); off += 1 << 20 {
		if err := c.WriteAt(t.Context(), fs[off:off+1<<20], int64(off), false); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.api.Mark(t.Context(), control.MarkRequest{Group: "g", Name: "good"}); err != nil {
		t.Fatal(err)
	}

	records := scale.Scale(100_000)
	before := rng.IntN(records - 1)
	d.scatter(c, before)
	if err := c.WriteAt(t.Context(), make([]byte, 512), 4096, true); err != nil { // the group descriptors
		t.Fatal(err)
	}
	culprit := d.group().Seq
	d.scatter(c, records-1-before)
	last := d.group().Seq

	check := filepath.Join(d.dir, "check")
	if err := os.WriteFile(check, []byte("#!/bin/sh\nnbdcopy \"$AFTERIMAGE_URI\" \"$0.raw\" && truncate -s "+fmt.Sprint(bisectFS)+" \"$0.raw\" && e2fsck -f -n \"$0.raw\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	var found control.Bisection
	if err := d.cli(&found, "point", "bisect", "g", "--good", "name:good", "--check", check, "--restart"); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d records, the one at %d (of %d) broke it: found %d after %d mounts", records, culprit, last, found.FirstBad.Seq, len(found.Tries))
	if !found.Exact || found.FirstBad.Seq != culprit || found.LastGood.Seq >= culprit || len(found.Tries) > mostMounts {
		t.Errorf("found %+v", found)
	}
	if found.FirstBad.Seq != culprit {
		return
	}
	scale.Counted(t, "bisect-records", records, 100_000)
}

// scatter writes n records of 512 bytes behind the file system.
func (d *daemon) scatter(c *nbd.Client, n int) {
	d.t.Helper()
	const at = 32 // a time
	var work sync.WaitGroup
	errs := make(chan error, at)
	for k := range at {
		work.Go(func() {
			p := make([]byte, 512)
			for i := k; i < n; i += at {
				p[0], p[1], p[2] = byte(i), byte(i>>8), byte(i>>16)
				off := bisectFS + int64(i)*7919%((bisectDisk-bisectFS)/512)*512
				if err := c.WriteAt(d.t.Context(), p, off, false); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	work.Wait()
	select {
	case err := <-errs:
		d.t.Fatal(err)
	default:
	}
}
