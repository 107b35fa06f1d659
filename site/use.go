package site

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/novacron/afterimage/site/fault"
)

// openingLimit is how long a command waits for a group that is being opened.
const openingLimit = 10 * time.Second

// use gives the open journal until the returned function is called; it must be.
// The life's context ends when the journal is to be closed.
func (g *group) use() (*life, func(), error) {
	l, release, _, err := g.tryUse()
	return l, release, err
}

// await is use for who may wait: a group that is being opened is waited for.
func (g *group) await(ctx context.Context) (*life, func(), error) {
	ctx, cancel := context.WithTimeout(ctx, openingLimit)
	defer cancel()
	for {
		l, release, turn, err := g.tryUse()
		if turn == nil {
			return l, release, err
		}
		select {
		case <-turn:
		case <-ctx.Done():
			return nil, nil, err
		}
	}
}

// tryUse is use; where the group is being opened, turn tells when that changes.
func (g *group) tryUse() (l *life, release func(), turn <-chan struct{}, err error) {
	g.mu.Lock()
	l, failure, retry, turn := g.life, g.failure, g.retry, g.turn
	g.mu.Unlock()
	what := "use group " + g.cfg.Ref()
	if l == nil && failure == nil {
		return nil, nil, turn, fault.New(fault.GroupFailed, what, "it is being opened").Advise("Try again in a moment.")
	}
	if l == nil {
		why := failure.Why
		if !retry.IsZero() {
			why += fmt.Sprintf(" (tried again at %s)", retry.Format(timeLayout))
		}
		return nil, nil, nil, &fault.Error{Code: fault.GroupFailed, What: what, Why: string(failure.Code) + ": " + why, Hint: failure.Advice(), Err: failure}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		return nil, nil, nil, fault.New(fault.GroupFailed, what, "it is being closed").Advise("Try again in a moment.")
	}
	l.users.Add(1)
	return l, sync.OnceFunc(l.users.Done), nil, nil
}

// reignOf is the reign of a life that captures. One that is about to begin is
// waited for; where the group is a replica there is none.
func (l *life) reignOf(ctx context.Context) *reign {
	ctx, cancel := context.WithTimeout(ctx, openingLimit)
	defer cancel()
	for {
		begins := l.site.reignSignal()
		if r := l.reigning(); r != nil || !l.roleNow().Role.Captures() {
			return r
		}
		select {
		case <-begins:
		case <-l.ctx.Done():
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}
