package site

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
	"github.com/novacron/afterimage/testbed/loop"
	"github.com/novacron/afterimage/testbed/scale"
)

// A disk goes onto a block device that is larger, and becomes the machine's own there,
// while its guest writes: the journal misses nothing, the next lives of the site and of the machine go
// on with it, and the machine is not started from another device that has come to the path.
func TestADiskBecomesTheMachinesOwnOnABlockDevice(t *testing.T) {
	scale.Tools(t, "qemu-system-x86_64")
	device := loop.New(t, 3<<20)
	device.Wipe()
	w, ctx := newWorld(t), context.Background()
	ca, cb := w.pair("", patientStamper)
	a, b := w.runPair(ca, cb)
	w.stamped(cb, a, b)
	dir := filepath.Join(w.dir, "images")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	place := func(volume string) string {
		if volume == "data" {
			return device.Path
		}
		return filepath.Join(dir, "default-web-root.img")
	}
	level := func() { t.Helper(); b.levelIn(place) }
	onto := control.MoveRequest{Group: "web", To: dir, Devices: map[string]string{"data": device.Path}, Pivot: true}

	for what, q := range map[string]control.MoveRequest{
		"nowhere":      {Group: "web", Devices: onto.Devices},
		"no volume":    {Group: "web", To: dir, Devices: map[string]string{"date": device.Path}},
		"no full path": {Group: "web", To: dir, Devices: map[string]string{"data": "loop0"}},
	} {
		if _, err := b.MoveDisks(ctx, q, quietly); !fault.Is(err, fault.Usage) {
			t.Errorf("%s: %v", what, err)
		}
	}
	from := b.place()
	moved, err := b.MoveDisks(ctx, onto, quietly)
	if err != nil || moved.Unprotected != "" || len(moved.Volumes) != 2 {
		t.Fatalf("moved: %+v, %v", moved, err)
	}
	for _, v := range moved.Volumes {
		if v.Local == nil || v.Local.Image != place(v.Volume) || v.Local.Pause <= 0 {
			t.Errorf("volume %s: %+v", v.Volume, v.Local)
		}
	}
	b.awaitStamps()
	b.missesNoStamp(from)
	level()

	b.stop()
	b = w.run(cb)
	level()
	b.awaitStamps()
	b.endMachine()
	starts := func() error {
		_, err := b.Failover(ctx, control.FailoverRequest{Group: "web", At: "latest"}, quietly)
		return err
	}
	if err := starts(); err != nil {
		t.Fatalf("started again: %v", err)
	}
	level()
	b.awaitStamps()
	level()

	b.endMachine()
	device.Another(3 << 20)
	if err := starts(); !fault.Is(err, fault.MachineTrouble) || !strings.Contains(err.Error(), "is another device") {
		t.Errorf("started from another device: %v", err)
	}
}

// A device that a machine has open, or that is too small, is refused, and the disk stays
// served; what was moved onto a device and is another one now is not opened.
func TestADeviceThatIsNotTheDisksIsNotWrittenTo(t *testing.T) {
	used, small, device, full := loop.New(t, 2<<20), loop.New(t, 1<<20), loop.New(t, 2<<20), loop.New(t, 2<<20)
	for _, d := range []*loop.Device{used, small, device} {
		d.Wipe()
	}
	held, err := os.ReadFile(full.Path)
	if err != nil {
		t.Fatal(err)
	}
	w, b, boot := promoted(t)
	dir := filepath.Join(w.dir, "images")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	onto := func(path string) error {
		_, err := b.MoveDisks(context.Background(), control.MoveRequest{Group: "web", To: dir, Devices: map[string]string{"data": path}}, quietly)
		return err
	}
	end := lockedAsQEMU(t, used.Path)
	for what, path := range map[string]string{"a machine has it": used.Path, "too small": small.Path, "it holds something": full.Path, "a directory": dir} {
		if err := onto(path); !fault.Is(err, fault.ImageTrouble) {
			t.Errorf("%s: %v", what, err)
		}
	}
	end()
	if now, err := os.ReadFile(full.Path); err != nil || string(now) != string(held) {
		t.Errorf("a device that holds something was written to: %v", err)
	}
	g, err := b.Group(context.Background(), "web")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range g.Volumes {
		if v.Name == "data" && v.Kind != kindJournal {
			t.Errorf("it is %s", v.Kind)
		}
	}
	if err := onto(device.Path); err != nil {
		t.Fatal(err)
	}
	again := control.MoveRequest{Group: "web", Devices: map[string]string{"data": device.Path}}
	if done, err := b.MoveDisks(context.Background(), again, quietly); err != nil || !done.Volumes[0].Before || !done.Volumes[1].Before {
		t.Errorf("moved again: %+v, %v", done, err)
	}
	b = boot(b)
	b.awaitState("web", control.StateSynced)
	b.stop()
	device.Another(2 << 20)
	before, err := os.ReadFile(device.Path)
	if err != nil {
		t.Fatal(err)
	}
	b = boot(b)
	await(t, "the group says that its image is another", func() bool {
		f, ok := b.groupLine("web").Error.(*fault.Error)
		return ok && f.Code == fault.ImageTrouble
	})
	if after, err := os.ReadFile(device.Path); err != nil || string(after) != string(before) {
		t.Errorf("somebody else's device was written to: %v", err)
	}
}
