package recovery

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/novacron/afterimage/testbed/scale"
)

const driveBytes = 5<<20 + 512

// driveOf makes an image that holds old; a qcow2 has half of it in a backing file.
func driveOf(t *testing.T, format string, old []byte) Drive {
	t.Helper()
	dir := t.TempDir()
	raw := filepath.Join(dir, "a,b.raw")
	must(t, os.WriteFile(raw, old, 0o600))
	if format == "raw" {
		return Drive{raw, "raw"}
	}
	d := Drive{filepath.Join(dir, "top,disk.qcow2"), "qcow2"}
	backing := filepath.Join(dir, "base.qcow2")
	must(t, tool(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, backing))
	must(t, tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backing, d.Path))
	return d
}

// contentOf is what qemu-img reads.
func contentOf(t *testing.T, d Drive) []byte {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	must(t, tool(t, "qemu-img", "convert", "-f", d.Format, "-O", "raw", d.Path, raw))
	b, err := os.ReadFile(raw)
	must(t, err)
	return b
}

func headOf(want []byte) func(context.Context, []byte, int64) error {
	return func(_ context.Context, p []byte, off int64) error {
		if copy(p, want[off:]) != len(p) {
			return errors.New("short")
		}
		return nil
	}
}

func noProgress(string, int64, int64) {}

// A drive becomes what the head is, whatever it held; nothing is written where it holds
// that already, and nobody else has it open meanwhile.
func TestDriveIsLevelled(t *testing.T) {
	scale.Tools(t, "qemu-nbd", "qemu-img")
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	old, want := make([]byte, driveBytes), make([]byte, driveBytes)
	for i := range old {
		old[i] = byte(rng.Uint32())
	}
	copy(want, old)
	clear(want[1<<20 : 2<<20])           // zeros in place of data
	copy(want[3<<20+512:], want[:12345]) // data in place of other data, across cells
	clear(want[len(want)-512:])          // a part of a cell
	for _, format := range []string{"raw", "qcow2"} {
		d, ctx := driveOf(t, format, old), testContext(t)
		must(t, d.Check())
		o, err := d.Open(ctx)
		must(t, err)
		if tool(t, "qemu-img", "convert", "-f", format, "-O", "raw", d.Path, d.Path+".copy") == nil {
			t.Errorf("%s: a QEMU that wants the disk for itself gets it", format)
		}
		wrote, err := o.Level(ctx, driveBytes, headOf(want), noProgress)
		must(t, err)
		if wrote < 1<<20+12345 || wrote > 1<<20+12345+3*4096 {
			t.Errorf("%s: %d bytes were written", format, wrote)
		}
		if again, err := o.Level(ctx, driveBytes, headOf(want), noProgress); again != 0 || err != nil {
			t.Errorf("%s: once more %d bytes, %v", format, again, err)
		}
		if _, err := o.Level(ctx, driveBytes+512, headOf(want), noProgress); !errors.Is(err, ErrDrive) {
			t.Errorf("%s: another size: %v", format, err)
		}
		if err := o.Close(); err != nil {
			t.Errorf("%s: %v", format, err)
		}
		if !bytes.Equal(contentOf(t, d), want) {
			t.Errorf("%s: the drive is not what it was to be", format)
		}
		if left, _ := filepath.Glob(o.dir); len(left) > 0 {
			t.Errorf("%s: %v is left", format, left)
		}
	}
}

// What does not hold when it is read back is an error, and so is a drive that cannot be
// written to.
func TestDriveRefuses(t *testing.T) {
	scale.Tools(t, "qemu-nbd", "qemu-img")
	ctx, old := testContext(t), bytes.Repeat([]byte{7}, driveBytes)
	d := driveOf(t, "raw", old)
	o, err := d.Open(ctx)
	must(t, err)
	reads := 0
	fickle := func(_ context.Context, p []byte, off int64) error {
		reads++
		for i := range p {
			p[i] = byte(1 + reads/7) // another one when it is read back
		}
		return nil
	}
	if _, err := o.Level(ctx, driveBytes, fickle, noProgress); !errors.Is(err, ErrWriteLost) {
		t.Errorf("a drive that does not hold what was written: %v", err)
	}
	must(t, o.Close())
	for what, bad := range map[string]Drive{
		"no path":      {"", "raw"},
		"a network's":  {"nbd:unix:/x", "raw"},
		"a format":     {d.Path, "vmdk"},
		"a directory":  {filepath.Dir(d.Path), "raw"},
		"nothing":      {d.Path + ".gone", "raw"},
		"a wrong view": {"/dev/null", "raw"},
	} {
		if err := bad.Check(); !errors.Is(err, ErrDrive) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := (Drive{d.Path, "qcow2"}).Open(ctx); !errors.Is(err, ErrDrive) {
		t.Errorf("a raw file as qcow2: %v", err)
	}
	ended, end := context.WithCancel(ctx)
	end()
	if _, err := d.Open(ended); err == nil {
		t.Error("opened though nobody waits")
	}
	again, err := d.Open(ctx)
	must(t, err)
	must(t, again.Close())
}
