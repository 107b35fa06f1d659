package site

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
	"github.com/novacron/afterimage/testbed/port"
)

// tappedAway is a site whose group web taps a machine that is not there.
func tappedAway(t *testing.T, how string) (*world, *running) {
	t.Helper()
	w := newWorld(t)
	return w, w.run(w.configure("a", "groups:\n- name: web\n  role: primary\n"+how))
}

// watched is the life of the group, once its taps have told that nobody is there: from
// then on they record nothing. It is given back by the end of the test, or before.
func (r *running) watched() (l *life, done func()) {
	r.t.Helper()
	r.awaitState("web", control.StateGap)
	l, release := r.lifeOf()
	done = sync.OnceFunc(release)
	r.t.Cleanup(done)
	await(r.t, "the tap has told that nobody is there", func() bool {
		hs, err := l.j.Happenings(context.Background(), time.Time{}, time.Time{})
		if err != nil {
			r.t.Fatal(err)
		}
		return slices.ContainsFunc(hs, func(h journal.Happening) bool { return h.Kind == journal.KindGap && h.Epoch == l.j.Head().Epoch })
	})
	return l, done
}

// tells records what a tap would.
func (l *life) tells(t *testing.T, events ...cbt.Event) {
	t.Helper()
	for _, e := range events {
		p, err := l.reigning().writer.Record(t.Context(), e)
		if err == nil {
			err = p.Wait(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// lies says where the disk of the volume that joined first was seen: nobody has it open.
func (l *life) lies(t *testing.T, dir string) {
	t.Helper()
	path := filepath.Join(dir, "root.raw")
	err := os.WriteFile(path, make([]byte, 1<<20), 0o600)
	if err == nil {
		err = l.j.Remember(driveKey(l.j.Parts()[0].ID), recovery.Drive{Path: path, Format: "raw"})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// followed is what a tap tells of the volume that joined first up to its machine's end,
// where causes say no other.
func (l *life) followed(causes ...cbt.Cause) []cbt.Event {
	v := l.j.Parts()[0].ID
	out := []cbt.Event{{Kind: cbt.EventSynced, Volume: v}}
	for _, c := range append(causes, cbt.CauseMachine) {
		out = append(out, cbt.Event{Kind: cbt.EventGap, Volume: v, Cause: c})
	}
	return out
}

const oneTapped = "  qemu: {qmp: '{dir}/qmp'}\n  volumes: [{name: root, size: 1MiB, qemu: {node: root}}]\n"

// That a tap has ended, and no monitor answers, is no sign that the machine is off: who
// knows is asked, and who cannot be asked has not said so.
func TestAMachineIsOffWhenThoseWhoKnowSaySo(t *testing.T) {
	ctx := t.Context()
	w, r := tappedAway(t, oneTapped)
	l, _ := r.watched()
	if _, err := l.plainOff(ctx, l.cfg.Taps()[0]); err == nil || !strings.Contains(err.Error(), "was never seen") {
		t.Errorf("a disk that is tapped, and was never seen: %v", err)
	}
	l.lies(t, w.dir)
	l.tells(t, l.followed()...)
	off := func() (handover, yield error) { return l.writerIsOff(ctx, ""), l.machineIsOff(ctx) }
	if a, b := off(); a != nil || b != nil {
		t.Fatalf("followed to its end, and nobody at its socket: %v, %v", a, b)
	}
	hung, err := net.Listen("unix", filepath.Join(w.dir, "qmp")) // takes connections, says nothing
	if err != nil {
		t.Fatal(err)
	}
	if a, b := off(); a == nil || !strings.Contains(a.Error(), "a machine answers") || !fault.Is(b, fault.PrimaryAlive) {
		t.Errorf("its socket is there, its tap is not: %v, %v", a, b)
	}
	if err := hung.Close(); err != nil {
		t.Fatal(err)
	}
	if a, b := off(); a != nil || b != nil {
		t.Errorf("off again: %v, %v", a, b)
	}

	_, r = tappedAway(t, "  libvirt: {domain: web, uri: 'qemu:///session?socket=/nonexistent', sockets: '{dir}/s'}\n  volumes: [{name: root, size: 1MiB, libvirt: {target: vda}}]\n")
	l, _ = r.watched()
	l.tells(t, l.followed()...)
	if a, b := off(); a == nil || !strings.Contains(a.Error(), "see domain web off") || !fault.Is(b, fault.PrimaryAlive) {
		t.Errorf("no libvirtd answers: %v, %v", a, b)
	}
}

// What a machine wrote while nobody followed it is not here, whatever was recorded before:
// between two lives of the site, after the last cycle, on a disk that was never level.
func TestAMachineIsFollowedToItsEndOrNot(t *testing.T) {
	ctx := t.Context()
	refused := func(what string, l *life, why string) {
		t.Helper()
		if err := l.endedWhole(ctx); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v, want %q", what, err, why)
		}
	}
	w, r := tappedAway(t, oneTapped)
	l, done := r.watched()
	refused("never level", l, "was not followed since its disks were opened")
	l.tells(t, l.followed(cbt.CauseStall)...)
	refused("the tap had let go before", l, string(cbt.CauseStall))
	l.tells(t, l.followed(cbt.CauseCycle)...)
	refused("a cycle was the last", l, cyclesEnd)
	l.tells(t, l.followed()...)
	if err := l.endedWhole(ctx); err != nil {
		t.Errorf("followed to its end: %v", err)
	}
	if err := l.ranOn(l.j.Parts()[0].ID, "it was seen"); err != nil {
		t.Fatal(err)
	}
	refused("it ran again and was off before it was level", l, "(it was seen): start the machine")
	l.tells(t, l.followed(cbt.CauseTapEnded, cbt.CauseTapEnded)...)
	if err := l.endedWhole(ctx); err != nil {
		t.Errorf("followed to its end after it ran unseen: %v", err)
	}
	done()
	r.stop()
	r = w.run(r.cfg)
	l, _ = r.watched()
	refused("the site was restarted since", l, "was not followed since its disks were opened")

	_, r = tappedAway(t, "  libvirt: {domain: web, uri: 'qemu:///session?socket=/nonexistent', sockets: '{dir}/s', disks: all}\n")
	await(t, "the group is open", func() bool {
		x, release, err := r.groups[0].use()
		if err != nil {
			return false
		}
		if l = x; l.reigning() == nil {
			release()
			return false
		}
		t.Cleanup(release)
		return true
	})
	if err := l.reigning().writer.AddVolume(ctx, cbt.Volume{ID: cbt.VolumeID(cbt.NewID()), Name: "vda", Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	l.tells(t, l.followed(cbt.CauseCycle)...)
	refused("a disk that the configuration does not name", l, cyclesEnd)
}

// Before anybody looks at the machine's disks nothing is known of it, and what is known
// before the role is given up is looked at again then: a machine that was started
// meanwhile keeps the role here.
func TestAMachineThatStartsWhileItsGroupDrainsKeepsTheRole(t *testing.T) {
	ctx, w := t.Context(), newWorld(t)
	pin := func(name string) string {
		p, err := Pin(w.configure(name, ""))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	ca := w.configure("a", "listen: "+port.Address(t)+"\npeers: [{name: b, pin: \""+pin("b")+"\"}]\ngroups:\n- name: web\n  role: primary\n  peers: [b]\n"+oneTapped)
	cb := w.configure("b", "listen: "+port.Address(t)+"\npeers: [{name: a, pin: \""+pin("a")+"\"}]\ngroups:\n- {name: web, peers: [a]}\n")
	ca.Peers[0].Address, cb.Peers[0].Address = cb.Listen, ca.Listen
	var starts atomic.Bool // as soon as a role was changed
	a := w.runWith(ca, Options{passed: func(step string) {
		if step != "role changed" || !starts.CompareAndSwap(true, false) {
			return
		}
		n, err := net.Listen("unix", filepath.Join(w.dir, "qmp"))
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { n.Close() })
	}})
	b := w.run(cb)
	l, done := a.watched()
	l.lies(t, w.dir)
	l.tells(t, l.followed()...)
	awaitLevel(a, b, "web")
	q := control.HandoverRequest{Group: "web", Operator: "tester"}
	plan := func() control.HandoverPlan {
		t.Helper()
		p, err := l.handoverPlan(ctx, q)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	await(t, "it could be handed over", func() bool { return len(plan().Refused) == 0 })
	l.mu.Lock()
	r := l.reign
	l.reign = nil
	l.mu.Unlock()
	p := plan()
	l.mu.Lock()
	l.reign = r
	l.mu.Unlock()
	if len(p.Refused) != 1 || !strings.Contains(p.Refused[0], "are not open here now") {
		t.Errorf("before its disks are open: %v", p.Refused)
	}
	done()
	starts.Store(true)
	if _, err := a.Handover(ctx, q, quietly); !fault.Is(err, fault.HandoverTrouble) || !strings.Contains(err.Error(), "a machine answers") {
		t.Errorf("started while it drained: %v", err)
	}
	a.awaitRole("web", recovery.Primary, control.StateGap)
	b.awaitRole("web", recovery.Replica, control.StateReceiving)
}
