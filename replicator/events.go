package replicator

import (
	"net"

	"github.com/novacron/afterimage/journal"
)

// Events are optional callbacks for logs and metrics. They are called from the
// replicator's goroutines, several at once, and must return quickly.
type Events struct {
	// Listening tells the bound address, once per Run.
	Listening func(addr net.Addr)
	// Unpinned tells of a caller refused in the handshake and the pin it showed.
	Unpinned func(err *PinError)
	// Connected and Disconnected tell of a peer's connection; dialled says which
	// end began it. A dial that never connected is a Disconnected as well.
	Connected    func(peer string, addr net.Addr, dialled bool)
	Disconnected func(peer string, dialled bool, err error)
	// Streaming tells that a group's frames flow, from the cursor on.
	Streaming func(peer string, direction Direction, tenant, group string, from journal.Cursor)
	// Ended tells that a group's frames no longer flow, and why.
	Ended func(peer string, direction Direction, tenant, group string, err error)
	// Conflict tells of histories that exclude each other; both ends report it.
	Conflict func(c *Conflict)
	// Durable tells of every advance of what is known durable at the replica.
	Durable func(peer string, direction Direction, tenant, group string, at journal.Cursor)
	// SmallBuffers tells that the kernel grants smaller UDP buffers than QUIC
	// wants, in bytes, and the command that raises them. Replication goes on, slower.
	SmallBuffers func(receive, send, want int, hint string)
}

func (e Events) withDefaults() Events {
	if e.Listening == nil {
		e.Listening = func(net.Addr) {}
	}
	if e.Unpinned == nil {
		e.Unpinned = func(*PinError) {}
	}
	if e.Connected == nil {
		e.Connected = func(string, net.Addr, bool) {}
	}
	if e.Disconnected == nil {
		e.Disconnected = func(string, bool, error) {}
	}
	if e.Streaming == nil {
		e.Streaming = func(string, Direction, string, string, journal.Cursor) {}
	}
	if e.Ended == nil {
		e.Ended = func(string, Direction, string, string, error) {}
	}
	if e.Conflict == nil {
		e.Conflict = func(*Conflict) {}
	}
	if e.Durable == nil {
		e.Durable = func(string, Direction, string, string, journal.Cursor) {}
	}
	if e.SmallBuffers == nil {
		e.SmallBuffers = func(int, int, int, string) {}
	}
	return e
}
