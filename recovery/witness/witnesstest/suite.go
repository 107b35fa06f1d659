package witnesstest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery/witness"
)

const ttl = witness.MinTTL

// Case is one test of the suite.
type Case struct {
	Name string
	Test func(t *testing.T, w witness.Witness)
}

// Cases is the conformance suite of a Witness: each takes one, with groups of its
// own, and at most some seconds of the witness's clock. Cases may run at once.
func Cases() []Case {
	return []Case{
		{"OneHolder", testOneHolder},
		{"LostBeforeAnotherHolds", testLost},
		{"RenewedIsKept", testRenewed},
		{"ReleasedIsFree", testReleased},
		{"Refusals", testRefusals},
	}
}

func acquire(t *testing.T, w witness.Witness, group cbt.ID, holder string) *witness.Lease {
	t.Helper()
	l, err := w.Acquire(t.Context(), group, holder, ttl)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Await asks for group until it is granted, at most for d.
func Await(t *testing.T, w witness.Witness, group cbt.ID, holder string, d time.Duration) *witness.Lease {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	late := time.After(d)
	for {
		l, err := w.Acquire(t.Context(), group, holder, ttl)
		if err == nil {
			return l
		}
		if !errors.Is(err, witness.ErrHeld) {
			t.Fatal(err)
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s is not granted the lease within %v", holder, d)
		}
	}
}

func isLost(l *witness.Lease) bool {
	select {
	case <-l.Lost():
		return true
	default:
		return false
	}
}

// testOneHolder lets many ask at once.
func testOneHolder(t *testing.T, w witness.Witness) {
	group := cbt.NewID()
	var mu sync.Mutex
	var wg sync.WaitGroup
	var granted []string
	for i := range 20 {
		name := fmt.Sprintf("site-%d", i)
		wg.Go(func() {
			_, err := w.Acquire(t.Context(), group, name, ttl)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				granted = append(granted, name)
			} else if !errors.Is(err, witness.ErrHeld) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(granted) != 1 {
		t.Fatalf("%d hold it: %v", len(granted), granted)
	}
	if h, ok, err := w.Holder(t.Context(), group); err != nil || !ok || h != granted[0] {
		t.Errorf("holder %q, %v, %v; %v was granted it", h, ok, err, granted)
	}
	acquire(t, w, cbt.NewID(), "site-1") // another group is another matter
}

// testLost renews nothing: when another is granted the lease, the first one has
// known for some time that it is lost.
func testLost(t *testing.T, w witness.Witness) {
	group := cbt.NewID()
	a := acquire(t, w, group, "a")
	if isLost(a) {
		t.Fatal("lost at once")
	}
	lost := make(chan time.Time, 1)
	go func() { <-a.Lost(); lost <- time.Now() }()
	b := Await(t, w, group, "b", 5*ttl)
	now := time.Now()
	if !isLost(a) {
		t.Fatal("b holds it and a believes to")
	}
	if d := now.Sub(<-lost); d < ttl/8 {
		t.Errorf("a learnt it only %v before", d)
	}
	if b.Token() <= a.Token() {
		t.Errorf("token %d after %d", b.Token(), a.Token())
	}
	if err := a.Renew(t.Context()); !errors.Is(err, witness.ErrLost) {
		t.Errorf("renew what is lost: %v", err)
	}
	if err := a.Release(t.Context()); err != nil {
		t.Errorf("release what is lost: %v", err)
	}
	if h, ok, err := w.Holder(t.Context(), group); err != nil || !ok || h != "b" {
		t.Errorf("a's release moved the lease: %q, %v, %v", h, ok, err)
	}
}

// testRenewed keeps a lease for longer than its ttl.
func testRenewed(t *testing.T, w witness.Witness) {
	group := cbt.NewID()
	a := acquire(t, w, group, "a")
	ctx, cancel := context.WithTimeout(t.Context(), 2*ttl)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- a.KeepAlive(ctx) }()
	tick := time.NewTicker(ttl / 10)
	defer tick.Stop()
	refused := 0
	for ctx.Err() == nil {
		if _, err := w.Acquire(t.Context(), group, "b", ttl); !errors.Is(err, witness.ErrHeld) {
			t.Fatalf("b, while a renews: %v", err)
		}
		refused++
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	if err := <-done; err != nil || isLost(a) {
		t.Errorf("keep alive: %v, lost %v", err, isLost(a))
	}
	if refused < 10 {
		t.Errorf("asked only %d times", refused)
	}
}

func testReleased(t *testing.T, w witness.Witness) {
	group := cbt.NewID()
	a := acquire(t, w, group, "a")
	if err := a.Release(t.Context()); err != nil || !isLost(a) {
		t.Errorf("release: %v, lost %v", err, isLost(a))
	}
	if h, ok, err := w.Holder(t.Context(), group); err != nil || ok {
		t.Errorf("released, held by %q, %v", h, err)
	}
	b := acquire(t, w, group, "b")
	if err := a.Renew(t.Context()); !errors.Is(err, witness.ErrLost) {
		t.Errorf("renew what was released: %v", err)
	}
	if isLost(b) || b.Token() <= a.Token() || time.Until(b.Until()) > ttl {
		t.Errorf("b: lost %v, token %d after %d, until %v", isLost(b), b.Token(), a.Token(), b.Until())
	}
}

func testRefusals(t *testing.T, w witness.Witness) {
	group := cbt.NewID()
	acquire(t, w, group, "a")
	var held *witness.HeldError
	if _, err := w.Acquire(t.Context(), group, "a", ttl); !errors.As(err, &held) || held.Holder != "a" || held.Group != group {
		t.Errorf("an earlier life holds it: %v", err)
	}
	if _, err := w.Acquire(t.Context(), cbt.NewID(), "a", time.Millisecond); !errors.Is(err, witness.ErrTTL) {
		t.Errorf("short ttl: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.Acquire(ctx, cbt.NewID(), "a", ttl); err == nil {
		t.Error("acquired with a context that is over")
	}
	if _, _, err := w.Holder(ctx, group); err == nil {
		t.Error("asked with a context that is over")
	}
}
