package site

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

// withPeer gives the site a peer that never answers.
func (w *domainWorld) withPeer() {
	w.t.Helper()
	pin, err := Pin(w.configure("b", ""))
	if err != nil {
		w.t.Fatal(err)
	}
	w.c.Peers = w.configure("a", "peers: [{name: b, pin: \""+pin+"\"}]\n").Peers
	w.c.Groups[0].Peers = []string{"b"}
}

func (w *domainWorld) runs() bool {
	w.t.Helper()
	return strings.TrimSpace(w.virsh("domstate", "web")) == "running"
}

// halted is what is remembered of a guest that stands still for a rewind.
func (r *running) halted(change func(*stoppedFor)) bool {
	r.t.Helper()
	l, release := r.lifeOf()
	defer release()
	var was stoppedFor
	_, err := l.j.Recall(stoppedKey, &was)
	if err == nil && change != nil {
		change(&was)
		err = l.j.Remember(stoppedKey, was)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return was.Halted
}

// A domain that a rewind has halted and cannot end goes on, once it can be told to; so
// does one that an earlier life left so, whatever else is owed to it, and nobody is asked
// who does not answer.
func TestADomainHaltedForARewindGoesOn(t *testing.T) {
	w, ctx := newDomainWorld(t, config.PassthroughAllowed), context.Background()
	w.withPeer()
	var dies atomic.Bool
	o := Options{Executable: w.idle(), peersPatience: time.Hour, passed: func(step string) {
		if step == "the guest is halted" && dies.CompareAndSwap(true, false) {
			w.d.Kill()
		}
	}}
	r := w.runWith(w.c, o)
	r.awaitState("web", control.StateSynced)
	w.guestWrites(0, 0x11, 0)
	at := fmt.Sprintf("#%d", r.groupLine("web").Seq)
	w.guestWrites(0, 0x66, 0)
	dies.Store(true)
	if _, err := r.Rewind(ctx, control.RewindRequest{Group: "web", At: at, Operator: "tester", NoMachine: true}, quietly); err == nil {
		t.Error("a rewind was carried out without libvirtd")
	}
	if dies.Load() || !r.halted(nil) {
		t.Fatalf("the guest was not halted, or that is forgotten while it may be")
	}
	w.d.Boot(t)
	await(t, "the guest goes on", w.runs)
	await(t, "that it was halted is settled", func() bool { return !r.halted(nil) })
	r.awaitState("web", control.StateSynced)

	r.halted(func(was *stoppedFor) { was.Machine, was.Halted = "web", true })
	w.virsh("suspend", "web")
	r.stop()
	r = w.runWith(w.c, o)
	await(t, "the guest goes on in the next life", w.runs)
	await(t, "that it was halted is settled", func() bool { return !r.halted(nil) })
	r.awaitState("web", control.StateSynced)
}
