package replicator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/replicator/transport"
	"github.com/novacron/afterimage/testbed/port"
)

// ways are the transports that a site has, each by itself.
var ways = map[string]func(transport.Options) (transport.Transport, error){
	"quic": func(o transport.Options) (transport.Transport, error) { return transport.NewQUIC(o) },
	"tls":  func(o transport.Options) (transport.Transport, error) { return transport.NewTLS(o) },
}

// counted is a transport that counts what its callers are told and what is heard of them,
// past the handshake.
type counted struct {
	transport.Transport
	callers, told, heard atomic.Int64
}

func (c *counted) Accept(ctx context.Context) (transport.Conn, error) {
	conn, err := c.Transport.Accept(ctx)
	if err != nil {
		return nil, err
	}
	c.callers.Add(1)
	return heardConn{conn, c}, nil
}

type heardConn struct {
	transport.Conn
	by *counted
}

func (c heardConn) Control(ctx context.Context) (transport.Stream, error) {
	s, err := c.Conn.Control(ctx)
	return heardStream{s, c.by}, err
}

func (c heardConn) NextQuestion(ctx context.Context) (transport.Stream, error) {
	s, err := c.Conn.NextQuestion(ctx)
	return heardStream{s, c.by}, err
}

func (c heardConn) NextLane(ctx context.Context) (transport.ReceiveLane, error) {
	l, err := c.Conn.NextLane(ctx)
	return heardLane{l, c.by}, err
}

type heardStream struct {
	transport.Stream
	by *counted
}

func (s heardStream) Read(p []byte) (int, error) {
	n, err := s.Stream.Read(p)
	s.by.heard.Add(int64(n))
	return n, err
}

func (s heardStream) Write(p []byte) (int, error) {
	n, err := s.Stream.Write(p)
	s.by.told.Add(int64(n))
	return n, err
}

type heardLane struct {
	transport.ReceiveLane
	by *counted
}

func (l heardLane) Read(p []byte) (int, error) {
	n, err := l.ReceiveLane.Read(p)
	l.by.heard.Add(int64(n))
	return n, err
}

// refuser is a replica that counts, and a caller that is no replicator: it says what it
// likes.
type refuser struct {
	*pair
	name  string
	by    *counted
	dials transport.Transport
	at    string
	asked atomic.Int32 // of Options.Receive
}

func newRefuser(t *testing.T, name string) *refuser {
	t.Helper()
	r := &refuser{pair: newPair(t), name: name}
	r.replica.o.Listen = port.Address(t)
	r.replica.o.IdleTimeout = 10 * patience // nothing ends by itself
	r.replica.o.HeartbeatInterval, r.replica.o.PingInterval = time.Hour, time.Hour
	r.replica.o.Transport = func(o transport.Options) (transport.Transport, error) {
		tr, err := ways[name](o)
		r.by = &counted{Transport: tr}
		return r.by, err
	}
	receive := r.replica.o.Receive
	r.replica.o.Receive = func(peer string, id journal.Identity, te, gr string) (Replica, error) {
		r.asked.Add(1)
		return receive(peer, id, te, gr)
	}
	dials, err := ways[name](transport.Options{HandshakeTimeout: patience, IdleTimeout: 10 * patience, LaneBytes: 1 << 20, MaxLanes: 4, MaxQuestions: 4})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dials.Close() })
	r.dials = dials
	return r
}

// call dials as somebody, and opens the control stream.
func (r *refuser) call(who *Identity, protocol string) (transport.Conn, transport.Stream, error) {
	r.Helper()
	cert, err := who.certificate()
	if err != nil {
		r.Fatal(err)
	}
	c := dialTLS(cert, "b", func() []Pin { return []Pin{r.replica.o.Identity.Pin()} })
	c.NextProtos = []string{protocol}
	conn, err := r.dials.Dial(r.Context(), r.at, c)
	if err != nil {
		return nil, nil, err
	}
	r.Cleanup(func() { conn.Close(0, "") })
	s, err := conn.Control(r.Context())
	return conn, s, err
}

// say writes messages, and gives up where nobody listens.
func say(s io.Writer, ms ...message) error {
	for _, m := range ms {
		b, err := encodeMessage(m)
		if err == nil {
			_, err = s.Write(b)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ended is how a connection ended, for who goes on all the same: it says more, opens
// lanes and asks, and hears nothing but the end.
func (r *refuser) ended(conn transport.Conn, s transport.Stream, err error) error {
	r.Helper()
	if err != nil {
		return err
	}
	sent := say(s, message{body: &hello{minVersion: 1, maxVersion: 1, incompatible: featurePieces, compatible: featureFetch, site: "a"}})
	got, err := io.ReadAll(s)
	if len(got) > 0 {
		r.Errorf("it was told %d bytes", len(got))
	}
	select {
	case <-conn.Done():
	case <-time.After(patience):
		r.Error("the connection stays open")
	}
	if sent == nil {
		sent = say(s, message{body: &ping{1}})
	}
	if l, lerr := conn.OpenLane(r.Context()); lerr == nil {
		if _, lerr = l.Write(somePiece()); lerr == nil && sent == nil {
			r.Error("what comes after the end is taken")
		}
	}
	return err
}

// Promise 14: who may not come in, or not any more, or not to this, gets a refusal that
// says so, and not one byte more; nothing of theirs is read. Over each transport.
func TestWhoIsRefusedGetsNothingElse(t *testing.T) {
	for name := range ways {
		t.Run(name, func(t *testing.T) {
			t.Run("unpinned", func(t *testing.T) { newRefuser(t, name).unpinned() })
			t.Run("revoked", func(t *testing.T) { newRefuser(t, name).revoked() })
			t.Run("wrong tenant", func(t *testing.T) { newRefuser(t, name).wrongTenant() })
			t.Run("expired", func(t *testing.T) { newRefuser(t, name).expired() })
		})
	}
}

func (r *refuser) unpinned() {
	r.at = r.replica.up(faults{})
	err := r.ended(r.call(mustIdentity(r), alpn))
	var no *RefusedError
	if !errors.As(r.replica.rep.explain("b", err), &no) || no.Code != CodeUnpinned {
		r.Errorf("refused by %v", err)
	}
	eventually(r.TB, "it is reported", func() bool {
		r.replica.mu.Lock()
		defer r.replica.mu.Unlock()
		return len(r.replica.unpinned) == 1
	})
	if r.by.callers.Load() != 0 || r.by.told.Load() != 0 || r.by.heard.Load() != 0 || r.asked.Load() != 0 {
		r.Errorf("%d callers, told %d bytes, heard %d, asked %d times", r.by.callers.Load(), r.by.told.Load(), r.by.heard.Load(), r.asked.Load())
	}
}

// greeted is a session of a peer that is known, past both greetings.
func (r *refuser) greeted() (transport.Conn, transport.Stream) {
	r.Helper()
	r.at = r.replica.up(faults{})
	conn, s, err := r.call(r.source.o.Identity, alpn)
	if err == nil {
		err = say(s, message{body: &hello{minVersion: 1, maxVersion: 1, incompatible: featurePieces, compatible: featureFetch, site: "a"}})
	}
	if err != nil {
		r.Fatal(err)
	}
	if m := r.hears(s); m.body.kind() != typeHello {
		r.Fatalf("greeted with %T", m.body)
	}
	eventually(r.TB, "it is a session", func() bool { return len(r.replica.rep.Sessions()) == 1 })
	return conn, s
}

// hears is the next message but pings.
func (r *refuser) hears(s transport.Stream) message {
	r.Helper()
	for {
		m, err := readMessage(s)
		if err != nil {
			r.Fatal(err)
		}
		if m.body != nil && m.body.kind() != typePing {
			return m
		}
	}
}

// revoked: the peer is removed while its session lives. It ends at once: nothing here
// would end it for a long while.
func (r *refuser) revoked() {
	conn, s := r.greeted()
	began := time.Now()
	if err := r.replica.rep.SetPeers(nil); err != nil {
		r.Fatal(err)
	}
	for {
		m, err := readMessage(s)
		if err == nil && (m.body == nil || m.body.kind() == typePing) {
			continue // sent before
		}
		var no *RefusedError
		if !errors.As(r.replica.rep.explain("b", err), &no) || !errors.Is(no, ErrRevoked) {
			r.Errorf("the session ended by %v, message %+v", err, m)
		}
		break
	}
	eventually(r.TB, "all of the session has ended here", func() bool {
		r.replica.mu.Lock()
		defer r.replica.mu.Unlock()
		return len(r.replica.downs) == 1 && len(r.replica.rep.Sessions()) == 0
	})
	r.Logf("ended %v after the removal", time.Since(began).Round(time.Microsecond))
	told, heard := r.by.told.Load(), r.by.heard.Load()
	_ = say(s, message{body: &ping{1}}) // nobody listens
	if _, err := s.Read(make([]byte, 1)); err == nil {
		r.Error("it is told more")
	}
	<-conn.Done()
	if err := r.ended(r.call(r.source.o.Identity, alpn)); err == nil {
		r.Error("it is let in again")
	}
	if r.by.told.Load() != told || r.by.heard.Load() != heard || r.asked.Load() != 0 {
		r.Errorf("told %d bytes more, heard %d, asked %d times", r.by.told.Load()-told, r.by.heard.Load()-heard, r.asked.Load())
	}
}

// wrongTenant: a peer opens groups that it may not touch. Each gets one refusal, without
// a history, and whatever it sends of them is for nobody.
func (r *refuser) wrongTenant() {
	_, s := r.greeted()
	right := r.from.Identity()
	id := right
	id.Tenant = cbt.NewID()
	for n, open := range []struct {
		id   journal.Identity
		body *openGroup
	}{
		{id, &openGroup{tenant: "other", group: group}},
		{right, &openGroup{tenant: "other", group: group}},
		{id, &openGroup{tenant: tenant, group: group}},
		{right, &openGroup{tenant: tenant, group: "mail"}},
	} {
		e := envelope{open: uint64(n + 1), group: open.id}
		if err := say(s, message{e, open.body}); err != nil {
			r.Fatal(err)
		}
		m := r.hears(s)
		no, ok := m.body.(*refuse)
		if !ok || m.open != e.open || no.code != CodeUnknownGroup || no.branches != nil || no.head != (journal.EpochID{}) {
			r.Fatalf("%+v is answered with %T %+v", open.body, m.body, m.body)
		}
		// It goes on as if it had been let in, and asks something that is answered: that
		// is the next it hears.
		if err := say(s, message{e, &heartbeat{at: 1}}, message{e, &offer{}}, message{body: &ping{int64(n) + 1}}); err != nil {
			r.Fatal(err)
		}
		m = r.hears(s)
		p, ok := m.body.(*pong)
		if !ok || p.sent != int64(n)+1 {
			r.Fatalf("after the refusal it hears %T %+v", m.body, m.body)
		}
	}
	if h := r.to.Head(); h.Seq != 0 {
		r.Errorf("the journal is at %v", h.Position)
	}
}

// expired: somebody comes with a token that is good no more, one that was used, one that
// nobody made.
func (r *refuser) expired() {
	late := NewInvite("b", "a", []string{"x"}, r.replica.o.Identity.Pin(), time.Now().Add(-time.Second))
	guessed := NewInvite("b", "a", []string{"x"}, r.replica.o.Identity.Pin(), time.Now().Add(time.Hour))
	inv := &inviter{open: map[[32]byte]Invite{}}
	inv.add(late)
	r.replica.o.Inviting, r.replica.o.Join = inv.inviting, inv.join
	r.at = r.replica.up(faults{})
	for _, c := range []struct {
		with Invite
		code Code
	}{{late, CodeExpired}, {guessed, CodeInvite}} {
		conn, s, err := r.call(mustIdentity(r), alpnJoin)
		if err == nil {
			err = say(s, message{body: &join{secret: c.with.Secret, site: "a"}})
		}
		if err != nil {
			r.Fatal(err)
		}
		var got Code
		m, err := readMessage(s)
		var closed *transport.ClosedError
		switch b, ok := m.body.(*bye); {
		case err == nil && ok:
			got = b.code
		case errors.As(err, &closed):
			got = Code(closed.Code)
		}
		if got != c.code {
			r.Errorf("refused with %v: %+v, %v; want %v", got, m, err, c.code)
		}
		if rest, _ := io.ReadAll(s); len(rest) > 0 {
			r.Errorf("told %d bytes more", len(rest))
		}
		conn.Close(0, "")
	}
	if r.asked.Load() != 0 || len(inv.came()) != 0 {
		r.Errorf("asked %d times, joined %v", r.asked.Load(), inv.came())
	}
}

// full is a replica without room.
type full struct{ Replica }

func (full) AppendFrame(context.Context, io.Reader, int64, journal.Chain) (journal.Cursor, bool, error) {
	return journal.Cursor{}, false, fmt.Errorf("append frame: quota or disk: %w", syscall.ENOSPC)
}

// Why a replica takes no more is told at the source in its words, over each transport,
// however much is on its way.
func TestFullReplicaIsToldAtTheSource(t *testing.T) {
	for _, way := range []Carrier{CarryQUIC, CarryTLS} {
		t.Run(string(way), func(t *testing.T) {
			p := newPair(t)
			p.replica.o.Listen = port.Address(t)
			p.source.o.Peers[0].Carrier, p.source.o.RetryFirst, p.source.o.RetryLimit = way, 20*time.Millisecond, time.Second
			receive := p.replica.o.Receive
			p.replica.o.Receive = func(peer string, id journal.Identity, te, gr string) (Replica, error) {
				r, err := receive(peer, id, te, gr)
				return full{r}, err
			}
			p.source.o.Peers[0].Address = p.replica.up(faults{})
			p.load(40, 4, 100<<10)
			p.source.up(faults{})
			eventually(t, "the source knows why", func() bool {
				l := p.source.lag()
				var no *RefusedError
				return l.State == StateRefused && errors.As(l.Err, &no) && no.Code == CodeAppend && strings.Contains(no.Text, syscall.ENOSPC.Error())
			})
		})
	}
}
