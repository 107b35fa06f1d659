package qmp

import (
	"context"
	"sync"
)

// Subscription is a bounded queue of events, for one consumer.
type Subscription struct {
	limit int
	leave func()
	wake  chan struct{} // holds one token while there is something to see

	mu    sync.Mutex // guards what follows
	queue []Event
	lost  bool  // events after queue were dropped; nothing is queued until that is told
	err   error // the connection's end
}

// Subscribe delivers events from now on; limit is how many may wait (at least 1).
func (c *Client) Subscribe(limit int) *Subscription {
	s := &Subscription{limit: max(limit, 1), wake: make(chan struct{}, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	s.leave = func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.subs, s)
	}
	select {
	case <-c.done:
		s.err = c.err
		s.wake <- struct{}{}
	default:
		c.subs[s] = struct{}{}
	}
	return s
}

// Next waits for the next event. ErrOverflow stands, once, in the place of
// events that were lost; the connection's error follows its last event.
func (s *Subscription) Next(ctx context.Context) (Event, error) {
	for {
		s.mu.Lock()
		switch {
		case len(s.queue) > 0:
			e := s.queue[0]
			s.queue = s.queue[1:]
			s.mu.Unlock()
			return e, nil
		case s.lost:
			s.lost = false
			s.mu.Unlock()
			return Event{}, ErrOverflow
		case s.err != nil:
			defer s.mu.Unlock()
			return Event{}, s.err
		}
		s.mu.Unlock()
		select {
		case <-s.wake:
		case <-ctx.Done():
			return Event{}, context.Cause(ctx)
		}
	}
}

// Close ends the subscription.
func (s *Subscription) Close() { s.leave() }

func (s *Subscription) put(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost || len(s.queue) >= s.limit {
		s.lost = true
	} else {
		s.queue = append(s.queue, e)
	}
	s.signal()
}

func (s *Subscription) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
	s.signal()
}

func (s *Subscription) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
