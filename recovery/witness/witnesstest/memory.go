package witnesstest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery/witness"
)

// ErrUnreachable is what a Memory that was cut off returns.
var ErrUnreachable = errors.New("the witness is unreachable")

// Memory is a Witness in memory, by the clock of time.Now. The zero Memory works.
type Memory struct {
	mu     sync.Mutex // guards what follows
	held   map[cbt.ID]*grant
	tokens uint64
	cut    bool
}

var _ witness.Witness = (*Memory)(nil)

type grant struct {
	m      *Memory
	group  cbt.ID
	holder string
	ttl    time.Duration
	until  time.Time
}

// Cut makes every call fail until Cut(false); leases go on ending.
func (m *Memory) Cut(cut bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cut = cut
}

// begin checks a call and forgets what has ended; m.mu is held.
func (m *Memory) begin(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if m.cut {
		return ErrUnreachable
	}
	for id, g := range m.held {
		if !time.Now().Before(g.until) {
			delete(m.held, id)
		}
	}
	return nil
}

// Acquire implements witness.Witness.
func (m *Memory) Acquire(ctx context.Context, group cbt.ID, holder string, ttl time.Duration) (*witness.Lease, error) {
	if err := witness.CheckTTL(ttl); err != nil {
		return nil, err
	}
	from := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.begin(ctx); err != nil {
		return nil, fmt.Errorf("acquire lease: %w", err)
	}
	if g := m.held[group]; g != nil {
		return nil, &witness.HeldError{Group: group, Holder: g.holder}
	}
	if m.held == nil {
		m.held = make(map[cbt.ID]*grant)
	}
	g := &grant{m, group, holder, ttl, time.Now().Add(ttl)}
	m.held[group] = g
	m.tokens++
	return witness.NewLease(from, ttl, m.tokens, g), nil
}

// Holder implements witness.Witness.
func (m *Memory) Holder(ctx context.Context, group cbt.ID) (string, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.begin(ctx); err != nil {
		return "", false, fmt.Errorf("holder: %w", err)
	}
	if g := m.held[group]; g != nil {
		return g.holder, true, nil
	}
	return "", false, nil
}

// Renew implements witness.Grant.
func (g *grant) Renew(ctx context.Context) error {
	g.m.mu.Lock()
	defer g.m.mu.Unlock()
	if err := g.m.begin(ctx); err != nil {
		return err
	}
	if g.m.held[g.group] != g {
		return witness.ErrLost
	}
	g.until = time.Now().Add(g.ttl)
	return nil
}

// Release implements witness.Grant.
func (g *grant) Release(ctx context.Context) error {
	g.m.mu.Lock()
	defer g.m.mu.Unlock()
	if err := g.m.begin(ctx); err != nil {
		return err
	}
	if g.m.held[g.group] == g {
		delete(g.m.held, g.group)
	}
	return nil
}
