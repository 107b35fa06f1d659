package nbd

import (
	"io"
	"net"
	"sync"
)

// replies sends what requests have to say, in the order in which they were
// queued. Whoever finds nobody sending sends for all until the queue is empty,
// so that replies that are ready together leave in one system call.
type replies struct {
	conn io.Writer
	fail func(error) // called once, when sending ends with an error

	mu      sync.Mutex // guards all below
	queue   []*reply
	sending bool
	err     error
}

// reply is one message: a head, perhaps a body, and what to do once both have
// left (or never will).
type reply struct {
	head []byte
	body []byte
	sent func()
}

// add queues r and reports whether the caller has to call flush.
func (w *replies) add(r *reply) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = append(w.queue, r)
	if w.sending {
		return false
	}
	w.sending = true
	return true
}

// flush sends until the queue is empty.
func (w *replies) flush() {
	var bufs net.Buffers
	w.mu.Lock()
	for len(w.queue) > 0 {
		batch, err := w.queue, w.err
		w.queue = nil
		w.mu.Unlock()
		if err == nil {
			bufs = bufs[:0]
			for _, r := range batch {
				bufs = append(bufs, r.head)
				if len(r.body) > 0 {
					bufs = append(bufs, r.body)
				}
			}
			out := bufs // WriteTo consumes the slice it is called on
			if _, err = out.WriteTo(w.conn); err != nil {
				w.fail(err)
			}
		}
		for _, r := range batch {
			r.sent()
		}
		w.mu.Lock()
		w.err = err
	}
	w.sending = false
	w.mu.Unlock()
}

// simpleReply answers q without structure; body is for a good read only.
func simpleReply(q request, errno Errno, body []byte) *reply {
	head := make([]byte, simpleBytes)
	putSimple(head, errno, q.cookie)
	return &reply{head: head, body: body}
}

// errorReply answers q with errno; text is sent when the client understands it.
func errorReply(q request, structured bool, errno Errno, text string) *reply {
	if !structured {
		return simpleReply(q, errno, nil)
	}
	text = text[:min(len(text), maxStringBytes)]
	head := make([]byte, chunkBytes, chunkBytes+6+len(text))
	putChunk(head, chunkDone, chunkError, q.cookie, uint32(6+len(text)))
	head = be.AppendUint32(head, uint32(errno))
	head = be.AppendUint16(head, uint16(len(text)))
	return &reply{head: append(head, text...)}
}

// dataReply answers a read with one chunk, which DF allows too.
func dataReply(q request, body []byte) *reply {
	if len(body) == 0 {
		head := make([]byte, chunkBytes)
		putChunk(head, chunkDone, chunkNone, q.cookie, 0)
		return &reply{head: head}
	}
	head := make([]byte, chunkBytes, chunkBytes+8)
	putChunk(head, chunkDone, chunkOffsetData, q.cookie, uint32(8+len(body)))
	return &reply{head: be.AppendUint64(head, q.offset), body: body}
}
