package replicator

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/replicator/transport"
)

// Peer is another site, known by its key. An address is only where to look for it.
type Peer struct {
	Name    string // unique
	Address string // host:port to dial; empty: it only calls us
	Pin     Pin
	// AlsoPins are others by which it may show itself: while it changes its key.
	AlsoPins []Pin
	// Carrier is what it is called by; empty: CarryAuto.
	Carrier Carrier
	// MaxConnections of a session that this site begins; 0: Options.MaxConnections.
	MaxConnections int
	// Packing of what is sent to it; PackAuto: as Options.Packing says.
	Packing Packing

	Limits              Timetable // of what is sent to it; zero: the next field says it
	LimitBytesPerSecond int64     // 0: no limit
	BurstBytes          int64     // 0: an eighth of a second's worth
	Set                 *SetLimit // in force in place of them to begin with
}

// Group is one group that this site sends: as its primary, or as a relay.
type Group struct {
	Tenant, Name string
	Source       Source
	Peers        []string // names of those that get it
	// Coalesce is, by peer, how far behind it may be before it gets a delta to the newest
	// record in place of all frames; the points in between are not at the peer then.
	Coalesce map[string]time.Duration
	Limits   Timetable // of what is sent of it, to all peers together
	Set      *SetLimit // in force in place of it to begin with
	// Weight is its share of a peer's connections beside other groups: one of 4 gets
	// twice what one of 2 gets. 0 is 1.
	Weight int
	// Relay: this site is not its primary but sends on what it receives (relay.go).
	Relay bool
}

// Options of a Replicator. Identity is required; zero values of the others work.
type Options struct {
	Site     string // for people: told to peers
	Identity *Identity
	Listen   string // UDP host:port; empty: nobody can call us
	Peers    []Peer

	// Groups are those that this site sends. Called at the start and by Refresh.
	Groups func() []Group
	// Receive gives the journal for a group that a peer wants to send; nil: none.
	// It may create one. For a group that must not take records here it returns
	// the journal, if there is one, and an error that wraps ErrNotReplica: then
	// histories are still compared, and a conflict is found. Called at every
	// opening and by Refresh; the same group must give the same, comparable, value.
	Receive func(peer string, id journal.Identity, tenant, group string) (Replica, error)

	// Inviting reports that callers with a token may come in to be pinned, and Join
	// judges one: nil once its key is pinned durably and its token is worth nothing any
	// more, ErrInvite or ErrInviteExpired. Nil: nobody joins.
	Inviting func() bool
	Join     func(Joiner) error

	// Successor pins a peer's next key beside the present one, durably, before it returns;
	// SetPeers follows it. Confirmed tells that a peer has done so with the key that
	// Announce told of. Seen tells by which key a peer showed itself, at every session's
	// begin. See rotate.go. They may be called several at once.
	Successor func(peer string, next Pin) error
	Confirmed func(peer string, next Pin)
	Seen      func(peer string, pin Pin)

	// Consult answers what a peer asks about a group; nil: nothing. It judges whether the
	// peer may ask. Called from several goroutines at once; the peer's other questions wait.
	Consult func(ctx context.Context, peer string, id journal.Identity, topic string, text []byte) ([]byte, error)
	// Talks reports that a peer is called though no group is sent to it, to be consulted;
	// Refresh asks again. Nil: none is.
	Talks func(peer string) bool

	HeartbeatInterval time.Duration // 250 ms
	PingInterval      time.Duration // clock measurements; 1 s
	IdleTimeout       time.Duration // a silent connection is dead; 10 s, keep-alives come thrice as often
	HandshakeTimeout  time.Duration // 5 s
	OpenTimeout       time.Duration // wait for a group's acceptance; 30 s
	StallTimeout      time.Duration // connected but nothing moves: reconnect; 60 s
	RetryFirst        time.Duration // first wait between attempts; 100 ms
	RetryLimit        time.Duration // longest wait between attempts; 5 s
	HaltRetry         time.Duration // wait before a halted group is compared again; 30 s
	UDPRetry          time.Duration // a peer that is reached over TCP for want of UDP: wait before UDP is tried again; 1 min
	MaxGroups         int           // that one peer may send over one connection; 64
	MaxConnections    int           // that one session uses at most; how many help is found out; 128
	WindowBytes       int64         // bytes in flight per group, our memory for it; 16 MiB
	Packing           Packing       // of frames on their way; PackAuto: where it pays
	MaxFrameBytes     int64         // frames announced larger are refused; 1 GiB

	// Transport opens what carries sessions; nil: QUIC, and TLS over TCP beside it. Tests
	// put another in their place.
	Transport func(transport.Options) (transport.Transport, error)

	Events Events
	Log    *slog.Logger
	Now    func() time.Time // time.Now; must carry a monotonic reading
}

func (o Options) withDefaults() Options {
	o.Events = o.Events.withDefaults()
	if o.Groups == nil {
		o.Groups = func() []Group { return nil }
	}
	if o.Receive == nil {
		o.Receive = func(string, journal.Identity, string, string) (Replica, error) { return nil, ErrUnknownGroup }
	}
	if o.Talks == nil {
		o.Talks = func(string) bool { return false }
	}
	if o.Inviting == nil || o.Join == nil {
		o.Inviting = func() bool { return false }
		o.Join = func(Joiner) error { return ErrInvite }
	}
	if o.Successor == nil {
		o.Successor = func(string, Pin) error { return errors.New("this site follows no change of keys") }
	}
	if o.Confirmed == nil {
		o.Confirmed = func(string, Pin) {}
	}
	if o.Seen == nil {
		o.Seen = func(string, Pin) {}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&o.HeartbeatInterval, 250 * time.Millisecond}, {&o.PingInterval, time.Second},
		{&o.IdleTimeout, 10 * time.Second}, {&o.HandshakeTimeout, 5 * time.Second},
		{&o.OpenTimeout, 30 * time.Second}, {&o.StallTimeout, time.Minute},
		{&o.RetryFirst, 100 * time.Millisecond}, {&o.RetryLimit, 5 * time.Second}, {&o.UDPRetry, time.Minute}, {&o.HaltRetry, 30 * time.Second},
	} {
		*d.field = cmp.Or(*d.field, d.value)
	}
	o.MaxGroups = cmp.Or(o.MaxGroups, 64)
	o.MaxConnections = cmp.Or(o.MaxConnections, 128)
	o.WindowBytes = cmp.Or(o.WindowBytes, 16<<20)
	o.MaxFrameBytes = cmp.Or(o.MaxFrameBytes, 1<<30)
	return o
}

// wantUDPBufferBytes is what quic-go asks of the kernel (its wiki page "UDP Buffer Sizes").
const wantUDPBufferBytes = 7 << 20

// forTransport are the options of a transport that callers reach through accept.
func (o Options) forTransport(accept *tls.Config) transport.Options {
	return transport.Options{Listen: o.Listen, Accept: accept, HandshakeTimeout: o.HandshakeTimeout, IdleTimeout: o.IdleTimeout,
		LaneBytes: o.WindowBytes / 2, MaxLanes: o.MaxConnections + 1, MaxQuestions: maxQuestions,
		ResetKey: o.Identity.derived("stateless reset"), TokenKey: o.Identity.derived("address token")}
}

func (o Options) validate() error {
	if o.Identity == nil {
		return errors.New("an identity is required")
	}
	if o.HeartbeatInterval < 0 || o.IdleTimeout < 0 || o.RetryLimit < o.RetryFirst || o.WindowBytes < maxPieceBytes || o.MaxConnections < 1 || o.MaxGroups < 1 || o.MaxFrameBytes < 1 {
		return errors.New("intervals are positive, the longest wait is not below the first, the window holds at least 128 KiB, connections are at least one")
	}
	return checkPeers(o.Peers, o.Identity.Pin())
}
