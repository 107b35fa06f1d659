package site

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery/witness"
)

// sustained is a Witness whose leases also live on what all peers of the group promise: a
// peer that is asked with the ttl takes nothing over for that long, by its own clock from
// when it was asked. So the belief of a lease counts alike, whoever has renewed it.
type sustained struct {
	w        *witness.Etcd
	saved    witness.Saved // of an earlier life; zero: none
	may      func(last string, at int64) error
	promised func(ctx context.Context, ttl time.Duration) error
	note     func(witness.Saved)

	grant *sustainedGrant
}

var _ witness.Witness = (*sustained)(nil)

// Holder implements witness.Witness.
func (s *sustained) Holder(ctx context.Context, group cbt.ID) (string, bool, error) {
	return s.w.Holder(ctx, group)
}

// Acquire implements witness.Witness: an earlier life's lease that lives is adopted.
func (s *sustained) Acquire(ctx context.Context, group cbt.ID, holder string, ttl time.Duration) (*witness.Lease, error) {
	from := time.Now()
	var inner *witness.Lease
	if s.saved.ID != 0 && s.saved.TTL == ttl {
		if l, err := s.w.Adopt(ctx, group, s.saved); err == nil {
			inner = l
		}
	}
	if inner == nil {
		last, at, err := s.w.LastAt(ctx, group)
		if err != nil {
			return nil, err
		}
		if err := s.may(last, at); err != nil {
			return nil, err
		}
		from = time.Now()
		if inner, err = s.w.AcquireAfter(ctx, group, holder, ttl, last); err != nil {
			return nil, err
		}
	}
	s.grant = &sustainedGrant{s: s, group: group, holder: holder, ttl: ttl, inner: inner}
	return witness.NewLease(from, ttl, inner.Token(), s.grant), nil
}

// noteNow tells which lease it is.
func (s *sustained) noteNow() {
	if s.grant != nil {
		s.note(s.w.Save(s.grant.inner))
	}
}

type sustainedGrant struct {
	s      *sustained
	group  cbt.ID
	holder string
	ttl    time.Duration

	mu      sync.Mutex // guards all below
	inner   *witness.Lease
	onPeers bool // peers have promised since the witness last renewed
}

// Renew implements witness.Grant.
func (g *sustainedGrant) Renew(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	asked, cancel := context.WithTimeout(ctx, g.ttl/8)
	err := g.inner.Renew(asked)
	if errors.Is(err, witness.ErrLost) && g.onPeers {
		err = g.again(asked)
	}
	cancel()
	var held *witness.HeldError
	switch {
	case err == nil:
		g.onPeers = false
		return nil
	case errors.Is(err, witness.ErrLost) && !g.onPeers:
		return err
	case errors.As(err, &held) && held.Holder != g.holder:
		return errors.Join(witness.ErrLost, err)
	}
	if promised := g.s.promised(ctx, g.ttl); promised != nil {
		return errors.Join(err, promised)
	}
	g.onPeers = true
	return nil
}

// again takes a lease for the one that ended while the peers promised.
func (g *sustainedGrant) again(ctx context.Context) error {
	l, err := g.s.w.AcquireAfter(ctx, g.group, g.holder, g.ttl, g.holder)
	if err != nil {
		return err
	}
	g.inner = l
	g.s.note(g.s.w.Save(l))
	return nil
}

// Release implements witness.Grant.
func (g *sustainedGrant) Release(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.inner.Release(ctx)
}
