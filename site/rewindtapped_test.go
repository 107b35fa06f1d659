package site

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/novacron/afterimage/cbt/cbttest"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
	"github.com/novacron/afterimage/testbed/scale"
)

// rawOf is what qemu-img, which shares no code with us, reads from an image.
func rawOf(t *testing.T, image, format string) []byte {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	if out, err := exec.Command("qemu-img", "convert", "-U", "-f", format, "-O", "raw", image, raw).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v\n%s", err, out)
	}
	b, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// disks are the domain's as they are on disk; its QEMU may run, and then has to be idle.
func (w *domainWorld) disks() (root, data []byte) {
	w.t.Helper()
	for _, i := range []int{0, 1} { // what QEMU holds of its own metadata is written first
		_, _ = virshOf(w.d, "qemu-monitor-command", "web", "--hmp", fmt.Sprintf(`qemu-io -d /machine/peripheral/virtio-disk%d/virtio-backend "flush"`, i))
	}
	return rawOf(w.t, w.d.Path("a.qcow2"), "qcow2"), rawOf(w.t, w.d.Path("b.qcow2"), "qcow2")
}

// keep makes libvirtd know the domain when it is off.
func (w *domainWorld) keep() {
	w.t.Helper()
	w.redefine(w.virsh("dumpxml", "--inactive", "web"))
}

func (w *domainWorld) redefine(definition string) {
	w.t.Helper()
	p := filepath.Join(w.dir, "kept.xml")
	if err := os.WriteFile(p, []byte(definition), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.virsh("define", p)
}

func (w *domainWorld) holds(what string, root, data []byte) {
	w.t.Helper()
	gotRoot, gotData := w.disks()
	for name, pair := range map[string][2][]byte{"root": {gotRoot, root}, "data": {gotData, data}} {
		if at := cbttest.FirstDifference(pair[0], pair[1]); at >= 0 {
			w.t.Errorf("%s: disk %s differs from what the guest wrote at byte %d", what, name, at)
		}
	}
}

// plainWorld is a site that taps the disks of a storage daemon.
type plainWorld struct {
	*world
	m *cbttest.Machine
	c *config.Config
}

func newPlainWorld(t *testing.T) *plainWorld {
	t.Helper()
	scale.Tools(t, "qemu-nbd", "qemu-img")
	m := cbttest.StartStorageDaemon(t, cbttest.DiskSpec{Name: "root", Bytes: 6 << 20, Format: "qcow2"}, cbttest.DiskSpec{Name: "data", Bytes: 3 << 20})
	w := &plainWorld{world: newWorld(t), m: m}
	w.configured()
	return w
}

// configured has the site tap the machine that there is now.
func (w *plainWorld) configured() {
	w.t.Helper()
	m := w.m
	w.c = w.configure("a", fmt.Sprintf("groups:\n- name: web\n  role: primary\n  quota: 64MiB\n  qemu: {qmp: %s, watchdog_qmp: %s, nbd: %s}\n  volumes: [{name: root, size: 6MiB, qemu: {node: root}}, {name: data, size: 3MiB, qemu: {node: data}}]\n", m.QMP, m.Spare, m.NBD))
}

func (w *plainWorld) start(o Options) *running {
	w.t.Helper()
	o.Executable = w.idle()
	return w.runWith(w.c, o)
}

func (w *plainWorld) guestWrites(disk string, fill byte, off, n int64) {
	w.t.Helper()
	if err := w.m.Write(w.t, disk, bytes.Repeat([]byte{fill}, int(n)), off); err != nil {
		w.t.Fatal(err)
	}
}

// images are the disks while the machine runs, as its guest reads them.
func (w *plainWorld) images() [2][]byte {
	w.t.Helper()
	return [2][]byte{w.m.Image(w.t, "root"), w.m.Image(w.t, "data")}
}

func (w *plainWorld) files() [2]string {
	return [2]string{filepath.Join(w.m.Dir, "root.img"), filepath.Join(w.m.Dir, "data.img")}
}

// onDisk are the disks while it is off.
func (w *plainWorld) onDisk() [2][]byte {
	w.t.Helper()
	f := w.files()
	return [2][]byte{rawOf(w.t, f[0], "qcow2"), rawOf(w.t, f[1], "raw")}
}

func same2(a, b [2][]byte) bool { return bytes.Equal(a[0], b[0]) && bytes.Equal(a[1], b[1]) }

// A plain QEMU is ended through its monitor and stays off, for nobody told how to start
// it; started again it is tapped, and what its disks hold is the newest point.
func TestRewindOfAPlainMachine(t *testing.T) {
	t.Parallel()
	w, ctx := newPlainWorld(t), context.Background()
	r := w.start(Options{})
	r.awaitState("web", control.StateSynced)
	w.guestWrites("root", 1, 0, 2<<20)
	w.guestWrites("data", 2, 512, 1<<20)
	at := fmt.Sprintf("#%d", r.groupLine("web").Seq)
	good := w.images()
	w.guestWrites("root", 3, 1<<20, 2<<20)
	w.guestWrites("data", 4, 1<<20, 512)
	bad := w.images()
	plan, err := r.PlanRewind(ctx, control.RewindRequest{Group: "web", At: at})
	if err != nil || plan.Machine == "" || !plan.StaysOff || len(plan.Refused) != 0 {
		t.Fatalf("plan %+v, %v", plan, err)
	}
	done := r.rewind(at)
	if done.Started {
		t.Error("it says that it started a machine")
	}
	if !same2(w.onDisk(), good) {
		t.Error("the disks are not what the guest had written at the point")
	}
	w.m.Boot(t)
	r.awaitState("web", control.StateSynced)
	if !same2(w.images(), good) {
		t.Error("the machine has other disks")
	}
	w.m.Kill()
	await(t, "its end is seen", func() bool {
		p, err := r.PlanRewind(ctx, control.RewindRequest{Group: "web", At: done.Undo})
		return err == nil && p.Machine == "" && len(p.Refused) == 0
	})
	r.rewind(done.Undo)
	if !same2(w.onDisk(), bad) {
		t.Error("the undo did not bring back what was given up")
	}
	w.m.Boot(t)
	r.awaitState("web", control.StateSynced)
}

// The daemon dies between the halt of a plain QEMU's guest and its end: the next one lets
// the guest go on, and one that its owner stops afterwards stands still.
func TestARewindThatDiedLetsTheGuestGoOn(t *testing.T) {
	w := newPlainWorld(t)
	w.m.Kill()
	w.m = cbttest.StartQEMU(t, w.m.Disks...)
	w.m.Do(t, "cont", nil)
	w.configured()
	dir, died := filepath.Join(w.dir, "a"), filepath.Join(t.TempDir(), "a")
	taking := false
	r := w.start(Options{passed: func(step string) {
		if taking && step == "the guest is halted" {
			await(t, "a copy of that moment", func() bool { // files of the index may go while they are copied
				os.RemoveAll(died)
				return copyFiles(died, dir) == nil
			})
		}
	}})
	r.awaitState("web", control.StateSynced)
	w.guestWrites("root", 1, 0, 1<<20)
	at := fmt.Sprintf("#%d", r.groupLine("web").Seq)
	w.guestWrites("root", 2, 0, 1<<20)
	taking = true
	r.rewind(at)
	taking = false
	r.stop()

	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := copyFiles(dir, died); err != nil {
		t.Fatal(err)
	}
	w.m.Boot(t)
	state := func() string {
		var is struct {
			Status string `json:"status"`
		}
		if err := w.m.Own.Execute(t.Context(), "query-status", nil, &is); err != nil {
			t.Fatal(err)
		}
		return is.Status
	}
	w.m.Do(t, "cont", nil)
	w.m.Do(t, "stop", nil) // as the rewind left it
	r = w.start(Options{})
	await(t, "the guest goes on", func() bool { return state() == "running" })
	settled := func() bool {
		l, release := r.lifeOf()
		defer release()
		var was stoppedFor
		_, err := l.j.Recall(stoppedKey, &was)
		return err == nil && !was.Halted
	}
	await(t, "that it was halted is settled", settled)
	r.awaitState("web", control.StateSynced)
	r.stop()
	w.m.Do(t, "stop", nil)
	r = w.start(Options{})
	r.awaitState("web", control.StateSynced)
	if s := state(); s != "paused" {
		t.Errorf("a guest that its owner stopped is %s", s)
	}
}

// A rewind of a machine's own disks dies at each of its moments. Whoever comes after goes
// on to the point or had not begun: both disks together, and never in sync in between;
// and while a machine runs from such disks, the rewind waits and says so.
func TestRewindOfDrivesDiesAtAnyMoment(t *testing.T) {
	t.Parallel()
	w := newPlainWorld(t)
	dir, files := filepath.Join(w.dir, "a"), w.files()
	type crash struct {
		dir   string
		disks [2][]byte
		step  string
	}
	var left []crash
	taking := false
	o := Options{passed: func(step string) {
		if !taking {
			return
		}
		c := crash{dir: filepath.Join(t.TempDir(), "a"), step: step}
		await(t, "a copy of one moment", func() bool { // files of the index may go while they are copied
			os.RemoveAll(c.dir)
			return copyFiles(c.dir, dir) == nil
		})
		for i, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Error(err)
			}
			c.disks[i] = b
		}
		left = append(left, c)
	}}
	r := w.start(o)
	r.awaitState("web", control.StateSynced)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	w.guestWrites("root", 1, 0, 5<<20)
	w.guestWrites("data", 2, 0, 2<<20)
	at := fmt.Sprintf("#%d", r.groupLine("web").Seq)
	before := w.images()
	for range 8 {
		w.guestWrites("root", 3, 512*rng.Int64N(8<<10), 64<<10)
		w.guestWrites("data", 4, 512*rng.Int64N(4<<10), 32<<10)
	}
	after := w.images()
	for _, d := range w.m.Disks { // else QEMU's own metadata may be lost with it
		if err := w.m.Guest(t, d.Name).Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	w.m.Kill()
	await(t, "its end is seen", func() bool {
		p, err := r.PlanRewind(t.Context(), control.RewindRequest{Group: "web", At: at})
		return err == nil && p.Machine == "" && len(p.Refused) == 0
	})
	taking = true
	r.rewind(at)
	taking = false
	r.stop()
	if !same2(w.onDisk(), before) {
		t.Fatal("without a crash the disks are not at the point")
	}

	n, waited, kinds := 0, false, map[bool]int{}
	for i, c := range left {
		if !scale.Sweeps() && i%5 != 0 && i != len(left)-1 {
			continue
		}
		n++
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if err := copyFiles(dir, c.dir); err != nil {
			t.Fatal(err)
		}
		for k, f := range files {
			if err := os.WriteFile(f, c.disks[k], 0o600); err != nil {
				t.Fatal(err)
			}
		}
		early := strings.HasPrefix(c.step, "write") && !waited
		if early { // somebody starts the machine from disks that are half-way
			w.m.Boot(t)
		}
		s := w.start(Options{})
		if early {
			await(t, "the rewind waits for the machine's end", func() bool {
				g, err := s.Group(t.Context(), "web")
				f, failed := g.Error.(*fault.Error)
				return err == nil && failed && f != nil && f.Code == fault.RewindUnfinished
			})
			w.m.Kill()
			waited = true
		}
		await(t, "the rewind is finished, or was not begun", func() bool {
			g, err := s.Group(t.Context(), "web")
			return err == nil && g.Role == string(recovery.Primary) && s.reigns("web")
		})
		got := w.onDisk()
		went := same2(got, before)
		if !went && !same2(got, after) {
			t.Fatalf("crash %d, %s: the disks are neither here nor there", i, c.step)
		}
		kinds[went]++
		l, release := s.lifeOf()
		if p, ok, err := recovery.Newest(l.j); err != nil || ok && p.State == recovery.PromotionBegun {
			t.Errorf("crash %d, %s: %+v, %v is not finished", i, c.step, p, err)
		}
		release()
		s.stop()
	}
	if kinds[true] == 0 || !waited {
		t.Errorf("went %d times, stayed %d times", kinds[true], kinds[false])
	}
	t.Logf("%d crashes: went on to the point %d times, had not begun %d times", n, kinds[true], kinds[false])
	scale.Counted(t, "rewind-drive-crashes", n, 12)
}

// reigns reports whether the group's disks are captured now, or tried to be.
func (r *running) reigns(name string) bool {
	return r.lives(name, func(l *life) bool { return l.reigning() != nil })
}
