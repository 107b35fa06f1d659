package main

import (
	"math/rand/v2"
	"time"

	"github.com/novacron/afterimage/testbed/stamp"
)

// load is a running stamping. Until done is closed its goroutine owns the disks.
type load struct {
	stop chan struct{} // closed to end it
	done chan struct{} // closed when it has ended
	last uint64        // highest durable stamp; read it after done
}

// startLoad begins a load of the given rate, slots, count and first number.
func (m *machine) startLoad(p params) error {
	slots, err := m.slots(p)
	if err != nil {
		return err
	}
	first, given := p["first"]
	if !given {
		reports, err := m.scan(slots)
		if err != nil {
			return err
		}
		for _, r := range reports {
			first = max(first, r.Max)
		}
		first++
	}
	l := &load{stop: make(chan struct{}), done: make(chan struct{}), last: max(first, 1) - 1}
	m.load = l
	go func() {
		defer close(l.done)
		m.stampAll(l, slots, p.get("rate", 0), p.get("count", 0))
	}()
	return nil
}

// endLoad waits until the load has ended, telling it to if stop, and returns its
// last durable stamp.
func (m *machine) endLoad(stop bool) uint64 {
	l := m.load
	if l == nil {
		return 0
	}
	if stop {
		close(l.stop)
	}
	<-l.done
	m.load = nil
	return l.last
}

// stampAll writes count stamps (0: until told to stop), at most rate a second.
func (m *machine) stampAll(l *load, slots, rate, count uint64) {
	var tick <-chan time.Time
	if rate > 0 {
		t := time.NewTicker(time.Second / time.Duration(rate))
		defer t.Stop()
		tick = t.C
	}
	writer := rand.Uint64()
	for n := uint64(0); count == 0 || n < count; n++ {
		select {
		case <-l.stop:
			return
		default:
		}
		if tick != nil {
			select {
			case <-l.stop:
				return
			case <-tick:
			}
		}
		k := l.last + 1
		for i, d := range m.volumes {
			s := stamp.Stamp{Number: k, Volume: uint32(i), Writer: writer, Time: time.Now()}
			if err := d.write(s, slots); err != nil {
				m.console.say("error stamp %d on volume %d: %v", k, i, err)
				return
			}
		}
		l.last = k
		m.console.say("stamped %d", k)
	}
}
