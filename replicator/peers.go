package replicator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// peer is one that is configured. It does not change but for keys that it may show as
// well: other keys or another address make another one, and end what ran with this.
type peer struct {
	Peer
	known     atomic.Pointer[[]Pin] // all of its keys
	allowance *allowance
	ctx       context.Context // ends with ErrRevoked when it is configured no more
	revoke    context.CancelCauseFunc
	lanes     atomic.Int32 // that the last session with it used; 0: none yet
}

func (r *Replicator) newPeer(p Peer) *peer {
	ctx, revoke := context.WithCancelCause(context.Background())
	made := &peer{Peer: p, allowance: newAllowance(r.o.Now, p.scheduled(), p.BurstBytes, p.Set), ctx: ctx, revoke: revoke}
	pins := p.pins()
	made.known.Store(&pins)
	return made
}

// pins are those of the moment.
func (p *peer) pins() []Pin { return *p.known.Load() }

// pins are all keys by which p may show itself.
func (p Peer) pins() []Pin {
	if p.Pin.IsZero() {
		return p.AlsoPins
	}
	return append([]Pin{p.Pin}, p.AlsoPins...)
}

// same reports that q is reached as p is, and known by all keys that p is.
func (p *peer) same(q Peer) bool {
	for _, pin := range p.pins() {
		if !slices.Contains(q.pins(), pin) {
			return false
		}
	}
	return p.Name == q.Name && p.Address == q.Address && p.Carrier == q.Carrier && p.Packing == q.Packing && p.MaxConnections == q.MaxConnections
}

// checkPeers judges a set of peers of a site whose own pin is given.
func checkPeers(peers []Peer, own Pin) error {
	names, pins := map[string]bool{}, map[Pin]string{}
	for _, p := range peers {
		if p.Name == "" || names[p.Name] {
			return fmt.Errorf("peer %q: names are unique and not empty", p.Name)
		}
		names[p.Name] = true
		if _, err := ParseCarrier(string(p.Carrier)); err != nil || p.MaxConnections < 0 {
			return fmt.Errorf("peer %s: transport %q with %d connections", p.Name, p.Carrier, p.MaxConnections)
		}
		if len(p.pins()) == 0 {
			return fmt.Errorf("peer %s: a pin is required", p.Name)
		}
		for _, pin := range p.pins() {
			switch {
			case pin.IsZero():
				return fmt.Errorf("peer %s: a pin is required", p.Name)
			case pins[pin] != "":
				return fmt.Errorf("peer %s: has the pin of peer %s", p.Name, pins[pin])
			case pin == own:
				return fmt.Errorf("peer %s: has this site's own pin", p.Name)
			}
			pins[pin] = p.Name
		}
	}
	return nil
}

// SetPeers replaces the peers. Sessions with those that are gone, or whose keys or
// address are others now, end at once; sessions with the others go on.
func (r *Replicator) SetPeers(peers []Peer) error {
	if err := checkPeers(peers, r.self().pin); err != nil {
		return fmt.Errorf("set peers: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var now []*peer
	for _, p := range peers {
		i := slices.IndexFunc(r.peers, func(q *peer) bool { return q.same(p) })
		if i < 0 {
			now = append(now, r.newPeer(p))
			continue
		}
		pins := p.pins()
		r.peers[i].known.Store(&pins)
		r.peers[i].allowance.schedule(p.scheduled(), r.o.Now())
		now = append(now, r.peers[i])
	}
	for _, p := range r.peers {
		if !slices.Contains(now, p) {
			p.revoke(ErrRevoked)
		}
	}
	r.peers = now
	close(r.refreshed)
	r.refreshed = make(chan struct{})
	return nil
}

// peersNow are the peers as of now.
func (r *Replicator) peersNow() []*peer {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.peers)
}

// peerByPin is who may show a key.
func (r *Replicator) peerByPin(pin Pin) *peer {
	for _, p := range r.peersNow() {
		if slices.Contains(p.pins(), pin) {
			return p
		}
	}
	return nil
}

// dialPeers runs one dial loop for each peer that has an address, and follows SetPeers.
func (r *Replicator) dialPeers(ctx context.Context, by carriers) error {
	var loops sync.WaitGroup
	defer loops.Wait()
	running := map[*peer]bool{}
	for {
		refreshed := r.refreshSignal()
		for _, p := range r.peersNow() {
			if p.Address == "" || running[p] {
				continue
			}
			running[p] = true
			loops.Go(func() {
				ctx, stop := until(ctx, p)
				defer stop()
				_ = r.dialLoop(ctx, by, p) // it ends with ctx alone
			})
		}
		for p := range running {
			if p.ctx.Err() != nil {
				delete(running, p)
			}
		}
		select {
		case <-refreshed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// until is ctx, and no longer than p is configured.
func until(ctx context.Context, p *peer) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(p.ctx, func() { cancel(context.Cause(p.ctx)) })
	return ctx, func() { stop(); cancel(nil) }
}

// ErrRevoked: the peer is configured no more, or with other keys.
var ErrRevoked = errors.New("the peer's keys are no longer accepted")

// ErrRekeyed: this site shows another key from now on; sessions begin anew.
var ErrRekeyed = errors.New("this site has another key now")
