package replicator

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/replicator/transport"
)

// link is one connection's control stream; both ends of it are alike.
type link struct {
	r        *Replicator
	peer     *peer
	conn     transport.Conn
	control  transport.Stream
	out      *outbox
	dialled  bool
	why      error  // it is not over the preferred transport; nil: it is
	theirs   uint64 // compatible features of the peer, known once greeted
	instance cbt.ID // of the peer's process, likewise

	mu     sync.Mutex // guards all below
	offset offset
	pinged int64     // our clock, ns: the ping that waits for its pong
	heard  time.Time // when the last message came
}

func newLink(r *Replicator, p *peer, conn transport.Conn, control transport.Stream) *link {
	return &link{r: r, peer: p, conn: conn, control: control, out: newOutbox(), heard: r.o.Now()}
}

func (l *link) ourHello() *hello {
	ours := ourCompatible
	if l.r.faults.noPacking {
		ours &^= featurePacked
	}
	return &hello{minVersion: minWireVersion, maxVersion: wireVersion, incompatible: featurePieces,
		compatible: ours, instance: l.r.instance, site: l.r.o.Site}
}

// greet exchanges Hello messages; the dialling end speaks first.
func (l *link) greet(dialled bool) error {
	l.dialled = dialled
	if err := l.control.SetDeadline(time.Now().Add(l.r.o.HandshakeTimeout)); err != nil {
		return err
	}
	if dialled {
		if err := l.write(l.ourHello()); err != nil {
			return err
		}
	}
	m, err := readMessage(l.control)
	if err != nil {
		return fmt.Errorf("greet peer %s: %w", l.peer.Name, err)
	}
	if b, ok := m.body.(*bye); ok {
		return &RefusedError{Peer: l.peer.Name, Code: b.code, Text: b.text}
	}
	theirs, ok := m.body.(*hello)
	if !ok {
		return fmt.Errorf("greet peer %s: first message is no Hello: %w", l.peer.Name, ErrProtocol)
	}
	if !dialled {
		// Ours goes out even when theirs will not do, so that both ends know why.
		if err := l.write(l.ourHello()); err != nil {
			return err
		}
	}
	if code, text := judgeHello(theirs); code != CodeNone {
		_ = l.write(&bye{code: code, text: text}) // best effort: the close says the same
		return &RefusedError{Peer: l.peer.Name, Code: code, Text: text}
	}
	l.theirs, l.instance = theirs.compatible, theirs.instance
	l.r.o.Seen(l.peer.Name, shownPin(l.conn.State()))
	return l.control.SetDeadline(time.Time{})
}

// judgeHello says why a peer's Hello will not do; CodeNone when it will.
func judgeHello(h *hello) (Code, string) {
	if h.maxVersion < minWireVersion || h.minVersion > wireVersion || h.minVersion > h.maxVersion {
		return CodeVersion, fmt.Sprintf("peer speaks versions %d to %d, this site %d to %d", h.minVersion, h.maxVersion, minWireVersion, wireVersion)
	}
	if unknown := h.incompatible &^ knownIncompatible; unknown != 0 {
		return CodeFeatures, fmt.Sprintf("peer needs features %#x, which this site does not know", unknown)
	}
	if h.incompatible&featurePieces == 0 {
		return CodeFeatures, "peer sends groups over one stream each, which this site does no more: bring it up to this site's version"
	}
	return CodeNone, ""
}

func (l *link) write(b body) error {
	text, err := encodeMessage(message{body: b})
	if err != nil {
		return err
	}
	if _, err := l.control.Write(text); err != nil {
		return fmt.Errorf("write control message: %w", err)
	}
	return nil
}

// send queues a message about one opening of a group.
func (l *link) send(open uint64, id journal.Identity, b body) {
	l.out.send(message{envelope{open: open, group: id}, b})
}

// run moves control messages and measures clocks until the connection ends. handle
// gets what concerns groups, in order; measured every better offset.
func (l *link) run(ctx context.Context, handle func(context.Context, message) error, measured func(offset)) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.out.run(ctx, l.control) })
	g.Go(func() error { return l.readLoop(ctx, handle, measured) })
	g.Go(func() error { return l.pingLoop(ctx) })
	g.Go(func() error { return l.attend(ctx) })
	return g.Wait()
}

func (l *link) readLoop(ctx context.Context, handle func(context.Context, message) error, measured func(offset)) error {
	for {
		m, err := readMessage(l.control)
		if err != nil {
			return fmt.Errorf("read control message: %w", err)
		}
		now := l.r.o.Now()
		l.mu.Lock()
		l.heard = now
		l.mu.Unlock()
		switch b := m.body.(type) {
		case nil: // of a later version, and skippable
		case *ping:
			l.answer(b, now)
		case *pong:
			if l.measure(b, now) {
				measured(l.offsetNow())
			}
		case *bye:
			return &RefusedError{Peer: l.peer.Name, Code: b.code, Text: b.text}
		case *rotate:
			l.announced(b)
		case *rotated:
			l.confirmed(b)
		case *hello:
			return fmt.Errorf("read control message: second Hello: %w", ErrProtocol)
		default:
			if err := handle(ctx, m); err != nil {
				return err
			}
		}
	}
}

func (l *link) answer(p *ping, received time.Time) {
	clock := l.r.clock
	l.out.put(typePong, 0, func() message {
		return message{body: &pong{sent: p.sent, received: clock.nanos(received), answered: clock.nanos(clock.now())}}
	})
}

// measure takes one pong in; it reports whether the offset is better for it.
func (l *link) measure(p *pong, heard time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.sent != l.pinged || p.sent == 0 {
		return false
	}
	l.pinged = 0
	old := l.offset
	l.offset = old.better(measure(l.r.clock.at(p.sent), heard, p.received, p.answered), heard)
	return l.offset != old
}

func (l *link) offsetNow() offset {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.offset
}

// pingLoop measures the clocks and finds a connection that lives without a word.
func (l *link) pingLoop(ctx context.Context) error {
	tick := time.NewTicker(l.r.o.PingInterval)
	defer tick.Stop()
	for {
		l.out.put(typePing, 0, func() message {
			clock := l.r.clock
			sent := clock.nanos(clock.now())
			l.mu.Lock()
			l.pinged = sent
			l.mu.Unlock()
			return message{body: &ping{sent: sent}}
		})
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		l.mu.Lock()
		silent := l.r.o.Now().Sub(l.heard)
		l.mu.Unlock()
		if silent > l.r.o.StallTimeout {
			return fmt.Errorf("peer %s said nothing for %v: %w", l.peer.Name, silent.Round(time.Millisecond), ErrStalled)
		}
	}
}

// closeLink closes the connection with the code that err stands for.
func closeLink(conn transport.Conn, err error) {
	code, text := CodeShutdown, "replicator ends"
	var refused *RefusedError
	switch {
	case errors.As(err, &refused):
		code, text = refused.Code, refused.Text
	case errors.Is(err, ErrProtocol):
		code, text = CodeProtocol, err.Error()
	case errors.Is(err, ErrStalled):
		code, text = CodeStalled, err.Error()
	case errors.Is(err, ErrSuperseded):
		code, text = CodeSuperseded, err.Error()
	case errors.Is(err, ErrRevoked):
		code, text = CodeRevoked, err.Error()
	}
	conn.Close(uint16(code), clipText(text, 200))
}

// clipText shortens s to at most n bytes of valid UTF-8.
func clipText(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	for len(s) > 0 {
		if r := []rune(s[len(s)-min(len(s), 4):]); r[len(r)-1] != '\uFFFD' {
			break
		}
		s = s[:len(s)-1]
	}
	return s
}

// explain turns what a transport says of a connection's end into our own errors.
func (r *Replicator) explain(peer string, err error) error {
	var pin *PinError
	if errors.As(err, &pin) {
		return pin
	}
	var closed *transport.ClosedError
	if errors.As(err, &closed) {
		return &RefusedError{Peer: peer, Code: Code(closed.Code), Text: closed.Text}
	}
	if errors.Is(err, transport.ErrUntrusted) {
		text := fmt.Sprintf("the peer does not accept this site's key; its configuration must name pin %s", r.self().pin)
		return &RefusedError{Peer: peer, Code: CodeUnpinned, Text: text}
	}
	return err
}
