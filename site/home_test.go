package site

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/scale"
)

// handedBack makes the site one that was handed its group, while its domain is off.
func (r *running) handedBack() {
	r.t.Helper()
	l, release := r.lifeOf()
	defer release()
	reign := l.roleNow()
	reign.Role, reign.Handed, reign.Own = recovery.Primary, cbt.NewID(), false
	if err := recovery.RememberReign(l.j, reign); err != nil {
		r.t.Fatal(err)
	}
}

// While the disks of a domain that comes home are written to, libvirtd does not start it
// with its host; afterwards it does as before, also where a life died in between.
func TestADomainThatComesHomeIsNotStartedHalfWay(t *testing.T) {
	scale.Tools(t, "qemu-nbd", "qemu-img")
	w := newDomainWorld(t, config.PassthroughAllowed)
	w.keep()
	w.virsh("autostart", "web")
	r := w.start()
	r.awaitState("web", control.StateSynced)
	w.guestWrites(0, 0x11, 0)
	root, data := w.disks()
	r.handedBack()
	r.stop()
	w.guestWrites(0, 0x66, 0) // in no history
	w.virsh("destroy", "web")

	auto := func() bool { return strings.Contains(w.virsh("dominfo", "web"), "Autostart:      enable") }
	dir, died := filepath.Join(w.dir, "a"), filepath.Join(t.TempDir(), "a")
	written := 0
	o := Options{Executable: w.idle(), passed: func(step string) {
		if step != "disks brought home" {
			return
		}
		if written++; auto() {
			t.Error("the domain starts with its host while its disks are written to")
		}
		if written == 1 {
			await(t, "a copy of that moment", func() bool { // files of the index may go while they are copied
				os.RemoveAll(died)
				return copyFiles(died, dir) == nil
			})
		}
	}}
	home := func() bool {
		return r.lives("web", func(l *life) bool { return l.roleNow().Own && l.reigning() != nil && auto() })
	}
	r = w.runWith(w.c, o)
	await(t, "the domain is home, and starts with its host", home)
	r.stop()
	w.holds("home", root, data)

	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := copyFiles(dir, died); err != nil {
		t.Fatal(err)
	}
	w.virsh("autostart", "--disable", "web") // as it was then
	r = w.runWith(w.c, o)
	await(t, "the domain is home after a life that died, and starts with its host", home)
	r.stop()
	if written != 2 {
		t.Errorf("the disks were written to %d times", written)
	}
}
