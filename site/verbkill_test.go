package site

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/port"
	"github.com/novacron/afterimage/testbed/scale"
)

// verbs is two sites in processes of their own, and what was written to the group's disk.
type verbs struct {
	t       *testing.T
	a, b    *mortal
	written map[byte]bool // and whether it was kept
	next    byte
	kills   map[string]int
}

func newVerbs(t *testing.T) *verbs {
	w := newWorld(t)
	plain := func(name string) string {
		pin, err := Pin(w.configure(name, ""))
		if err != nil {
			t.Fatal(err)
		}
		return pin
	}
	pins, at := [2]string{plain("a"), plain("b")}, [2]string{port.Address(t), port.Address(t)}
	text := "listen: %s\npeers: [{name: %s, address: %q, pin: %q}]\ngroups:\n- name: web\n  role: %s\n  peers: [%s]\n%s"
	v := &verbs{t: t, written: map[byte]bool{}, next: 1, kills: map[string]int{}}
	v.a = w.mortal("a", fmt.Sprintf(text, at[0], "b", at[1], pins[1], "primary", "b", "  volumes: [{name: root, size: 2MiB, embedded: {image: root.img}}]\n"))
	v.b = w.mortal("b", fmt.Sprintf(text, at[1], "a", at[0], pins[0], "replica", "a", ""))
	v.a.start()
	v.b.start()
	v.settled()
	return v
}

// settled waits until one site reigns and the other follows it, level, and returns them.
// Two that reign at once are an error whenever they are seen.
func (v *verbs) settled() (primary, replica *mortal) {
	v.t.Helper()
	await(v.t, "one reigns and the other follows", func() bool {
		x, y := v.a.line(), v.b.line()
		v.notTwo(x, y)
		primary, replica = v.a, v.b
		if y.Role == string(recovery.Primary) {
			primary, replica, x, y = v.b, v.a, y, x
		}
		return x.Role == string(recovery.Primary) && x.State == control.StateSynced && y.Role == string(recovery.Replica) && y.State == control.StateReceiving &&
			x.Seq == y.Durable && x.EpochID == y.EpochID
	})
	primary.has(v.written)
	return primary, replica
}

// reigns says that a site takes writes; one that is being opened is told of as it is
// configured.
func reigns(g control.Group) bool {
	return recovery.Role(g.Role).Captures() && g.State == control.StateSynced
}

// notTwo: the two were asked one after the other, so a handover between the questions
// may show the giver before it and the taker after it; then both are asked again.
func (v *verbs) notTwo(x, y control.Group) {
	v.t.Helper()
	if !reigns(x) || !reigns(y) {
		return
	}
	if x, y = v.a.line(), v.b.line(); reigns(x) && reigns(y) {
		v.t.Fatalf("two primaries: a in epoch %d, b in epoch %d", x.Epoch, y.Epoch)
	}
}

func (v *verbs) write(at *mortal) {
	v.t.Helper()
	at.write(v.next)
	v.written[v.next] = true
	v.next++
}

// dies does a verb while victim is to die at its n-th durable step, and reports whether
// it did, before over says that all is done; it runs again then.
func (v *verbs) dies(verb string, victim *mortal, n int, do func() error, over func() bool) bool {
	v.t.Helper()
	victim.arm(n, fmt.Sprintf("%s-%d", verb, v.next))
	done := make(chan error, 1)
	go func() { done <- do() }()
	ended := false
	await(v.t, verb+" is over or its process dead", func() bool {
		select {
		case err := <-done:
			ended = true
			v.t.Logf("%s, death %d: %v", verb, n, err)
		default:
		}
		return victim.dead() || ended && over()
	})
	died := victim.disarm()
	if died {
		v.kills[verb]++
		victim.start()
		await(v.t, "the group is open again", func() bool {
			s := victim.line().State
			return s == control.StateSynced || s == control.StateReceiving || s == control.StateWaiting || s == control.StateHalted
		})
	}
	if !ended {
		select { // who asked hears of the end of a connection, or of the verb's
		case <-done:
		case <-time.After(time.Minute):
			v.t.Fatalf("%s, death %d: nobody answered", verb, n)
		}
	}
	return died
}

// stride is how far apart the deaths of a run are that is no sweep.
func stride() int {
	switch {
	case scale.Sweeps():
		return 1
	case testing.Short():
		return 12
	}
	return 4
}

// handovers kills either site at each durable step of one there and back again.
func (v *verbs) handovers() {
	v.t.Helper()
	for _, giver := range []bool{true, false} {
		name := map[bool]string{true: "giver", false: "taker"}[giver]
		for n, died := 1, true; died; n += stride() {
			p, r := v.settled()
			v.write(p)
			victim := r
			if giver {
				victim = p
			}
			died = v.dies("handover, "+name, victim, n, func() error {
				_, err := p.api.Handover(v.t.Context(), control.HandoverRequest{Group: "web", Operator: "tester"}, quietly)
				return err
			}, func() bool {
				return r.line().Role == string(recovery.Primary) && p.line().State == control.StateReceiving
			})
			v.settled()
		}
	}
}

// disaster takes the primary away and fails over to the other site, from all that there
// is. It is ended by SIGTERM, which the other one hears of at once.
func (v *verbs) disaster() (lost, promoted *mortal) {
	v.t.Helper()
	p, r := v.settled()
	v.write(p)
	await(v.t, "the write has arrived", func() bool { return r.line().Durable == p.line().Seq })
	p.stop()
	ctx, cancel := context.WithTimeout(v.t.Context(), time.Minute)
	defer cancel()
	done, err := r.api.Failover(ctx, control.FailoverRequest{Group: "web", At: "latest", Force: true, Operator: "tester"}, quietly)
	if err != nil {
		v.t.Fatal(err)
	}
	if done.Loss.Writes != 0 {
		v.t.Errorf("told was a loss of %d writes, nothing is lost", done.Loss.Writes)
	}
	r.awaitRole(recovery.Uncommitted, control.StateSynced)
	r.has(v.written)
	return p, r
}

func (v *verbs) decide(at *mortal, verb string) error {
	_, err := at.api.Decide(v.t.Context(), control.DecisionRequest{Verb: verb, Group: "web", Operator: "tester"}, quietly)
	return err
}

// commits kills the site that was failed over to at each step of a commit.
func (v *verbs) commits() {
	v.t.Helper()
	for n, died := 1, true; died; n++ {
		lost, now := v.disaster()
		died = v.dies("commit", now, n, func() error { return v.decide(now, control.VerbCommit) }, func() bool { return now.line().Role == string(recovery.Primary) })
		if now.line().Role == string(recovery.Uncommitted) { // it was taken back: it is said again
			if err := v.decide(now, control.VerbCommit); err != nil {
				v.t.Fatal(err)
			}
		}
		now.awaitRole(recovery.Primary, control.StateSynced)
		now.has(v.written)
		v.reprotected(lost, now, lost, 0)
	}
}

// reprotected brings the lost site back and has it follow; victim dies at the n-th step.
func (v *verbs) reprotected(lost, now, victim *mortal, n int) (died bool) {
	v.t.Helper()
	lost.start()
	await(v.t, "the two know that they exclude each other", func() bool {
		return lost.line().State == control.StateHalted || now.line().State == control.StateHalted
	})
	v.write(now)
	died = v.dies("reprotect", victim, n, func() error { return v.decide(now, control.VerbReprotect) }, func() bool { return lost.line().State == control.StateReceiving })
	await(v.t, "the lost site follows, or has to be told again", func() bool {
		if lost.line().State == control.StateReceiving {
			return true
		}
		_ = v.decide(now, control.VerbReprotect) // refused while histories are compared
		return false
	})
	v.settled()
	return died
}

// reprotects kills either site at each step of a reprotect.
func (v *verbs) reprotects() {
	v.t.Helper()
	for _, keeper := range []bool{true, false} {
		for n, died := 1, true; died; n += stride() {
			lost, now := v.disaster()
			if err := v.decide(now, control.VerbCommit); err != nil {
				v.t.Fatal(err)
			}
			victim := lost
			if keeper {
				victim = now
			}
			died = v.reprotected(lost, now, victim, n)
		}
	}
}

// rollbacks kills the site that was failed over to at each step of a rollback.
func (v *verbs) rollbacks() {
	v.t.Helper()
	for n, died := 1, true; died; n += stride() {
		lost, now := v.disaster()
		v.write(now)
		v.written[v.next-1] = false // it is given up
		died = v.dies("rollback", now, n, func() error {
			d, err := now.api.Decide(v.t.Context(), control.DecisionRequest{Verb: control.VerbRollback, Group: "web", Operator: "tester"}, quietly)
			if err == nil && d.Loss.Writes != 1 {
				v.t.Errorf("rollback: told was a loss of %d writes, it is 1", d.Loss.Writes)
			}
			return err
		}, func() bool { return now.line().Role == string(recovery.Replica) })
		if now.line().Role == string(recovery.Uncommitted) {
			if err := v.decide(now, control.VerbRollback); err != nil {
				v.t.Fatal(err)
			}
		}
		lost.start()
		v.settled()
	}
}

// Promises 11 and 13, over two sites in processes of their own: whichever is killed at
// whatever durable step of a handover there and back, a commit, a reprotect and a
// rollback, the verb is finished or taken back when it runs again; there are never two
// primaries; and nothing is lost but what was told.
func TestVerbsSurviveAKillAtEveryDurableStep(t *testing.T) {
	t.Parallel()
	v := newVerbs(t)
	v.handovers()
	v.commits()
	v.reprotects()
	v.rollbacks()
	n := 0
	for verb, kills := range v.kills {
		t.Logf("%s: killed %d times", verb, kills)
		n += kills
	}
	scale.Counted(t, "verb-kills", n, 16)
}
