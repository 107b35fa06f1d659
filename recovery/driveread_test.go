package recovery

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/testbed/scale"
)

// What is told of a drive and put over the head is the drive; nobody can write to it
// meanwhile, it stays as it is to the byte, and what changes beneath is found.
func TestDriveIsReadForWhatDiffers(t *testing.T) {
	scale.Tools(t, "qemu-nbd", "qemu-img")
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	disk := make([]byte, driveBytes)
	for i := range disk {
		disk[i] = byte(rng.Uint32())
	}
	clear(disk[2<<20 : 3<<20])
	head := bytes.Clone(disk)
	copy(head[1<<20+512:], disk[:12345]) // other data
	clear(head[3<<20 : 4<<20])           // where the disk has data
	copy(head[2<<20:], disk[:70000])     // where it has zeros
	head[len(head)-1]++                  // in a part of a cell
	for _, format := range []string{"raw", "qcow2"} {
		d, ctx := driveOf(t, format, disk), testContext(t)
		must(t, d.CheckToRead())
		was, err := os.ReadFile(d.Path)
		must(t, err)
		o, err := d.OpenToRead(ctx)
		must(t, err)
		if _, err := d.Open(ctx); !errors.Is(err, ErrDrive) {
			t.Errorf("%s: who wants to write gets the disk: %v", format, err)
		}
		if _, err := d.OpenToRead(ctx); !errors.Is(err, ErrUnread) {
			t.Errorf("%s: it is opened twice: %v", format, err)
		}
		now, told := bytes.Clone(head), int64(0)
		read, err := o.Differences(ctx, driveBytes, headOf(head), func(_ context.Context, e cbt.Extent, data []byte) error {
			if told += e.Length; !e.Aligned() || e.Length > copyBytes || data != nil && int64(len(data)) != e.Length {
				t.Errorf("%s: told of %v with %d bytes", format, e, len(data))
			}
			clear(now[e.Offset:e.End()])
			copy(now[e.Offset:], data)
			return nil
		})
		must(t, err)
		if !bytes.Equal(now, disk) {
			t.Errorf("%s: the head and what was told of are not the disk", format)
		}
		if most := int64(12345 + 1<<20 + 70000 + 7*4096); told > most || read > driveBytes || read == 0 {
			t.Errorf("%s: told of %d bytes, at most %d differ; %d were read", format, told, most, read)
		}
		must(t, o.Steady(ctx, driveBytes, headOf(disk)))
		if err := o.Steady(ctx, driveBytes, headOf(head)); !errors.Is(err, ErrUnsteady) {
			t.Errorf("%s: another disk than before: %v", format, err)
		}
		if _, err := o.Differences(ctx, driveBytes+512, headOf(head), nil); !errors.Is(err, ErrUnread) {
			t.Errorf("%s: another size: %v", format, err)
		}
		must(t, o.Close())
		if is, err := os.ReadFile(d.Path); err != nil || !bytes.Equal(is, was) {
			t.Errorf("%s: reading has changed the image: %v", format, err)
		}
	}
	for what, bad := range map[string]Drive{
		"missing":   {filepath.Join(t.TempDir(), "nothing"), "raw"},
		"not qcow2": {driveOf(t, "raw", disk).Path, "qcow2"},
	} {
		if _, err := bad.OpenToRead(testContext(t)); !errors.Is(err, ErrUnread) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
