package nbd

import (
	"sync"
	"sync/atomic"

	"github.com/novacron/afterimage/cbt"
)

// inflight is the set of a connection's requests that have not been answered
// in full. It bounds them in number and bytes and finds overlaps.
type inflight struct {
	maxTasks int
	maxBytes int64

	mu     sync.Mutex // guards all below
	room   sync.Cond
	tasks  map[*task]struct{}
	bytes  int64
	closed bool
	idle   chan struct{} // nil until asked for; closed when tasks is empty
}

// task is one request under way.
type task struct {
	request
	payload  *buffer
	answered atomic.Bool // who sets it sends the reply
	before   []<-chan struct{}
	ended    chan struct{} // nil for requests that change nothing
}

func newInflight(maxTasks int, maxBytes int64) *inflight {
	f := &inflight{maxTasks: maxTasks, maxBytes: maxBytes, tasks: make(map[*task]struct{})}
	f.room.L = &f.mu
	return f
}

// begin waits for room and registers q; t.before are the overlapping changes
// that it has to wait for. good is false for a request that only gets an error
// reply. It returns nil once close was called.
func (f *inflight) begin(q request, good bool) *task {
	t := &task{request: q}
	weight := int64(0)
	if good {
		weight = q.weight()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for !f.closed && (len(f.tasks) >= f.maxTasks || f.bytes+weight > f.maxBytes) && len(f.tasks) > 0 {
		f.room.Wait()
	}
	if f.closed {
		return nil
	}
	if good && q.changes() {
		t.ended = make(chan struct{})
		for o := range f.tasks {
			if o.ended != nil && overlap(o.request, q) {
				t.before = append(t.before, o.ended)
			}
		}
	}
	f.tasks[t] = struct{}{}
	f.bytes += weight
	return t
}

// hasRoom reports that begin would not wait for q.
func (f *inflight) hasRoom(q request) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.tasks) == 0 || len(f.tasks) < f.maxTasks && f.bytes+q.weight() <= f.maxBytes
}

func overlap(a, b request) bool {
	return cbt.Extent.Overlaps(a.extent(), b.extent())
}

// end gives t's room back.
func (f *inflight) end(t *task, good bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.tasks, t)
	if good {
		f.bytes -= t.weight()
	}
	f.room.Signal()
	if len(f.tasks) == 0 && f.idle != nil {
		close(f.idle)
		f.idle = nil
	}
}

// whenIdle is closed at the first moment from now on without any task.
func (f *inflight) whenIdle() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.tasks) == 0 {
		c := make(chan struct{})
		close(c)
		return c
	}
	if f.idle == nil {
		f.idle = make(chan struct{})
	}
	return f.idle
}

// close makes begin return nil from now on.
func (f *inflight) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.room.Broadcast()
}

// unanswered are the tasks whose reply nobody has claimed; each is claimed for
// the caller.
func (f *inflight) unanswered() []*task {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ts []*task
	for t := range f.tasks {
		if t.answered.CompareAndSwap(false, true) {
			ts = append(ts, t)
		}
	}
	return ts
}
