package replicator

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/replicator/replicatortest"
)

func (e *endpoint) conflictCount() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.conflicts)
}

// Promise 11: both sides wrote after the fork. It is found at first contact, told
// at both ends with both histories, and not tried again and again.
func TestSplitBrainHaltsBothWays(t *testing.T) {
	p := newPair(t)
	p.up()
	p.load(3, 2, 100)
	p.caughtUp()
	p.replica.down()
	fork := p.to.Head().Position
	reign := p.to.BeginEpoch(fork.Seq, time.Now()) // failover at b
	p.load(3, 2, 100)                              // a writes on
	before := p.to.Head()
	p.upReplica()
	for _, e := range []*endpoint{p.source, p.replica} {
		eventually(t, e.o.Site+" reports the conflict", func() bool { return e.conflictCount() > 0 })
		e.mu.Lock()
		c := e.conflicts[0]
		e.mu.Unlock()
		if c.Common.Position != fork || len(c.Ours) == 0 || len(c.Theirs) == 0 || c.Cause != nil {
			t.Errorf("%s: %v, want a fork after %v", e.o.Site, c, fork)
		}
		heads := map[journal.EpochID]bool{c.OursHead: true, c.TheirsHead: true}
		if !heads[reign] || !heads[p.from.Head().Epoch] {
			t.Errorf("%s: heads %v, want both reigns", e.o.Site, heads)
		}
		eventually(t, e.o.Site+" shows the halt", func() bool {
			l := e.lag()
			var c *Conflict
			return l.State == StateHalted && errors.As(l.Err, &c)
		})
	}
	tick := time.NewTicker(20 * p.source.o.HeartbeatInterval)
	defer tick.Stop()
	<-tick.C
	if n := p.replica.conflictCount(); n != 1 {
		t.Errorf("compared %d times, want once", n)
	}
	if p.to.Head() != before {
		t.Error("a record of the lower epoch was taken")
	}
}

// A source that lost what its replica holds says so.
func TestLostHistoryIsNoTornTail(t *testing.T) {
	p := newPair(t)
	p.up()
	p.load(2, 1, 100)
	p.caughtUp()
	p.source.down()
	p.from.ManualSync()
	p.load(3, 1, 100)
	lost := p.from.Frames()
	for _, f := range lost[len(p.to.Frames()):] {
		if _, _, err := p.to.AppendFrame(t.Context(), bytesReader(f.Bytes), int64(len(f.Bytes)), f.Chain); err != nil {
			t.Fatal(err)
		}
	}
	p.to.Sync()
	p.from.Crash()
	p.source.up(faults{})
	eventually(t, "told", func() bool { return errors.Is(p.source.lag().Err, ErrHistoryLost) })
	eventually(t, "told there", func() bool { return errors.Is(p.replica.lag().Err, ErrHistoryLost) })
}

// A replica with a tail beyond the fork keeps it as a branch and follows the new reign.
func TestReplicaWithATailFollowsTheNewReign(t *testing.T) {
	p := newPair(t)
	p.up()
	p.load(6, 1, 100)
	p.caughtUp()
	p.source.down()
	p.from.BeginEpoch(p.from.Head().Seq-2, time.Now())
	p.load(1, 1, 100)
	p.source.up(faults{})
	p.caughtUp()
	if n := len(p.to.Branches()); n != 2 {
		t.Errorf("replica knows %d branches, want 2", n)
	}
	eventually(t, "source knows", func() bool { l := p.source.lag(); return l.Known && l.Records == 0 })
}

// A new epoch of a running source is replicated without anybody's help, and the
// lag never claims records of the branch that was left.
func TestNewEpochWhileStreaming(t *testing.T) {
	p := newPair(t)
	p.up()
	for range 5 {
		p.load(4, 1, 100)
		p.caughtUp()
		p.from.BeginEpoch(p.from.Head().Seq-1, time.Now())
		if l := p.source.lag(); l.Records == 0 && p.to.Head().Epoch != p.from.Head().Epoch {
			t.Fatalf("shows nothing behind right after a fork: head %v, durable %v", l.Head, l.Durable.Position)
		}
		p.load(2, 1, 100)
		p.caughtUp()
		eventually(t, "source knows", func() bool { l := p.source.lag(); return l.Known && l.Records == 0 && l.State == StateStreaming })
	}
}

// Failover: the replica becomes primary while frames come in; then the way back.
func TestRolesChangeAtRunTime(t *testing.T) {
	p := newPair(t)
	var promoted, demoted atomic.Bool
	receive := p.replica.o.Receive
	p.replica.o.Receive = func(peer string, id journal.Identity, te, gr string) (Replica, error) {
		if promoted.Load() {
			return p.to, fmt.Errorf("group %s: %w", gr, ErrNotReplica)
		}
		return receive(peer, id, te, gr)
	}
	p.replica.o.Groups = func() []Group {
		if !promoted.Load() {
			return nil
		}
		return []Group{{Tenant: tenant, Name: group, Source: JournalSource(p.to), Peers: []string{"a"}}}
	}
	groups := p.source.o.Groups
	p.source.o.Groups = func() []Group {
		if demoted.Load() {
			return nil
		}
		return groups()
	}
	p.source.o.Receive = func(string, journal.Identity, string, string) (Replica, error) {
		if !demoted.Load() {
			return p.from, ErrNotReplica
		}
		return p.from, nil
	}
	p.source.o.Listen = "127.0.0.1:0"
	back := p.source.up(faults{})
	p.replica.o.Peers[0].Address = back
	p.upReplica()
	p.load(5, 1, 100)
	p.caughtUp()

	promoted.Store(true)
	fork := p.to.Head().Seq
	p.to.BeginEpoch(fork, time.Now())
	p.replica.rep.Refresh()
	p.load(2, 1, 100) // the old primary writes on: a branch
	halted := func(e *endpoint) func() bool {
		return func() bool { return e.conflictCount() > 0 }
	}
	eventually(t, "old primary is halted", halted(p.source))
	eventually(t, "new primary is halted", halted(p.replica))
	if p.from.Head().Number != 1 {
		t.Fatal("the old primary took the new reign while it was primary")
	}

	demoted.Store(true)
	p.source.rep.Refresh()
	p.replica.rep.Refresh()
	p.to.Append([]byte("by the new primary"), 1, time.Now())
	eventually(t, "old primary follows", func() bool { return p.from.Head().Position == p.to.Head().Position })
}

// Two sites that both claim the same history do not feed each other.
func TestPrimaryTakesNothing(t *testing.T) {
	p := newPair(t)
	p.up()
	p.caughtUp()
	p.replica.down()
	p.replica.o.Receive = func(string, journal.Identity, string, string) (Replica, error) { return p.to, ErrNotReplica }
	p.upReplica()
	eventually(t, "refused", func() bool { return errors.Is(p.source.lag().Err, ErrNotReplica) })
}

func TestWrongJournalIsRefused(t *testing.T) {
	p := newPair(t)
	other := replicatortest.New(replicatortest.NewIdentity(), "b")
	p.replica.o.Receive = func(string, journal.Identity, string, string) (Replica, error) { return other, nil }
	p.up()
	eventually(t, "refused", func() bool { return errors.Is(p.source.lag().Err, ErrUnknownGroup) })
}

// A damaged frame is refused by the replica, named at the source, and sent again.
func TestDamageIsReportedAndSentAgain(t *testing.T) {
	p := newPair(t)
	bad := &flipped{Journal: p.from}
	bad.flip.Store(true)
	p.source.o.Groups = func() []Group {
		return []Group{{Tenant: tenant, Name: group, Source: JournalSource(bad), Peers: []string{"b"}}}
	}
	p.load(3, 1, 1000)
	p.up()
	eventually(t, "reported", func() bool {
		var refused *RefusedError
		return errors.As(p.source.lag().Err, &refused) && refused.Code == CodeDamage
	})
	bad.flip.Store(false)
	p.caughtUp()
}
