package transport

import (
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
)

// A Conn is made of several connections. The first is the session's; the others join
// it, each for one stream:
//
//	first connection       TLS with the session's protocol; both ends derive the
//	                       session's secret from its keys (RFC 8446, section 7.5)
//	joining connection     TLS with the session's protocol and laneSuffix, the same
//	                       tls.Config, then on its one stream:
//
//	 0  "AIJ1"
//	 4  version u8 | purpose u8 | reserved u16
//	 8  secret [32]
//
// A joining connection is as trusted as the first: the same pins judge it, it shows the
// same key as the session did, and names a secret that only the session's two ends can
// know. Anything else is closed with CodeNoSession and not one byte of it is used.
const (
	laneSuffix  = "+lane"
	joinBytes   = 40
	joinVersion = 1
	secretLabel = "EXPORTER-afterimage-session"
	maxUnjoined = 64 // connections that have not named their session yet, at once
)

// What a joining connection is for. QUIC has lanes alone: the rest are streams of the
// first connection there.
const (
	purposeLane     = 1
	purposeControl  = 2
	purposeQuestion = 3 // the dialling end asks
	purposeParked   = 4 // waits for a question of the listening end
)

// CodeNoSession closes a connection that joins a session which is not there, or not its own.
const CodeNoSession uint16 = 20

// ErrNoSession is CodeNoSession at the end that refuses.
var ErrNoSession = errors.New("no such session of this peer")

type secret [32]byte

// secretOf is the session's, the same at both ends of its first connection.
func secretOf(s tls.ConnectionState) (secret, error) {
	b, err := s.ExportKeyingMaterial(secretLabel, nil, len(secret{}))
	if err != nil {
		return secret{}, fmt.Errorf("derive session's secret: %w", err)
	}
	return secret(b), nil
}

func (s secret) join(purpose byte) []byte {
	b := make([]byte, joinBytes)
	copy(b, "AIJ1")
	b[4], b[5] = joinVersion, purpose
	copy(b[8:], s[:])
	return b
}

// readJoin reads what a joining connection says first.
func readJoin(r io.Reader) (s secret, purpose byte, err error) {
	b := make([]byte, joinBytes)
	if _, err := io.ReadFull(r, b); err != nil {
		return s, 0, fmt.Errorf("read joining: %w", err)
	}
	if string(b[:4]) != "AIJ1" || b[4] != joinVersion || b[6]|b[7] != 0 {
		return s, 0, fmt.Errorf("read joining: %x is none: %w", b[:8], ErrNoSession)
	}
	return secret(b[8:]), b[5], nil
}

// keyOf is the key that the other end has proven to hold.
func keyOf(s tls.ConnectionState) [32]byte {
	if len(s.PeerCertificates) == 0 {
		return [32]byte{}
	}
	return sha256.Sum256(s.PeerCertificates[0].RawSubjectPublicKeyInfo)
}

// sessions are those that connections may join, at the listening end.
type sessions[C any] struct {
	anyKey bool // planted by a test: the key that a connection shows is not compared

	mu sync.Mutex // guards of
	of map[secret]session[C]
}

type session[C any] struct {
	conn C
	key  [32]byte
}

func (l *sessions[C]) add(s secret, conn C, key [32]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of == nil {
		l.of = map[secret]session[C]{}
	}
	l.of[s] = session[C]{conn, key}
}

func (l *sessions[C]) drop(s secret) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.of, s)
}

// find gives the session that a connection with key may join.
func (l *sessions[C]) find(s secret, key [32]byte) (C, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	found, ok := l.of[s]
	if !ok || found.key != key && !l.anyKey {
		var none C
		return none, ErrNoSession
	}
	return found.conn, nil
}

// joiningTLS is c for a connection that joins a session begun with c.
func joiningTLS(c *tls.Config) *tls.Config {
	c = c.Clone()
	c.NextProtos = suffixed(c.NextProtos)
	return c
}

func suffixed(protos []string) []string {
	var out []string
	for _, p := range protos {
		out = append(out, p+laneSuffix)
	}
	return out
}

func isJoining(s tls.ConnectionState) bool {
	return strings.HasSuffix(s.NegotiatedProtocol, laneSuffix)
}

// acceptTLS lets in what c does, and connections that join sessions by the same rules:
// c is asked as if the session's protocol had been named.
func acceptTLS(c *tls.Config) *tls.Config {
	out := c.Clone()
	inner := c.GetConfigForClient
	out.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		joining := len(hello.SupportedProtos) > 0 && !slices.ContainsFunc(hello.SupportedProtos, func(p string) bool { return !strings.HasSuffix(p, laneSuffix) })
		asked := *hello
		if joining {
			asked.SupportedProtos = nil
			for _, p := range hello.SupportedProtos {
				asked.SupportedProtos = append(asked.SupportedProtos, strings.TrimSuffix(p, laneSuffix))
			}
		}
		chosen := c
		if inner != nil {
			got, err := inner(&asked)
			if err != nil {
				return nil, err
			}
			if got != nil {
				chosen = got
			}
		}
		chosen = chosen.Clone()
		chosen.GetConfigForClient = nil
		if joining {
			chosen.NextProtos = suffixed(chosen.NextProtos)
		}
		return chosen, nil
	}
	return out
}
