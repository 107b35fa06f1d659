package replicator

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/replicator/replicatortest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a condition may take on a slow machine; none needs it.
const patience = time.Minute

// eventually polls ok until it holds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

func mustIdentity(t testing.TB) *Identity {
	t.Helper()
	id, err := NewIdentity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// endpoint is one site: options, and a replicator while it is up.
type endpoint struct {
	t    testing.TB
	o    Options
	rep  *Replicator
	stop func()

	mu        sync.Mutex // guards all below
	unpinned  []*PinError
	conflicts []*Conflict
	downs     []error
	ended     []error
	streaming int
}

func newEndpoint(t testing.TB, name string) *endpoint {
	e := &endpoint{t: t}
	// Bytes that cross are counted and timed: by themselves they are not made fewer.
	e.o = Options{Site: name, Identity: mustIdentity(t), Packing: PackOff, HeartbeatInterval: 5 * time.Millisecond, PingInterval: 10 * time.Millisecond,
		IdleTimeout: 2 * time.Second, RetryFirst: 2 * time.Millisecond, RetryLimit: 50 * time.Millisecond, HandshakeTimeout: 2 * time.Second}
	e.o.Events = Events{
		Unpinned:     func(err *PinError) { e.note(func() { e.unpinned = append(e.unpinned, err) }) },
		Conflict:     func(c *Conflict) { e.note(func() { e.conflicts = append(e.conflicts, c) }) },
		Disconnected: func(_ string, _ bool, err error) { e.note(func() { e.downs = append(e.downs, err) }) },
		Ended:        func(_ string, _ Direction, _, _ string, err error) { e.note(func() { e.ended = append(e.ended, err) }) },
		Streaming:    func(string, Direction, string, string, journal.Cursor) { e.note(func() { e.streaming++ }) },
	}
	t.Cleanup(e.down)
	return e
}

func (e *endpoint) note(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f()
}

// up starts the site and returns its address.
func (e *endpoint) up(plant faults) string {
	e.t.Helper()
	rep, err := New(e.o)
	if err != nil {
		e.t.Fatal(err)
	}
	rep.faults = plant
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- rep.Run(ctx) }()
	e.rep = rep
	e.stop = func() {
		cancel()
		if err := <-done; err != nil {
			e.t.Errorf("run %s: %v", e.o.Site, err)
		}
	}
	eventually(e.t, "socket is bound", func() bool { return rep.Addr() != nil })
	return rep.Addr().String()
}

// down ends the site and waits for all of it.
func (e *endpoint) down() {
	if e.stop != nil {
		e.stop()
		e.stop = nil
	}
}

func (e *endpoint) lag() Lag {
	if lags := e.rep.Lags(); len(lags) > 0 {
		return lags[0]
	}
	return Lag{RPO: UnknownRPO}
}

// pair is a group at its primary, and its replica behind a link that can be cut.
type pair struct {
	testing.TB
	source, replica *endpoint
	from, to        *replicatortest.Journal
	relay           *relay
	plant           faults
}

const (
	tenant = "default"
	group  = "web"
)

// newPair makes both sites; nothing runs yet, so that a test can change options.
func newPair(t testing.TB) *pair {
	t.Helper()
	id := replicatortest.NewIdentity()
	p := &pair{TB: t, source: newEndpoint(t, "a"), replica: newEndpoint(t, "b"),
		from: replicatortest.New(id, "a"), to: replicatortest.New(id, "b"), relay: newRelay(t)}
	p.from.BeginEpoch(0, time.Now())
	p.source.o.Peers = []Peer{{Name: "b", Address: p.relay.address(), Pin: p.replica.o.Identity.Pin()}}
	p.source.o.Groups = func() []Group {
		return []Group{{Tenant: tenant, Name: group, Source: JournalSource(p.from), Peers: []string{"b"}}}
	}
	p.replica.o.Peers = []Peer{{Name: "a", Pin: p.source.o.Identity.Pin()}}
	p.replica.o.Receive = func(peer string, got journal.Identity, te, gr string) (Replica, error) {
		if peer != "a" || got != id || te != tenant || gr != group {
			return nil, ErrUnknownGroup
		}
		return p.to, nil
	}
	p.replica.o.Listen = "127.0.0.1:0"
	return p
}

func (p *pair) up() {
	p.Helper()
	p.upReplica()
	p.source.up(p.plant)
}

func (p *pair) upReplica() {
	p.Helper()
	p.relay.forwardTo(p.replica.up(p.plant))
}

// caughtUp waits until the replica holds durably all that the source does.
func (p *pair) caughtUp() {
	p.Helper()
	want := p.from.Head().Durable
	defer func() {
		if p.Failed() {
			p.Logf("source %+v", p.source.lag())
			p.Logf("replica at %+v: %+v", p.to.Head(), p.replica.lag())
		}
	}()
	eventually(p.TB, "replica caught up", func() bool { return p.to.Head().Durable == want })
	p.sameFrames()
}

func (p *pair) sameFrames() {
	p.Helper()
	from, to := p.from.Frames(), p.to.Frames()
	if len(to) > len(from) {
		p.Fatalf("replica holds %d frames, source %d", len(to), len(from))
	}
	for i := range to {
		if from[i].Chain != to[i].Chain {
			p.Fatalf("frame %d differs: %v..%v here, %v..%v there", i, from[i].First, from[i].Last, to[i].First, to[i].Last)
		}
	}
}

// relay is a UDP link that can be cut. Its address stays while its far end moves.
type relay struct {
	t     testing.TB
	front *net.UDPConn
	cut   atomic.Bool
	wg    sync.WaitGroup

	mu     sync.Mutex // guards all below
	target *net.UDPAddr
	flows  map[string]*net.UDPConn
}

func newRelay(t testing.TB) *relay {
	t.Helper()
	front, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{t: t, front: front, flows: map[string]*net.UDPConn{}}
	r.wg.Go(r.run)
	t.Cleanup(r.close)
	return r
}

func (r *relay) address() string { return r.front.LocalAddr().String() }

func (r *relay) forwardTo(address string) {
	a, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.target = a
	for k, f := range r.flows {
		f.Close()
		delete(r.flows, k)
	}
}

func (r *relay) run() {
	buf := make([]byte, 65536)
	for {
		n, client, err := r.front.ReadFromUDP(buf)
		if err != nil {
			return
		}
		if r.cut.Load() {
			continue
		}
		if f := r.flow(client); f != nil {
			_, _ = f.Write(buf[:n]) // a lost packet is what a relay may do
		}
	}
}

func (r *relay) flow(client *net.UDPAddr) *net.UDPConn {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f := r.flows[client.String()]; f != nil || r.target == nil {
		return f
	}
	f, err := net.DialUDP("udp", nil, r.target)
	if err != nil {
		return nil
	}
	r.flows[client.String()] = f
	r.wg.Go(func() {
		buf := make([]byte, 65536)
		for {
			n, err := f.Read(buf)
			if err != nil {
				if ne, ok := err.(*net.OpError); ok && ne.Err == net.ErrClosed {
					return
				}
				if _, err := f.Write(nil); err != nil {
					return // closed; a refused packet does not end the flow
				}
				continue
			}
			if !r.cut.Load() {
				_, _ = r.front.WriteToUDP(buf[:n], client) // likewise
			}
		}
	})
	return f
}

func (r *relay) close() {
	r.front.Close()
	r.mu.Lock()
	for _, f := range r.flows {
		f.Close()
	}
	r.mu.Unlock()
	r.wg.Wait()
}
