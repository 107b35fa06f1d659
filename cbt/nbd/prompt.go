package nbd

import (
	"fmt"
	"net"
	"sync"
	"time"
)

// The way of writes to a Prompt. The goroutine that reads the socket begins each write
// whose bytes have all arrived, straight from the reader's buffer, and when no further
// request has arrived whole it settles and answers all of them in one writev:
//
//	read ─► Begin, Begin, … ─► Settle ─► Wait, Wait, … ─► replies
//
// Settle may be held up. When the device lets go meanwhile, a stand-in answers what was
// begun and reads on; the one that was held up ends when it comes back.

const (
	readerBytes = 256 << 10 // of a connection's reader: what may arrive together
	promptBytes = 128 << 10 // a larger write takes a buffer of its own
	maxTogether = 64        // writes that are settled together

	// togetherBytes of payloads are enough: the client has something to do with the
	// answers while the next ones are begun.
	togetherBytes = 256 << 10
)

// together are the writes that the reading goroutine has begun.
type together struct {
	prompt Prompt // nil: the device is none
	tasks  []begunTask
	bytes  int64 // of their payloads
	crowd  bool  // several were settled together last

	mu       sync.Mutex // guards settling
	settling []begunTask
}

type begunTask struct {
	*task
	begun Begun
	since time.Time
	err   error
}

// begin takes the write q with the reading goroutine, if that can be done; else
// nothing of its payload is read.
func (s *session) begin(q request) (done bool, err error) {
	if s.prompt == nil || q.cmd != cmdWrite || q.length == 0 || q.length > promptBytes || q.flags&cmdFlagFUA != 0 {
		return false, nil
	}
	p, err := s.r.Peek(int(q.length))
	if err != nil {
		return true, fmt.Errorf("read payload of write: %w", err)
	}
	t := s.inflight.begin(q, true)
	if t == nil {
		return true, net.ErrClosed
	}
	var b Begun
	since, began := time.Now(), false
	if len(t.before) == 0 {
		b, began = s.prompt.Begin(p, int64(q.offset))
	}
	if began {
		s.tasks = append(s.tasks, begunTask{task: t, begun: b, since: since})
		s.bytes += int64(q.length)
	} else {
		t.payload = s.srv.buffers.get(int(q.length))
		copy(t.payload.bytes, p)
		go s.serve(t)
	}
	_, err = s.r.Discard(int(q.length))
	return true, err
}

// more reports that another request has arrived whole, and is to be settled with those
// that were begun. Where several came together last, it looks for what has arrived
// meanwhile: a frame that more writes share costs each of them less.
func (s *session) more() bool {
	if len(s.tasks) >= maxTogether || s.bytes >= togetherBytes {
		return false
	}
	for !s.whole() {
		if !s.crowd || len(s.tasks) == 0 {
			return false
		}
		s.in.now = true
		_, err := s.r.Peek(s.r.Buffered() + 1)
		s.in.now = false
		if err != nil { // whatever it is, who reads on meets it
			return false
		}
	}
	return true
}

// whole reports that another request has arrived whole, and there is room for it: the
// reading goroutine meets nothing to wait for.
func (s *session) whole() bool {
	if s.r.Buffered() < requestBytes {
		return false
	}
	head, err := s.r.Peek(requestBytes)
	if err != nil {
		return false
	}
	q, err := parseRequest((*[requestBytes]byte)(head))
	if err != nil {
		return false
	}
	n := int64(requestBytes)
	if q.cmd == cmdWrite {
		n += int64(q.length)
	}
	return int64(s.r.Buffered()) >= n && s.inflight.hasRoom(q)
}

// settle makes safe and answers what was begun. It reports false when a stand-in has
// taken over, who reads on.
func (s *session) settle() (mine bool) {
	if len(s.tasks) == 0 {
		return true
	}
	s.mu.Lock()
	s.settling = s.tasks
	s.mu.Unlock()
	s.prompt.Settle()
	s.mu.Lock()
	mine = s.settling != nil
	s.settling = nil
	s.mu.Unlock()
	if mine {
		s.crowd = len(s.tasks) > 1
		s.finish(s.tasks)
		s.tasks, s.bytes = s.tasks[:0], 0
	}
	return mine
}

// takeOver is called when the device lets go.
func (s *session) takeOver() {
	s.mu.Lock()
	held := s.settling
	s.settling = nil
	s.mu.Unlock()
	if held == nil {
		return // whoever reads meets nothing that holds it up any more
	}
	s.finish(held)
	s.tasks, s.bytes = nil, 0
	s.read()
}

// finish answers writes that were begun and settled.
func (s *session) finish(tasks []begunTask) {
	for i := range tasks {
		tasks[i].err = tasks[i].begun.Wait()
	}
	sender := false
	for i := range tasks {
		t := &tasks[i]
		if f := s.srv.opts.Events.Request; f != nil {
			f(RequestInfo{Export: s.export.Name, Command: commandName(t.cmd), Extent: t.extent(), Duration: time.Since(t.since), Err: t.err})
		}
		if !t.answered.CompareAndSwap(false, true) {
			close(t.ended) // the drain answered in our place
			s.inflight.end(t.task, true)
			continue
		}
		r := simpleReply(t.request, 0, nil)
		if t.err != nil {
			r = errorReply(t.request, s.terms.structured, errnoOf(s.ctx, t.err), t.err.Error())
		}
		task := t.task
		r.sent = func() { s.inflight.end(task, true) }
		sender = s.out.add(r) || sender
		close(t.ended)
	}
	if sender {
		s.out.flush()
	}
}
