package site

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
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

// A domain whose definition names another disk by now than it ran with comes home to none
// of them until somebody has said, by its path, that it is the domain's.
func TestADomainComesHomeToNoOtherDiskThanItRanWith(t *testing.T) {
	scale.Tools(t, "qemu-nbd", "qemu-img", "qemu-io")
	w, ctx := newDomainWorld(t, config.PassthroughAllowed), context.Background()
	w.keep()
	r := w.start()
	r.awaitState("web", control.StateSynced)
	w.guestWrites(0, 0x11, 0)
	await(t, "where its disks lie is known", func() bool {
		return r.lives("web", func(l *life) bool {
			for id := range partsOf(l.j) {
				var d recovery.Drive
				if known, err := l.j.Recall(driveKey(id), &d); err != nil || !known {
					return false
				}
			}
			return len(partsOf(l.j)) == 2
		})
	})
	root, data := w.disks()
	l, release := r.lifeOf()
	away := l.roleNow()
	away.Role = recovery.Replica
	if err := recovery.RememberReign(l.j, away); err != nil {
		t.Fatal(err)
	}
	release()
	r.stop()
	w.guestWrites(0, 0x66, 0) // in no history
	w.virsh("destroy", "web")
	was, foreign := w.d.Path("a.qcow2"), w.d.Path("foreign.qcow2")
	for _, c := range [][]string{{"qemu-img", "create", "-q", "-f", "qcow2", foreign, "8M"}, {"qemu-io", "-c", "write -P 0x99 0 8M", foreign}, {"chmod", "666", foreign}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", c, err, out)
		}
	}
	w.redefine(strings.ReplaceAll(w.virsh("dumpxml", "--inactive", "web"), was, foreign))
	held := map[string][]byte{}
	for _, p := range []string{was, foreign} {
		held[p] = rawOf(t, p, "qcow2")
	}
	untouched := func(what string, paths ...string) {
		t.Helper()
		for _, p := range paths {
			if !bytes.Equal(rawOf(t, p, "qcow2"), held[p]) {
				t.Errorf("%s: %s was written to", what, p)
			}
		}
	}

	r = w.start() // a replica that is asked whether it would take the group
	await(t, "the site follows", func() bool { return r.lives("web", func(l *life) bool { return !l.roleNow().Role.Captures() }) })
	l, release = r.lifeOf()
	_, err := l.offered("b", cession{Head: l.j.Head().Durable})
	release()
	if err == nil || !strings.Contains(err.Error(), was) || !strings.Contains(err.Error(), foreign) || !strings.Contains(err.Error(), "group home web --disk") {
		t.Errorf("asked whether it takes the group: %v", err)
	}
	r.handedBack() // by a release that did not ask
	r.stop()
	r = w.start()
	await(t, "the way home is refused", func() bool {
		g := r.groupLine("web")
		e, _ := g.Error.(error)
		return g.Error != nil && fault.Is(e, fault.HomeElsewhere)
	})
	untouched("refused", was, foreign)

	ask := func(q control.HomeRequest) (control.Home, error) {
		q.Group, q.Operator = "web", "tester"
		return r.HomeDisks(ctx, q)
	}
	h, err := ask(control.HomeRequest{})
	if err != nil || len(h.Disks) != 2 {
		t.Fatalf("%+v, %v", h, err)
	}
	for _, d := range h.Disks {
		if d.Refused != (d.Volume == "root") || d.Refused && (d.Ran != was || d.Named != foreign) {
			t.Errorf("shown: %+v", d)
		}
	}
	said := map[string]string{"root": foreign}
	if _, err := ask(control.HomeRequest{Disks: map[string]string{"root": was}}); !fault.Is(err, fault.Usage) {
		t.Errorf("a disk that the definition does not name: %v", err)
	}
	if h, err := ask(control.HomeRequest{Disks: said, DryRun: true}); err != nil || h.Disks[0].Said {
		t.Errorf("a dry run: %+v, %v", h, err)
	}
	if h, err := ask(control.HomeRequest{}); err != nil || !h.Disks[0].Refused && !h.Disks[1].Refused {
		t.Errorf("after a dry run: %+v, %v", h, err)
	}
	untouched("not yet said", was, foreign)
	if _, err := ask(control.HomeRequest{Disks: said}); err != nil {
		t.Fatal(err)
	}
	await(t, "the domain is home", func() bool {
		return r.lives("web", func(l *life) bool { return l.roleNow().Own && l.reigning() != nil })
	})
	if _, err := ask(control.HomeRequest{}); !fault.Is(err, fault.RoleForbids) {
		t.Errorf("asked at home: %v", err)
	}
	r.stop()
	untouched("home", was)
	if !bytes.Equal(rawOf(t, foreign, "qcow2"), root) || !bytes.Equal(rawOf(t, w.d.Path("b.qcow2"), "qcow2"), data) {
		t.Error("its disks do not hold the head")
	}
}
