package replicator

import (
	"context"
	"sync"
	"time"

	"github.com/novacron/afterimage/replicator/transport"
)

// run opens lanes, as many as the plan wants, and sends over them until ctx ends.
func (l *lanes) run(ctx context.Context) error {
	var sending sync.WaitGroup
	defer sending.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer l.stop(ctx)
	tick := time.NewTicker(tickLeast)
	defer tick.Stop()
	for {
		l.open(ctx, &sending)
		select {
		case <-tick.C:
			tick.Reset(l.tick())
		case <-l.conn.Done():
			return nil // others say why
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// stop ends all flows and lanes.
func (l *lanes) stop(ctx context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = context.Cause(ctx)
	if l.err == nil {
		l.err = ErrNotConnected
	}
	for _, f := range l.flows {
		f.stopLocked(l.err)
	}
	for _, x := range l.live {
		x.to.Cancel()
	}
	l.wakeAllLocked()
}

// openAtOnce are the lanes that are being opened at most: more would be taken for a flood.
const openAtOnce = 16

// open opens lanes until there are as many as are wanted, each in a goroutine.
func (l *lanes) open(ctx context.Context, sending *sync.WaitGroup) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.live)+l.opening < l.wanted && l.opening < openAtOnce && l.err == nil {
		l.opening++
		sending.Go(func() {
			to, err := l.conn.OpenLane(ctx)
			if x := l.opened(to, err); x != nil {
				sent := make(chan struct{})
				sending.Go(func() { // what it carried may be the last for long: no write would tell
					select {
					case <-to.Gone():
						l.lost(x, true)
					case <-sent:
					}
				})
				l.open(ctx, sending)
				l.send(x)
				close(sent)
			}
		})
	}
}

// opened makes a lane one that sends; nil where it could not be opened, or comes late.
func (l *lanes) opened(to transport.SendLane, err error) *lane {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.opening--
	switch {
	case err != nil:
		l.wanted = l.plan.refused(l.now(), len(l.live))
		return nil
	case l.err != nil:
		to.Cancel()
		return nil
	}
	x := &lane{to: to, opened: l.now()}
	l.live = append(l.live, x)
	return x
}

// send sends pieces over x until it fails or is not wanted any more.
func (l *lanes) send(x *lane) {
	for {
		p := l.take(x)
		if p == nil {
			l.lost(x, false)
			_ = x.to.Close() // if it fails, what it carried goes over another lane
			return
		}
		_, err := x.to.Write(p.buf)
		l.wrote(p)
		if err != nil {
			l.lost(x, true)
			x.to.Cancel()
			return
		}
	}
}
