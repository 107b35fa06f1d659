package link

import (
	"container/heap"
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// smallDatagram is the room that a pooled buffer has: QUIC's datagrams fit.
const smallDatagram = 2048

// parcel is a datagram on its way.
type parcel struct {
	at    time.Duration // when it arrives
	order uint64        // of admission, for those that arrive together
	data  []byte
	send  func([]byte)
}

// parcels is a heap, the next arrival first.
type parcels []parcel

func (p parcels) Len() int { return len(p) }
func (p parcels) Less(i, j int) bool {
	return p[i].at < p[j].at || p[i].at == p[j].at && p[i].order < p[j].order
}
func (p parcels) Swap(i, j int) { p[i], p[j] = p[j], p[i] }
func (p *parcels) Push(x any)   { *p = append(*p, x.(parcel)) }
func (p *parcels) Pop() any {
	last := len(*p) - 1
	x := (*p)[last]
	(*p)[last] = parcel{}
	*p = (*p)[:last]
	return x
}

// Pipe is one direction of a path: its lane and what is on the way. It relays what
// its owner hands to Take, while Run runs. All methods are safe for concurrent use.
type Pipe struct {
	start time.Time
	cut   atomic.Bool
	wake  chan struct{} // holds a token when an earlier arrival than before came in
	small sync.Pool     // of *[smallDatagram]byte

	mu      sync.Mutex // guards all below
	lane    *lane
	queue   parcels
	order   uint64
	waiting int64 // bytes in queue
}

// NewPipe makes one direction; its dice follow c.Seed and the direction's number.
func NewPipe(c Config, direction uint64) (*Pipe, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	return &Pipe{
		start: time.Now(),
		wake:  make(chan struct{}, 1),
		small: sync.Pool{New: func() any { return new([smallDatagram]byte) }},
		lane:  newLane(c, direction),
	}, nil
}

// Take admits a datagram, which send is handed when its time has come, by the
// goroutine of Run; neither may keep it. It copies data.
func (p *Pipe) Take(data []byte, send func([]byte)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, n := p.lane.admit(time.Since(p.start), int64(len(data)), p.waiting)
	if p.cut.Load() {
		p.lane.stats.Cut += uint64(n)
		return
	}
	for _, arrives := range at[:n] {
		p.order++
		heap.Push(&p.queue, parcel{at: arrives, order: p.order, data: p.copied(data), send: send})
		p.waiting += int64(len(data))
	}
	if n > 0 && p.queue[0].order > p.order-uint64(n) {
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
}

// Run delivers until ctx ends, and returns nil.
func (p *Pipe) Run(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		wait := p.deliver(ctx)
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
		case <-timer.C:
		}
	}
}

// deliver sends all whose time has come and returns how long the next one has.
func (p *Pipe) deliver(ctx context.Context) time.Duration {
	for ctx.Err() == nil {
		p.mu.Lock()
		if len(p.queue) == 0 {
			p.mu.Unlock()
			return time.Hour
		}
		if wait := p.queue[0].at - time.Since(p.start); wait > 0 {
			p.mu.Unlock()
			return wait
		}
		next := heap.Pop(&p.queue).(parcel)
		p.waiting -= int64(len(next.data))
		gone := p.cut.Load()
		if gone {
			p.lane.stats.Cut++
		} else {
			p.lane.stats.Delivered++
			p.lane.stats.DeliveredBytes += uint64(len(next.data))
		}
		p.mu.Unlock()
		if !gone {
			next.send(next.data)
		}
		p.recycle(next.data)
	}
	return time.Hour
}

// Cut drops everything, what is on the way included, until Heal.
func (p *Pipe) Cut() {
	p.cut.Store(true)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lane.stats.Cut += uint64(len(p.queue))
	for i := range p.queue {
		p.recycle(p.queue[i].data)
		p.queue[i] = parcel{}
	}
	p.queue, p.waiting = p.queue[:0], 0
	p.lane.free, p.lane.latest = 0, 0
}

// Heal ends a Cut.
func (p *Pipe) Heal() { p.cut.Store(false) }

// Set changes the conditions for what comes from now on; the dice go on where they are.
func (p *Pipe) Set(c Config) error {
	if err := c.validate(); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lane.config = c
	return nil
}

// Stats are the sums so far.
func (p *Pipe) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lane.stats
}

func (p *Pipe) copied(data []byte) []byte {
	if len(data) > smallDatagram {
		return append([]byte(nil), data...)
	}
	buf := p.small.Get().(*[smallDatagram]byte)[:len(data)]
	copy(buf, data)
	return buf
}

func (p *Pipe) recycle(data []byte) {
	if cap(data) == smallDatagram {
		p.small.Put((*[smallDatagram]byte)(data[:smallDatagram]))
	}
}
