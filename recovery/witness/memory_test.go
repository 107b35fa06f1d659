package witness_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery/witness"
	"github.com/novacron/afterimage/recovery/witness/witnesstest"
)

func TestMemoryConforms(t *testing.T) {
	for _, c := range witnesstest.Cases() {
		t.Run(c.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { c.Test(t, new(witnesstest.Memory)) })
		})
	}
}

// A holder that is cut off keeps trying, learns its loss at the moment it was
// promised, and does not come back when the witness does.
func TestCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, group, ttl := new(witnesstest.Memory), cbt.NewID(), 8*time.Second
		l, err := m.Acquire(t.Context(), group, "a", ttl)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- l.KeepAlive(context.Background()) }()
		<-time.After(20*time.Second + time.Millisecond) // renewed last at 20 s
		m.Cut(true)
		<-time.After(2 * time.Second)
		m.Cut(false)
		<-time.After(2 * time.Second)
		select {
		case <-l.Lost():
			t.Fatal("a short cut costs the lease")
		default:
		}
		m.Cut(true)
		from := time.Now()
		<-l.Lost()
		if d := time.Since(from); d > ttl*3/4 || d < ttl/2 {
			t.Errorf("lost after %v", d)
		}
		if err := <-done; !errors.Is(err, witness.ErrLost) || !errors.Is(err, witnesstest.ErrUnreachable) {
			t.Errorf("keep alive: %v", err)
		}
		m.Cut(false)
		if err := l.Renew(t.Context()); !errors.Is(err, witness.ErrLost) {
			t.Errorf("renewed after the loss: %v", err)
		}
	})
}

// slow is a witness whose replies take longer than the lease.
type slow struct{}

func (slow) Renew(context.Context) error   { <-time.After(10 * time.Second); return nil }
func (slow) Release(context.Context) error { return nil }

func TestALateReplyRevivesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := witness.NewLease(time.Now(), 8*time.Second, 1, slow{})
		if err := l.Renew(t.Context()); !errors.Is(err, witness.ErrLost) {
			t.Errorf("%v", err)
		}
		<-l.Lost()
	})
}
