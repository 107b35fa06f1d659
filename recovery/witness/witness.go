package witness

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/novacron/afterimage/cbt"
)

// Witness grants leases.
type Witness interface {
	// Acquire takes the lease of group for holder. While one is in force, also
	// one of the same holder, that is a *HeldError. An error that is none leaves
	// open whether a lease was granted; it ends after ttl.
	Acquire(ctx context.Context, group cbt.ID, holder string, ttl time.Duration) (*Lease, error)
	// Holder tells who holds group; ok is false if nobody does.
	Holder(ctx context.Context, group cbt.ID) (holder string, ok bool, err error)
}

// Grant is a Witness's side of a lease.
type Grant interface {
	// Renew makes it live for another ttl from now; ErrLost if it is no more.
	Renew(ctx context.Context) error
	// Release ends it; one that is no more is no error.
	Release(ctx context.Context) error
}

// Lease is the holder's side.
type Lease struct {
	grant Grant
	token uint64
	ttl   time.Duration
	lost  chan struct{}

	mu    sync.Mutex // guards what follows
	until time.Time  // monotonic
	timer *time.Timer
	over  bool // lost is closed
}

// NewLease is for implementations: a lease asked for at from (a reading of
// time.Now before the request was sent) and granted for ttl. token is larger
// than that of every earlier lease of the group.
func NewLease(from time.Time, ttl time.Duration, token uint64, g Grant) *Lease {
	l := &Lease{grant: g, token: token, ttl: ttl, lost: make(chan struct{}), until: from.Add(ttl - margin(ttl))}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.timer = time.AfterFunc(time.Until(l.until), l.expire)
	return l
}

// margin is what the holder believes less than the witness grants.
func margin(ttl time.Duration) time.Duration { return ttl / 4 }

// CheckTTL is for implementations.
func CheckTTL(ttl time.Duration) error {
	if ttl < MinTTL {
		return fmt.Errorf("acquire lease for %v: %w", ttl, ErrTTL)
	}
	return nil
}

// expire ends the belief if it is over by now: a renewal may have moved the end
// while the timer fired.
func (l *Lease) expire() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expireLocked()
}

func (l *Lease) expireLocked() {
	if left := time.Until(l.until); left > 0 && !l.over {
		l.timer.Reset(left)
		return
	}
	l.loseLocked()
}

func (l *Lease) lose() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.loseLocked()
}

func (l *Lease) loseLocked() {
	if !l.over {
		l.over = true
		l.timer.Stop()
		close(l.lost)
	}
}

// Lost is closed once the lease must not be relied on any more.
func (l *Lease) Lost() <-chan struct{} { return l.lost }

// Until is when the lease is lost if nothing renews it.
func (l *Lease) Until() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.until
}

// Token grows with every lease of a group: a fence for what it guards.
func (l *Lease) Token() uint64 { return l.token }

// Renew makes the lease live for another ttl from the call on. After an error
// other than ErrLost the lease is what it was.
func (l *Lease) Renew(ctx context.Context) error {
	from := time.Now()
	select {
	case <-l.lost:
		return fmt.Errorf("renew lease: %w", ErrLost)
	default:
	}
	err := l.grant.Renew(ctx)
	if errors.Is(err, ErrLost) {
		l.lose()
	}
	if err != nil {
		return fmt.Errorf("renew lease: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expireLocked() // the reply may have taken longer than the belief
	if l.over {
		return fmt.Errorf("renew lease: the reply came too late: %w", ErrLost)
	}
	if until := from.Add(l.ttl - margin(l.ttl)); until.After(l.until) {
		l.until = until
	}
	return nil
}

// KeepAlive renews l until ctx ends, and then returns nil; or until it is lost:
// ErrLost, with the last reason. It tries again through errors of the witness.
func (l *Lease) KeepAlive(ctx context.Context) error {
	tick := time.NewTicker(l.ttl / 8)
	defer tick.Stop()
	var last error
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.lost:
			return errors.Join(ErrLost, last)
		case <-tick.C:
			try, cancel := context.WithTimeout(ctx, min(l.ttl/4, time.Until(l.Until())))
			err := l.Renew(try)
			cancel()
			// That time is over says less than what the witness answered before.
			if vague := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrLost); last == nil || !vague {
				last = err
			}
		}
	}
}

// Release gives the lease up. The belief ends first; if the witness cannot be
// told, others wait for the ttl.
func (l *Lease) Release(ctx context.Context) error {
	l.lose()
	if err := l.grant.Release(ctx); err != nil {
		return fmt.Errorf("release lease: %w", err)
	}
	return nil
}
