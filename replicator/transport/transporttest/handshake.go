package transporttest

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/novacron/afterimage/replicator/transport"
)

// caller is what a tls.Config sees of who calls.
type caller struct {
	net.Conn
	from net.Addr
}

func (c caller) RemoteAddr() net.Addr { return c.from }

// Introduce is what a handshake between who calls from an address, with ours, and who is
// called, with theirs, would prove to each: what here and beyond learn. Errors are the
// caller's: what it finds wrong itself, transport.ErrUntrusted with what the other end does.
func Introduce(from net.Addr, ours, theirs *tls.Config) (here, beyond tls.ConnectionState, err error) {
	if theirs.GetConfigForClient != nil {
		c, err := theirs.GetConfigForClient(&tls.ClientHelloInfo{SupportedProtos: ours.NextProtos, Conn: caller{from: from}})
		if err != nil {
			return here, beyond, err
		}
		theirs = c
	}
	if here, err = shown(theirs, ours); err == nil {
		err = ours.VerifyConnection(here)
	}
	if err != nil {
		return here, beyond, err
	}
	if beyond, err = shown(ours, theirs); err == nil {
		err = theirs.VerifyConnection(beyond)
	}
	if err != nil {
		return here, beyond, fmt.Errorf("%w: %w", transport.ErrUntrusted, err)
	}
	return here, beyond, nil
}

// shown is what the end with config to learns in a handshake of the one with config of.
func shown(of, to *tls.Config) (tls.ConnectionState, error) {
	s := tls.ConnectionState{Version: tls.VersionTLS13, HandshakeComplete: true}
	for _, p := range of.NextProtos {
		if slices.Contains(to.NextProtos, p) {
			s.NegotiatedProtocol = p
			break
		}
	}
	if s.NegotiatedProtocol == "" {
		return s, errors.New("no application protocol in common")
	}
	if len(of.Certificates) == 0 {
		return s, nil
	}
	leaf, err := x509.ParseCertificate(of.Certificates[0].Certificate[0])
	if err != nil {
		return s, fmt.Errorf("read certificate: %w", err)
	}
	s.PeerCertificates = []*x509.Certificate{leaf}
	return s, nil
}
