package witness_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery/witness"
)

// Who took the newest lease stays written until it gives the right back; a lease may be
// taken after one that is named, and goes on in another life of its holder.
func TestLastHolderAndAdoption(t *testing.T) {
	w := startEtcd(t).open(t)
	ctx, group := context.Background(), cbt.NewID()
	last := func(want string) {
		t.Helper()
		if got, err := w.Last(ctx, group); err != nil || got != want {
			t.Errorf("last %q, %v, want %q", got, err, want)
		}
	}
	last("")
	const ttl = time.Minute
	l, err := w.AcquireAfter(ctx, group, "a", ttl, "")
	if err != nil {
		t.Fatal(err)
	}
	last("a")
	saved := w.Save(l)
	if _, err := w.AcquireAfter(ctx, group, "b", ttl, "a"); !errors.Is(err, witness.ErrHeld) {
		t.Errorf("while it is held: %v", err)
	}
	again, err := w.Adopt(ctx, group, saved)
	if err != nil || again.Token() != l.Token() || w.Save(again) != saved {
		t.Fatalf("adopted %+v, %v", saved, err)
	}
	if err := again.Release(ctx); err != nil { // lost, not given back
		t.Fatal(err)
	}
	last("a")
	if _, err := w.Adopt(ctx, group, saved); !errors.Is(err, witness.ErrLost) {
		t.Errorf("a lease that has ended is adopted: %v", err)
	}
	for _, wrong := range []string{"", "c"} {
		if _, err := w.AcquireAfter(ctx, group, "b", ttl, wrong); !errors.Is(err, witness.ErrHeld) {
			t.Errorf("after %q: %v", wrong, err)
		}
	}
	if err := w.Hand(ctx, group, "b", ""); err != nil { // not b's to give
		t.Fatal(err)
	}
	last("a")
	taken, err := w.AcquireAfter(ctx, group, "b", ttl, "a")
	if err != nil || taken.Token() <= l.Token() {
		t.Fatalf("token %v, %v", taken, err)
	}
	last("b")
	if err := w.Hand(ctx, group, "b", ""); err != nil {
		t.Fatal(err)
	}
	last("")
	if err := taken.Release(ctx); err != nil {
		t.Fatal(err)
	}
}
