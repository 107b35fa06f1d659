package replicator

import (
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/replicator/replicatortest"
	"github.com/novacron/afterimage/replicator/transport/stormtest"
)

// held is a replica that appends nothing while it is held up.
type held struct {
	*replicatortest.Journal
	gate chan struct{} // a token lets one frame in; closed: all
}

func (h *held) AppendFrame(ctx context.Context, r io.Reader, n int64, claimed journal.Chain) (journal.Cursor, bool, error) {
	select {
	case <-h.gate:
	case <-ctx.Done():
		return journal.Cursor{}, false, context.Cause(ctx)
	}
	return h.Journal.AppendFrame(ctx, r, n, claimed)
}

const (
	redialTrip  = 50 * time.Millisecond // there and back
	redialFrame = 16 << 10
	redialEvery = 5 * time.Millisecond
	redialHeld  = 40 // frames that wait at the replica when the session is lost
)

// heldPair is two sites with a path between them that takes its time.
type heldPair struct {
	net  *stormtest.Network
	a, b *endpoint
	from *replicatortest.Journal
	to   *held
}

// newHeldPair starts them, inside a bubble; the epoch is let in.
func newHeldPair(t *testing.T, plant faults) *heldPair {
	p := makeHeldPair(t)
	p.up(plant)
	return p
}

func makeHeldPair(t *testing.T) *heldPair {
	p := &heldPair{net: stormtest.New(1), a: newEndpoint(t, "a"), b: newEndpoint(t, "b")}
	p.net.Set(stormtest.Weather{Least: redialTrip / 2, Most: redialTrip / 2})
	id := replicatortest.NewIdentity()
	p.from, p.to = replicatortest.New(id, "a"), &held{replicatortest.New(id, "b"), make(chan struct{}, 1<<20)}
	p.from.BeginEpoch(0, time.Now())
	for _, e := range []*endpoint{p.a, p.b} {
		e.o.Transport, e.o.Listen = p.net.Open, e.o.Site+":1"
		e.o.HeartbeatInterval, e.o.PingInterval, e.o.RetryFirst, e.o.RetryLimit, e.o.HandshakeTimeout = 0, 0, 0, 0, 0 // as shipped
	}
	p.a.o.Peers = []Peer{{Name: "b", Address: "b:1", Pin: p.b.o.Identity.Pin()}}
	p.a.o.Groups = func() []Group {
		return []Group{{Tenant: tenant, Name: group, Source: JournalSource(p.from), Peers: []string{"b"}}}
	}
	p.b.o.Peers = []Peer{{Name: "a", Pin: p.a.o.Identity.Pin()}}
	p.b.o.Receive = func(string, journal.Identity, string, string) (Replica, error) { return p.to, nil }
	p.to.gate <- struct{}{} // for the epoch
	return p
}

func (p *heldPair) up(plant faults) {
	p.b.up(plant)
	p.a.up(plant)
}

// lose has the source alone lose the session, which has lived for a while.
func (p *heldPair) lose() {
	<-time.After(redialTrip)
	p.net.Break("a:1", "b:1")
}

// loseSession runs a session that is lost under load at both ends at once, while frames
// wait at the replica: it says how long it took until all was durable there that was
// captured when it was lost, and how many bytes were sent in all beyond those captured.
func loseSession(t *testing.T, plant faults) (took time.Duration, again int64) {
	synctest.Test(t, func(t *testing.T) {
		p := newHeldPair(t, plant)
		net, from, to, a, b := p.net, p.from, p.to, p.a, p.b
		captured := int64(0)
		write := func(n int, let bool) {
			for range n {
				captured += redialFrame
				from.Append(make([]byte, redialFrame), 1, time.Now())
				if let {
					to.gate <- struct{}{}
				}
				<-time.After(redialEvery)
			}
		}
		write(1000, true)
		eventually(t, "level", func() bool { return to.Head().Durable == from.Head().Durable })
		write(redialHeld, false)
		<-time.After(redialTrip)
		from.Append(make([]byte, redialFrame), 1, time.Now()) // it is on its way
		want, lost := from.Head().Durable, time.Now()
		net.Break("a:1", "b:1")
		net.Break("b:1", "a:1")
		synctest.Wait() // both ends know
		close(to.gate)
		eventually(t, "what was captured is durable", func() bool { return to.Head().Durable == want })
		took = time.Since(lost)
		captured += redialFrame
		write(20, false)
		eventually(t, "level again", func() bool { return to.Head().Durable == from.Head().Durable })
		again = int64(a.lag().JournalBytes) - int64(from.Head().Bytes)
		t.Logf("durable %v after the loss; %d of %d bytes were sent again", took, again, captured)
		if a.streaming != 2 || b.streaming != 2 {
			t.Errorf("%d and %d sessions, want two", a.streaming, b.streaming)
		}
	})
	return took, again
}

// A session that is lost costs less than a heartbeat, and nothing is sent again that has
// come: not while it was being appended, either.
func TestLostSessionBeginsAnewAtOnce(t *testing.T) {
	took, again := loseSession(t, faults{})
	if limit := (250 * time.Millisecond); took >= limit {
		t.Errorf("it took %v, want less than a heartbeat, %v", took, limit)
	}
	if again > 2*redialFrame { // what was on its way
		t.Errorf("%d bytes were sent again", again)
	}
	if _, again := loseSession(t, faults{dropArrived: true}); again < redialHeld*redialFrame {
		t.Errorf("where what has come is dropped, %d bytes are sent again", again)
	}
}
