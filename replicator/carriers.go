package replicator

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/novacron/afterimage/replicator/transport"
)

// Carrier is what a peer is reached by.
type Carrier string

// Values of Peer.Carrier. With CarryAuto QUIC is tried first; where no handshake comes
// about, TLS over TCP is next, and QUIC is tried again every Options.UDPRetry.
const (
	CarryAuto Carrier = "auto" // the empty one too
	CarryQUIC Carrier = "quic"
	CarryTLS  Carrier = "tls"
)

// ParseCarrier reads one; the empty text is CarryAuto.
func ParseCarrier(s string) (Carrier, error) {
	switch c := Carrier(s); c {
	case "", CarryAuto:
		return CarryAuto, nil
	case CarryQUIC, CarryTLS:
		return c, nil
	}
	return "", fmt.Errorf("transport %q: want auto, quic or tls", s)
}

// carriers are the open transports, the preferred first.
type carriers []transport.Transport

// openCarriers opens QUIC, and TLS at the same port. TLS is the lesser way: where its
// port is not to be had, a site goes on with QUIC alone and says so.
func (r *Replicator) openCarriers(o transport.Options) (carriers, error) {
	if r.o.Transport != nil {
		t, err := r.o.Transport(o)
		if err != nil {
			return nil, err
		}
		return carriers{t}, nil
	}
	const attempts = 16 // a port that the kernel picked for UDP may be taken for TCP
	for n := 1; ; n++ {
		q, err := transport.NewQUIC(o)
		if err != nil {
			return nil, err
		}
		beside := o
		if o.Listen != "" {
			beside.Listen = q.Addr().String()
		}
		t, err := transport.NewTLS(beside)
		if err == nil {
			return carriers{q, t}, nil
		}
		if _, port, perr := net.SplitHostPort(o.Listen); perr == nil && port == "0" && n < attempts {
			_ = q.Close() // nobody uses it yet
			continue
		}
		r.o.Log.Warn("peers cannot come in over TCP", "listen", beside.Listen, "err", err)
		return carriers{q}, nil
	}
}

func (cs carriers) close() error {
	var errs []error
	for _, c := range cs {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

func (cs carriers) named(name string) transport.Transport {
	for _, c := range cs {
		if c.Name() == name {
			return c
		}
	}
	return nil
}

// reach is how one peer is called.
type reach struct {
	carriers
	p     *peer
	c     *tls.Config
	ready transport.Conn // QUIC has been found to work again; nil: not
}

// route is a connection and why it is not the preferred one.
type route struct {
	transport.Conn
	why     error
	retried bool // QUIC is tried again meanwhile
}

// dial connects by what the peer wants.
func (h *reach) dial(ctx context.Context) (route, error) {
	if conn := h.ready; conn != nil {
		h.ready = nil
		return route{Conn: conn}, nil
	}
	if len(h.carriers) == 1 && h.carriers[0].Name() != string(CarryQUIC) { // a test's
		conn, err := h.carriers[0].Dial(ctx, h.p.Address, h.c)
		return route{Conn: conn}, err
	}
	if h.p.Carrier == CarryQUIC || h.p.Carrier == CarryTLS {
		by := h.named(string(h.p.Carrier))
		if by == nil {
			return route{}, fmt.Errorf("transport %s: %w", h.p.Carrier, ErrNotConnected)
		}
		conn, err := by.Dial(ctx, h.p.Address, h.c)
		return route{Conn: conn}, err
	}
	conn, err := h.carriers[0].Dial(ctx, h.p.Address, h.c)
	if err == nil || len(h.carriers) == 1 || !blocked(ctx, err) {
		return route{Conn: conn}, err
	}
	conn, terr := h.carriers[1].Dial(ctx, h.p.Address, h.c)
	if terr != nil {
		return route{}, errors.Join(err, fmt.Errorf("over TCP: %w", terr))
	}
	return route{Conn: conn, why: fmt.Errorf("no answer over UDP: %w", err), retried: true}, nil
}

// blocked reports that a peer did not answer, rather than that it, or we, refused.
func blocked(ctx context.Context, err error) bool {
	var pin *PinError
	var closed *transport.ClosedError
	var dns *net.DNSError
	return ctx.Err() == nil && !errors.As(err, &pin) && !errors.As(err, &closed) && !errors.As(err, &dns) && !errors.Is(err, transport.ErrUntrusted)
}

// errBetter ends a session over TCP because UDP works again.
var errBetter = errors.New("the peer answers over UDP again")

// retry calls over QUIC again and again until it answers, and gives errBetter then.
func (h *reach) retry(ctx context.Context, every time.Duration) error {
	for {
		if err := sleepUnless(ctx, every, nil); err != nil {
			return err
		}
		conn, err := h.carriers[0].Dial(ctx, h.p.Address, h.c)
		if err == nil {
			h.ready = conn
			return errBetter
		}
	}
}

// drop closes what was not used.
func (h *reach) drop() {
	if h.ready != nil {
		closeLink(h.ready, nil)
		h.ready = nil
	}
}

// Session is a connection with a peer, for people.
type Session struct {
	Peer      string
	Dialled   bool   // by this site
	Transport string // "quic", "tls"
	Why       string // not the preferred one, where that is so
	Address   string
	transport.Stats
}

// Sessions are those that live, by peer.
func (r *Replicator) Sessions() []Session {
	r.mu.Lock()
	links := slices.Clone(r.links)
	r.mu.Unlock()
	var out []Session
	for _, l := range links {
		s := Session{Peer: l.peer.Name, Dialled: l.dialled, Transport: l.conn.Transport(), Address: l.conn.RemoteAddr().String(), Stats: l.conn.Stats()}
		if l.why != nil {
			s.Why = l.why.Error()
		}
		out = append(out, s)
	}
	slices.SortStableFunc(out, func(a, b Session) int { return strings.Compare(a.Peer, b.Peer) })
	return out
}
