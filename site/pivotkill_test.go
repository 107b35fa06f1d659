package site

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/novacron/afterimage/cbt/qemu"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/scale"
)

// stampedMortal is a site that can die, of a pair whose group was failed over to it and
// whose machine stamps its disks.
func (w *world) stampedMortal(machine string) (*mortal, *pivotKills) {
	w.t.Helper()
	textA, textB := w.pairTexts("", strings.ReplaceAll(machine, "{dir}", w.dir))
	cb := w.configure("b", textB)
	a, b := w.runPair(w.configure("a", textA), cb)
	w.stamped(cb, a, b)
	l, release := b.lifeOf()
	own, _ := l.machine(l.cfg.Machine).Monitors()
	release()
	b.stop()
	m := w.mortal("b", textB)
	m.start()
	return m, &pivotKills{t: w.t, mortal: m, own: own}
}

// A site that dies at any durable step of a pivot leaves a machine that goes on, with all
// of its disks served or all of them its own, and what they hold in the journal.
func TestAPivotSurvivesAKillAtEveryDurableStep(t *testing.T) {
	scale.Lasting(t, "it moves disks once for every durable step")
	scale.Tools(t, "qemu-system-x86_64")
	w, ctx := newWorld(t), context.Background()
	m, k := w.stampedMortal(patientStamper)
	kills := 0
	for died := true; died; kills++ {
		m.awaitRole(recovery.Uncommitted, control.StateSynced)
		dir := filepath.Join(w.dir, fmt.Sprintf("images%d", kills))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		q := control.MoveRequest{Group: "web", To: dir}
		if _, err := m.api.MoveDisks(ctx, q, quietly); err != nil {
			t.Fatal(err)
		}
		m.arm(kills+1, fmt.Sprint("pivot ", kills))
		q.Pivot = true
		_, err := m.api.MoveDisks(ctx, q, quietly)
		if died = m.disarm(); died {
			m.start()
			m.awaitRole(recovery.Uncommitted, control.StateSynced)
		} else if err != nil {
			t.Fatal(err)
		}
		k.goesOn()
		local := k.level()
		t.Logf("kill %d: died %v, local %v", kills+1, died, local)
		if !died && !local {
			t.Error("not killed, and not local")
		}
		if _, err := m.api.Rewind(ctx, control.RewindRequest{Group: "web", At: "latest"}, quietly); err != nil {
			t.Fatal(err)
		}
		k.goesOn()
	}
	if kills < 8 {
		t.Errorf("%d kills", kills-1)
	}
}

type pivotKills struct {
	t *testing.T
	*mortal
	own string // the machine's monitor
}

// goesOn waits until the machine writes, and the journal has it.
func (k *pivotKills) goesOn() {
	k.t.Helper()
	first := k.line().Seq
	await(k.t, "the guest writes", func() bool {
		g := k.line()
		return g.State == control.StateSynced && g.Seq > first+20
	})
}

// level compares the images with the newest point, and says whether they are the
// machine's own.
func (k *pivotKills) level() (local bool) {
	k.t.Helper()
	ctx := context.Background()
	mon, err := qemu.DialQMP(ctx, k.own)
	if err != nil {
		k.t.Fatal(err)
	}
	defer mon.Close()
	if err := qemu.Halt(ctx, mon); err != nil {
		k.t.Fatal(err)
	}
	g, err := k.api.Group(ctx, "web")
	if err != nil {
		k.t.Fatal(err)
	}
	out, err := os.MkdirTemp(filepath.Dir(k.path), "restored")
	if err != nil {
		k.t.Fatal(err)
	}
	if _, err := k.api.Restore(ctx, control.RestoreRequest{Group: "web", At: "latest", To: out, Format: "raw"}, quietly); err != nil {
		k.t.Fatal(err)
	}
	for i, v := range g.Volumes {
		if own := v.Local != nil; i > 0 && own != local {
			k.t.Error("one disk is the machine's own, one is not")
		} else {
			local = own
		}
		image, err := os.ReadFile(filepath.Join(k.newest(), "default-web-"+v.Name+".img"))
		if err != nil {
			k.t.Fatal(err)
		}
		point, err := os.ReadFile(filepath.Join(out, v.Name+".raw"))
		if err != nil || !bytes.Equal(image, point) {
			k.t.Errorf("the image of %s is not what the newest point is: %v", v.Name, err)
		}
	}
	if err := qemu.Proceed(ctx, mon); err != nil {
		k.t.Fatal(err)
	}
	return local
}

func (k *pivotKills) newest() string {
	dirs, err := filepath.Glob(filepath.Join(filepath.Dir(k.path), "images*"))
	if err != nil || len(dirs) == 0 {
		k.t.Fatal("no images", err)
	}
	return dirs[len(dirs)-1]
}
