package replicator

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"time"

	"github.com/novacron/afterimage/replicator/transport"
)

// Two sites come to know each other's keys by a token that a person carries from one
// to the other, over a channel of their own trust:
//
//	inviting site                                 joining site
//	NewInvite; keeps the secret's hash
//	  ──────────── token, by hand ─────────────→  ParseInvite
//	  ←─── TLS 1.3, ALPN afterimage-join/1 ─────  dials; the token's pin must be shown
//	Options.Join: secret, expiry, name ←─ Join ─  its own key is the one of the handshake
//	pins that key, durably ──────── Joined ────→  pins the token's key, durably
//
// The secret proves that the caller holds the token; it is used once. A token that is
// read by somebody else before it is used lets that one in, so it is short-lived and
// shown once; afterwards it is worth nothing.

// Secret is what proves that a caller holds a token.
type Secret [32]byte

// Hash is what the inviting site keeps of a secret.
func (s Secret) Hash() [32]byte { return sha256.Sum256(s[:]) }

// Invite is what a token says.
type Invite struct {
	Site      string   // that invites
	Peer      string   // what it calls the site that is invited
	Addresses []string // host:port where it listens
	Pin       Pin      // its key
	Secret    Secret
	Expires   time.Time // to the second
}

// Sentinels of pairing.
var (
	ErrInviteExpired = errors.New("the token has expired")
	// ErrInvite: no invitation goes with it: it was used, taken back, or never made.
	ErrInvite = errors.New("the token is not known")
	// ErrToken: the text is no token.
	ErrToken = errors.New("not a token")
)

const (
	tokenPrefix  = "aijoin1-"
	alpnJoin     = "afterimage-join/1"
	maxAddresses = 8
	joinTimeout  = 15 * time.Second
	maxJoining   = 4 // callers that are not known yet, at once
)

// NewInvite draws a secret.
func NewInvite(site, peer string, addresses []string, pin Pin, expires time.Time) Invite {
	i := Invite{Site: site, Peer: peer, Addresses: addresses, Pin: pin, Expires: expires.Truncate(time.Second)}
	_, _ = rand.Read(i.Secret[:]) // never fails
	return i
}

// Token is i as one word.
func (i Invite) Token() (string, error) {
	p := &packer{}
	p.text(i.Site, maxNameBytes)
	p.text(i.Peer, maxNameBytes)
	p.u16(uint16(len(i.Addresses)))
	for _, a := range i.Addresses {
		p.text(a, maxNameBytes)
	}
	p.raw(i.Pin[:])
	p.raw(i.Secret[:])
	p.u64(uint64(i.Expires.Unix()))
	if len(i.Addresses) == 0 || len(i.Addresses) > maxAddresses {
		p.err = fmt.Errorf("%d addresses: %w", len(i.Addresses), ErrToken)
	}
	if p.err != nil {
		return "", fmt.Errorf("make token: %w", p.err)
	}
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(binary.LittleEndian.AppendUint32(p.b, crc32.Checksum(p.b, castagnoli))), nil
}

// ParseInvite reads a token. Every mistake in copying it is noticed.
func ParseInvite(token string) (Invite, error) {
	text, ok := strings.CutPrefix(strings.TrimSpace(token), tokenPrefix)
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	n := len(b) - crcBytes
	if !ok || err != nil || n < 0 || crc32.Checksum(b[:n], castagnoli) != binary.LittleEndian.Uint32(b[n:]) {
		return Invite{}, fmt.Errorf("read token: %w: it begins with %s and is copied whole", ErrToken, tokenPrefix)
	}
	var i Invite
	p := &parser{b: b[:n]}
	i.Site, i.Peer = p.text(maxNameBytes), p.text(maxNameBytes)
	count := int(p.u16())
	for range min(count, maxAddresses) {
		i.Addresses = append(i.Addresses, p.text(maxNameBytes))
	}
	copy(i.Pin[:], p.take(len(i.Pin)))
	copy(i.Secret[:], p.take(len(i.Secret)))
	i.Expires = time.Unix(int64(p.u64()), 0)
	if p.err != nil || len(p.b) > 0 || count == 0 || count > maxAddresses || i.Pin.IsZero() || i.Site == "" || i.Peer == "" {
		return Invite{}, fmt.Errorf("read token: %w: of a later version, or not made by a site", ErrToken)
	}
	return i, nil
}

// Joiner is who came with a token: its key is proven, all else is what it says.
type Joiner struct {
	Pin     Pin
	Secret  Secret
	Site    string
	Address string // where it can be called, "" where it cannot
}

// join asks to be pinned.
type join struct {
	secret        Secret
	site, address string
}

func (*join) kind() messageType { return typeJoin }

func (m *join) pack(p *packer) {
	p.raw(m.secret[:])
	p.text(m.site, maxNameBytes)
	p.text(m.address, maxNameBytes)
}

func (m *join) unpack(p *parser) {
	copy(m.secret[:], p.take(len(m.secret)))
	m.site, m.address = p.text(maxNameBytes), p.text(maxNameBytes)
}

// joined says that the caller is pinned.
type joined struct{ site string }

func (*joined) kind() messageType  { return typeJoined }
func (m *joined) pack(p *packer)   { p.text(m.site, maxNameBytes) }
func (m *joined) unpack(p *parser) { m.site = p.text(maxNameBytes) }

// receiveJoiner answers one caller with a token; nothing else is read from it.
func (r *Replicator) receiveJoiner(ctx context.Context, conn transport.Conn) {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	err := r.answerJoiner(ctx, conn)
	if err != nil {
		r.o.Log.Warn("joining refused", "address", conn.RemoteAddr(), "err", err)
		closeLink(conn, err)
		return
	}
	select {
	case <-conn.Done(): // it has heard
	case <-ctx.Done():
		closeLink(conn, nil)
	}
}

func (r *Replicator) answerJoiner(ctx context.Context, conn transport.Conn) error {
	s, err := conn.Control(ctx)
	if err != nil {
		return fmt.Errorf("accept joining: %w", err)
	}
	if err := s.SetDeadline(time.Now().Add(joinTimeout)); err != nil {
		return err
	}
	m, err := readMessage(s)
	if err != nil {
		return err
	}
	j, ok := m.body.(*join)
	if !ok {
		return fmt.Errorf("join: first message is none: %w", ErrProtocol)
	}
	err = r.o.Join(Joiner{Pin: shownPin(conn.State()), Secret: j.secret, Site: j.site, Address: j.address})
	var answer body = &joined{site: r.o.Site}
	if err != nil {
		answer = &bye{code: joinCode(err), text: clipText(err.Error(), maxTextBytes)}
	}
	b, eerr := encodeMessage(message{body: answer})
	if eerr != nil {
		return errors.Join(err, eerr)
	}
	if _, werr := s.Write(b); werr != nil {
		return errors.Join(err, werr)
	}
	_ = s.Close() // the answer is on its way; the caller ends the connection
	if err != nil {
		select {
		case <-conn.Done():
		case <-ctx.Done():
		}
	}
	return err
}

func joinCode(err error) Code {
	if errors.Is(err, ErrInviteExpired) {
		return CodeExpired
	}
	return CodeInvite
}

// Join presents a token to the site that made it, which pins our key then. address is
// where it can call us; "" where it cannot. It needs Run. Errors: ErrInviteExpired,
// ErrInvite, *PinError where another key is shown than the token names.
func (r *Replicator) Join(ctx context.Context, i Invite, address string) error {
	if !r.o.Now().Before(i.Expires) {
		return fmt.Errorf("join %s: %w at %s", i.Site, ErrInviteExpired, i.Expires.Format(time.RFC3339))
	}
	r.mu.Lock()
	by := r.by
	r.mu.Unlock()
	if by == nil {
		return fmt.Errorf("join %s: %w: this site's replicator does not run", i.Site, ErrNotConnected)
	}
	var errs []error
	for _, a := range i.Addresses {
		err := r.joinAt(ctx, by, a, i, address)
		var no *RefusedError
		if err == nil || errors.As(err, &no) {
			return err
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("join %s: %w: %w", i.Site, ErrNotConnected, errors.Join(errs...))
}

func (r *Replicator) joinAt(ctx context.Context, by carriers, at string, i Invite, address string) error {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	c := dialTLS(r.self().cert, i.Site, func() []Pin { return []Pin{i.Pin} })
	c.NextProtos = []string{alpnJoin}
	h := &reach{carriers: by, p: &peer{Peer: Peer{Address: at}}, c: c}
	conn, err := h.dial(ctx)
	if err != nil {
		err = r.explain(i.Site, fmt.Errorf("dial %s: %w", at, err))
		var no *RefusedError
		if errors.As(err, &no) && no.Code == CodeUnpinned {
			return &RefusedError{Peer: i.Site, Code: CodeInvite, Text: "the site invites nobody: the token was used, replaced or taken back"}
		}
		return err
	}
	defer closeLink(conn, nil)
	s, err := conn.Control(ctx)
	if err == nil {
		err = s.SetDeadline(time.Now().Add(joinTimeout))
	}
	if err != nil {
		return r.explain(i.Site, err)
	}
	b, err := encodeMessage(message{body: &join{secret: i.Secret, site: r.o.Site, address: address}})
	if err != nil {
		return err
	}
	if _, err := s.Write(b); err != nil {
		return r.explain(i.Site, err)
	}
	m, err := readMessage(s)
	if err != nil {
		return r.explain(i.Site, err)
	}
	switch b := m.body.(type) {
	case *joined:
		return nil
	case *bye:
		return &RefusedError{Peer: i.Site, Code: b.code, Text: b.text}
	}
	return fmt.Errorf("join %s: the answer is none: %w", i.Site, ErrProtocol)
}
