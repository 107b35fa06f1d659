package site

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/embedded"
	"github.com/novacron/afterimage/cbt/qemu"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/scale"
)

// stamper is a machine that boots from root and writes to both disks.
const stamper = `  machine:
    name: web1
    binary: "{dir}/qemu"
    disks: [{volume: root, id: disk0}, {volume: data, id: disk1}]
    args: ["-machine", "pc", "-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none", "-chardev", "file,id=s,path={serial}", "-device", "virtio-blk-pci,drive=disk0,bootindex=0", "-device", "virtio-blk-pci,drive=disk1"]
`

// patientStamper is one whose taps do not let go because this machine stood still for a
// moment: that is a gap, and another test's.
const patientStamper = "  stall_budget: 30s\n" + stamper

// stamping is a boot sector that writes sector after sector, each with the number of its
// write, to the first and the second disk in turn, one at a time and without an end.
func stamping() []byte {
	s := make([]byte, 512)
	copy(s, []byte{
		0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, // ax, ds, ss = 0; sp = 0x7c00
		0x66, 0xc7, 0x06, 0x00, 0x80, 0, 0, 0, 0, // mov dword [0x8000], 0
		0x66, 0xff, 0x06, 0x00, 0x80, // again: inc dword [0x8000]
		0x66, 0xa1, 0x00, 0x80, // mov eax, [0x8000]
		0x88, 0xc2, 0x80, 0xe2, 0x01, 0x80, 0xca, 0x80, // dl = 0x80 + al%2
		0x66, 0x25, 0xff, 0x03, 0, 0, // and eax, 1023
		0x66, 0x83, 0xc0, 0x40, // add eax, 64
		0x66, 0xa3, 0x48, 0x7c, // mov [0x7c48], eax
		0xbe, 0x40, 0x7c, // mov si, 0x7c40
		0xb8, 0x00, 0x43, // mov ax, 0x4300: write
		0xcd, 0x13, // int 0x13
		0xeb, 0xd7, // jmp again
	})
	copy(s[0x40:], []byte{0x10, 0, 1, 0, 0x00, 0x80, 0, 0}) // one sector at 0x8000
	s[510], s[511] = 0x55, 0xaa
	return s
}

// stamped is a site whose machine was started from the journal and writes.
func (w *world) stamped(cfg *config.Config, a, b *running) {
	w.t.Helper()
	w.program(`exec qemu-system-x86_64 "$@"`)
	a.awaitState("web", control.StateSynced)
	if err := a.device("web/root").WriteAt(context.Background(), stamping(), 0, false); err != nil {
		w.t.Fatal(err)
	}
	awaitLevel(a, b, "web")
	a.stop()
	w.t.Cleanup(func() { // the site may have ended before
		if pid, err := b.machineFor(b.groups[0], cfg.Groups[0].Machine).Process(); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	if _, err := b.Failover(context.Background(), control.FailoverRequest{Group: "web", At: "latest", Force: true}, quietly); err != nil {
		w.t.Fatal(err)
	}
	b.awaitStamps()
}

// awaitStamps waits until the guest has written some more, and the journal has it.
func (r *running) awaitStamps() {
	r.t.Helper()
	first := r.groupLine("web").Seq
	await(r.t, "the guest writes", func() bool { return r.groupLine("web").Seq > first+20 })
}

// missesNoStamp wants the guest's writes after a place in the journal, some at least, each
// with the number that follows the one before it, and nothing else.
func (r *running) missesNoStamp(at embedded.Place) {
	r.t.Helper()
	l, release := r.lifeOf()
	defer release()
	var stamps []uint32
	err := history{l.j}.Replay(context.Background(), at, func(ev cbt.Event) error {
		if ev.Kind == cbt.EventWrite && ev.Extent.Length == 512 {
			stamps = append(stamps, binary.LittleEndian.Uint32(ev.Data))
		} else {
			r.t.Errorf("recorded %v of %v", ev.Kind, ev.Extent)
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	for i := range stamps {
		if stamps[i] != stamps[0]+uint32(i) {
			r.t.Fatalf("write %d of the guest is followed by %d", stamps[i-1], stamps[i])
		}
	}
	if len(stamps) == 0 {
		r.t.Fatal("the guest wrote nothing")
	}
}

func (r *running) place() embedded.Place {
	l, release := r.lifeOf()
	defer release()
	return history{l.j}.Head()
}

// stoodStill runs do while the guest stands still.
func (r *running) stoodStill(do func()) {
	r.t.Helper()
	l, release := r.lifeOf()
	own, _ := l.machine(l.cfg.Machine).Monitors()
	release()
	m, err := qemu.DialQMP(context.Background(), own)
	if err != nil {
		r.t.Fatal(err)
	}
	defer m.Close()
	if err := qemu.Halt(context.Background(), m); err != nil {
		r.t.Fatal(err)
	}
	do()
	if err := qemu.Proceed(context.Background(), m); err != nil {
		r.t.Fatal(err)
	}
}

// level compares the images in dir with the journal's head, while the guest stands still.
func (r *running) level(dir string) {
	r.t.Helper()
	r.levelIn(func(volume string) string { return filepath.Join(dir, "default-web-"+volume+".img") })
}

// levelIn is level of images that lie anywhere, and may be longer than their disks.
func (r *running) levelIn(place func(volume string) string) {
	r.t.Helper()
	r.awaitState("web", control.StateSynced)
	r.stoodStill(func() {
		l, release := r.lifeOf()
		defer release()
		for _, d := range l.reigning().disks {
			head := make([]byte, d.volume.Size)
			if err := l.reigning().writer.ReadHead(context.Background(), d.volume.ID, 0, head); err != nil {
				r.t.Fatal(err)
			}
			image, err := os.ReadFile(place(d.volume.Name))
			if err != nil || len(image) < len(head) || !bytes.Equal(image[:len(head)], head) {
				r.t.Errorf("the image of %s is not what the journal's head is: %v", d.volume.Name, err)
			}
		}
	})
}

func (r *running) moves(dir string, pivot bool) (control.Moved, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		r.t.Fatal(err)
	}
	return r.MoveDisks(context.Background(), control.MoveRequest{Group: "web", To: dir, Pivot: pivot}, quietly)
}

// A machine that writes without a pause gets its disks for its own: not one of its writes
// is missing in the journal, and the daemon's and the machine's next lives go on with them.
func TestDisksBecomeTheMachinesOwnWhileItWrites(t *testing.T) {
	scale.Tools(t, "qemu-system-x86_64")
	w := newWorld(t)
	ca, cb := w.pair("", patientStamper)
	a, b := w.runPair(ca, cb)
	w.stamped(cb, a, b)
	dir := filepath.Join(w.dir, "images")
	from := b.place()
	moved, err := b.moves(dir, true)
	if err != nil || moved.Unprotected != "" || len(moved.Volumes) != 2 || moved.Volumes[0].Local == nil || moved.Volumes[1].Local == nil || moved.Volumes[0].Local.Pause <= 0 {
		t.Fatalf("moved: %+v, %v", moved, err)
	}
	if t.Logf("the guest stood still for %.1f ms", 1000*moved.Volumes[0].Local.Pause); moved.Volumes[0].Local.Pause > 10 {
		t.Error("longer than any machine is slow: it waited for something")
	}
	b.awaitStamps()
	b.missesNoStamp(from)
	b.level(dir)
	g, err := b.Group(context.Background(), "web")
	if err != nil || g.Volumes[0].Kind != kindTapped || g.Volumes[0].Local == nil || g.Volumes[0].Export != "" {
		t.Errorf("volumes %+v, %v", g.Volumes, err)
	}
	if again, err := b.moves(dir, true); err != nil || again.Volumes[0].Local == nil {
		t.Errorf("again: %+v, %v", again, err)
	}
	pid := b.pidOf()
	b.stop()
	b = w.run(cb)
	b.level(dir)
	if now := b.pidOf(); now != pid {
		t.Errorf("process %d, was %d", now, pid)
	}
	b.awaitStamps()
	b.endMachine()
	if done, err := b.Failover(context.Background(), control.FailoverRequest{Group: "web", At: "latest"}, quietly); err != nil || !done.Started {
		t.Fatalf("started again: %+v, %v", done, err)
	}
	b.level(dir)
	b.awaitStamps()
	if done, err := b.Rewind(context.Background(), control.RewindRequest{Group: "web", At: "latest"}, quietly); err != nil || done.Pin == "" {
		t.Fatalf("pinned %q, %v", done.Pin, err)
	}
	b.awaitStamps() // from the journal again
	if g, err := b.Group(context.Background(), "web"); err != nil || g.Volumes[0].Kind != kindJournal || g.Volumes[0].Local != nil {
		t.Errorf("volumes %+v, %v", g.Volumes, err)
	}
}

// Where QEMU does not get the disks they stay served from here, and nothing is missing.
func TestDisksThatTheMachineDoesNotGetStayServed(t *testing.T) {
	scale.Tools(t, "qemu-system-x86_64")
	w := newWorld(t)
	ca, cb := w.pair("", patientStamper)
	a, b := w.runPair(ca, cb)
	w.stamped(cb, a, b)
	b.stop()
	var spare string
	b = w.runWith(cb, Options{passed: func(step string) {
		if step != "guest is halted" || spare == "" {
			return
		}
		m, err := qemu.DialQMP(context.Background(), spare)
		if err != nil {
			t.Error(err)
			return
		}
		defer m.Close()
		l, release := b.lifeOf()
		defer release()
		second := l.reigning().disks[1].volume
		if err := m.Execute(context.Background(), "blockdev-del", map[string]any{"node-name": qemu.Pivot{Volume: second}.To()}, nil); err != nil {
			t.Error(err)
		}
	}})
	b.awaitState("web", control.StateSynced)
	dir := filepath.Join(w.dir, "images")
	from := b.place()
	if _, err := b.moves(dir, false); err != nil {
		t.Fatal(err)
	}
	image, err := os.OpenFile(filepath.Join(dir, "default-web-data.img"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	// QEMU's own lock, of somebody else that has the image open.
	if err := unix.FcntlFlock(image.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: 100, Len: 200}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.moves(dir, true); err == nil {
		t.Error("became local though somebody else has the image")
	}
	b.awaitStamps()
	if err := image.Close(); err != nil {
		t.Fatal(err)
	}
	l, release := b.lifeOf()
	_, spare = l.machine(l.cfg.Machine).Monitors()
	release()
	if _, err := b.moves(dir, true); err == nil {
		t.Error("became local though one image was closed again")
	}
	spare = ""
	b.awaitStamps()
	b.level(dir)
	if g, err := b.Group(context.Background(), "web"); err != nil || g.Volumes[0].Export == "" || g.Volumes[0].Local != nil {
		t.Errorf("volumes %+v, %v", g.Volumes, err)
	}
	if moved, err := b.moves(dir, true); err != nil || moved.Volumes[1].Local == nil {
		t.Errorf("in the end: %+v, %v", moved, err)
	}
	b.awaitStamps()
	b.missesNoStamp(from)
	b.level(dir)
}
