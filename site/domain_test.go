package site

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/libvirtd"
	"github.com/novacron/afterimage/testbed/scale"
)

// domainWorld is a site that protects a running domain of two qcow2 disks.
type domainWorld struct {
	*world
	d *libvirtd.Daemon
	c *config.Config
}

func newDomainWorld(t *testing.T, passthrough config.Passthrough) *domainWorld {
	return newDomainWorldBy(t, passthrough, "per-write")
}

// newDomainWorldBy captures by mode, which may go on with more keys.
func newDomainWorldBy(t *testing.T, passthrough config.Passthrough, mode string) *domainWorld {
	t.Helper()
	scale.Tools(t, "virsh")
	d := libvirtd.Start(t)
	w := &domainWorld{world: newWorld(t), d: d}
	w.define("web", d.Image(t, "a.qcow2", 8<<20), d.Image(t, "b.qcow2", 4<<20))
	user := ""
	if os.Geteuid() == 0 {
		user = ", user: nobody"
	}
	w.c = w.configure("a", fmt.Sprintf(`groups:
- name: web
  role: primary
  libvirt: {domain: web, uri: "%s", passthrough: %s, sockets: "%s"%s}
  capture: {mode: %s}
  volumes: [{name: root, size: 8MiB, libvirt: {target: vda}}, {name: data, size: 4MiB, libvirt: {target: vdb}}]
`, d.URI, passthrough, d.Path("s"), user, mode))
	return w
}

// define starts a transient domain.
func (w *domainWorld) define(name string, images ...string) {
	w.t.Helper()
	p := filepath.Join(w.dir, "domain.xml")
	if err := os.WriteFile(p, []byte(w.d.Domain(name, images...)), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.virsh("create", p)
}

func (w *domainWorld) virsh(args ...string) string {
	w.t.Helper()
	out, err := virshOf(w.d, args...)
	if err != nil {
		w.t.Fatalf("virsh %v: %v\n%s", args, err, out)
	}
	return out
}

func virshOf(d *libvirtd.Daemon, args ...string) (string, error) {
	out, err := exec.Command("virsh", append([]string{"-c", d.URI}, args...)...).CombinedOutput()
	return string(out), err
}

// guestWrites writes 64 KiB as the device of disk i would.
func (w *domainWorld) guestWrites(disk int, fill byte, off int64) {
	w.t.Helper()
	w.guestWritesOf("web", disk, fill, off)
}

func (w *domainWorld) guestWritesOf(domain string, disk int, fill byte, off int64) {
	w.t.Helper()
	out := w.virsh("qemu-monitor-command", domain, "--hmp", fmt.Sprintf(`qemu-io -d /machine/peripheral/virtio-disk%d/virtio-backend "write -P %d %d 64k"`, disk, fill, off))
	if strings.TrimSpace(out) != "" { // what it wrote goes into QEMU's log
		w.t.Fatalf("write of the guest: %s", out)
	}
}

// start is run with a watchdog that only waits.
func (w *domainWorld) start() *running {
	w.t.Helper()
	return w.runWith(w.c, Options{Executable: w.idle()})
}

func (w *domainWorld) restored(r *running, at string) (root, data []byte) {
	w.t.Helper()
	to := filepath.Join(w.t.TempDir(), "out")
	_, err := r.Restore(context.Background(), control.RestoreRequest{Group: "web", At: at, To: to + "/", Format: control.FormatSparse}, func(control.Progress) {})
	if err != nil {
		w.t.Fatal(err)
	}
	for name, into := range map[string]*[]byte{"root.raw": &root, "data.raw": &data} {
		if *into, err = os.ReadFile(filepath.Join(to, name)); err != nil {
			w.t.Fatal(err)
		}
	}
	return root, data
}

func filled(p []byte, fill byte, off int64) bool {
	return bytes.Equal(p[off:off+64<<10], bytes.Repeat([]byte{fill}, 64<<10))
}

// A domain that runs is protected as it is; its writes are points; the daemon
// comes back and reads the delta, or the whole where no bitmap may be used.
func TestDomainIsProtectedWhileItRuns(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		passthrough config.Passthrough
		capture     string
		full        bool
	}{{config.PassthroughAllowed, captureByWrite, false}, {config.PassthroughForbidden, captureByCopy, true}} {
		t.Run(string(c.passthrough), func(t *testing.T) {
			w := newDomainWorld(t, c.passthrough)
			before := w.virsh("dumpxml", "--inactive", "web")
			w.guestWrites(0, 0x11, 0)
			r := w.start()
			r.awaitState("web", control.StateSynced)
			w.guestWrites(0, 0x22, 64<<10)
			w.guestWrites(1, 0x33, 128<<10)
			if _, err := r.Mark(context.Background(), control.MarkRequest{Group: "web", Name: "good"}); err != nil {
				t.Fatal(err)
			}
			w.guestWrites(0, 0x66, 0)
			g := r.detail("web")
			if v := g.Volumes[0]; v.Kind != kindDomain || v.Capture != c.capture || v.Resync == nil || !v.Resync.Full || v.Resync.Journaled < 64<<10 {
				t.Errorf("root: %+v %+v", v, v.Resync)
			}
			r.stop()
			w.guestWrites(1, 0x44, 1<<20) // while nobody looks
			r = w.start()
			r.awaitState("web", control.StateSynced)
			for _, v := range r.detail("web").Volumes {
				if v.Resync == nil || v.Resync.Full != c.full || v.Resync.Journaled > 64<<10 {
					t.Errorf("%s after a restart: %+v", v.Name, v.Resync)
				}
			}
			root, data := w.restored(r, "name:good")
			if !filled(root, 0x11, 0) || !filled(root, 0x22, 64<<10) || !filled(data, 0x33, 128<<10) || filled(data, 0x44, 1<<20) {
				t.Error("the marked point is not what the guest had written")
			}
			root, data = w.restored(r, "latest")
			if !filled(root, 0x66, 0) || !filled(data, 0x44, 1<<20) {
				t.Error("the newest point is not what the guest wrote")
			}
			if after := w.virsh("dumpxml", "--inactive", "web"); after != before {
				t.Errorf("the definition changed:\n%s\n%s", before, after)
			}
		})
	}
}

// cycles waits until n more have been closed.
func (r *running) cycles(name string, n uint64) {
	r.t.Helper()
	points := func() uint64 {
		if c := r.detail(name).Volumes[0].Cycles; c != nil {
			return c.Points
		}
		return 0
	}
	want := points() + n
	await(r.t, "cycles are closed", func() bool { return points() >= want })
}

// A domain in bitmap capture: closed cycles are points, what is written between two
// of them is in the next one, and the daemon comes back with the delta. The status
// never claims that every write is a point.
func TestDomainIsProtectedByCycles(t *testing.T) {
	t.Parallel()
	w := newDomainWorldBy(t, config.PassthroughAllowed, "bitmap, every: 100ms")
	w.guestWrites(0, 0x11, 0)
	r := w.start()
	r.awaitState("web", control.StateCycles)
	w.guestWrites(0, 0x22, 64<<10)
	w.guestWrites(1, 0x33, 128<<10)
	if _, err := r.Mark(context.Background(), control.MarkRequest{Group: "web", Name: "good"}); err != nil {
		t.Fatal(err)
	}
	w.guestWrites(0, 0x77, 0)
	r.cycles("web", 2)
	for at, first := range map[string]byte{"name:good": 0x11, "latest": 0x77} {
		root, data := w.restored(r, at)
		if !filled(root, first, 0) || !filled(root, 0x22, 64<<10) || !filled(data, 0x33, 128<<10) {
			t.Errorf("point %s is not what the guest wrote", at)
		}
	}
	v := r.detail("web").Volumes[0]
	if v.Capture != captureByBitmap || v.Mode != string(cbt.ModeCycles) || v.Effect == "" || v.ModeSince.IsZero() {
		t.Errorf("root: %+v", v)
	}
	r.stop()
	w.guestWrites(1, 0x44, 1<<20)
	r = w.start()
	r.awaitState("web", control.StateCycles)
	r.cycles("web", 2)
	for _, v := range r.detail("web").Volumes {
		if v.Resync != nil && (v.Resync.Full || v.Resync.Journaled > 64<<10) {
			t.Errorf("%s after a restart: %+v", v.Name, v.Resync)
		}
	}
	if root, data := w.restored(r, "latest"); !filled(root, 0x22, 64<<10) || !filled(data, 0x44, 1<<20) {
		t.Error("the newest point is not what the guest wrote while nobody looked")
	}
}

func (r *running) detail(name string) control.GroupDetail {
	r.t.Helper()
	g, err := r.Group(context.Background(), name)
	if err != nil {
		r.t.Fatal(err)
	}
	return g
}
