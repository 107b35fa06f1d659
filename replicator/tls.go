package replicator

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"slices"
	"time"
)

// alpn is the protocol's name in the TLS handshake; a change that old peers
// cannot be told about in Hello gets a new one.
const alpn = "afterimage/1"

// certificate is a self-signed wrapping of the key. Only the key in it is ever
// looked at (its pin), so the dates are without end.
func (id *Identity) certificate() (tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "afterimage"},
		NotBefore:    time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, id.key.Public(), id.key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("sign own certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: id.key}, nil
}

// derived is a secret for one purpose, the same in every life of this site.
func (id *Identity) derived(purpose string) [32]byte {
	key, err := hkdf.Key(sha256.New, id.key.Seed(), nil, "afterimage "+purpose, 32)
	if err != nil {
		panic(err) // only an impossible length is refused
	}
	return [32]byte(key)
}

// shownPin is the pin of the key that the other end has proven to hold; zero
// when it showed none, or one that is not ours to judge.
func shownPin(state tls.ConnectionState) Pin {
	if len(state.PeerCertificates) == 0 {
		return Pin{}
	}
	leaf := state.PeerCertificates[0]
	if _, ok := leaf.PublicKey.(ed25519.PublicKey); !ok {
		return Pin{}
	}
	return sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
}

// baseTLS holds what both ends share. Trust rests on VerifyConnection alone,
// which also runs for resumed sessions; tickets are off all the same, and with
// them 0-RTT, whose data an attacker can replay (RFC 8446, section 8).
func baseTLS(cert tls.Certificate) *tls.Config {
	return &tls.Config{
		Certificates:           []tls.Certificate{cert},
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{alpn},
		SessionTicketsDisabled: true,
		RootCAs:                x509.NewCertPool(),
		ClientCAs:              x509.NewCertPool(),
	}
}

// dialTLS trusts exactly the keys named want.
func dialTLS(cert tls.Certificate, peer string, pins func() []Pin) *tls.Config {
	c := baseTLS(cert)
	c.InsecureSkipVerify = true // no names and no authorities here: the pin is checked instead
	c.VerifyConnection = func(state tls.ConnectionState) error {
		want := pins()
		if seen := shownPin(state); seen.IsZero() || !slices.Contains(want, seen) {
			return &PinError{Peer: peer, Expected: want, Seen: seen}
		}
		return nil
	}
	return c
}

// listenTLS lets in the keys that known accepts and reports every other one.
// While inviting, a caller that names alpnJoin may show any key: it is served by
// receiveJoiner alone.
func listenTLS(cert func() tls.Certificate, known func(Pin) bool, inviting func() bool, refused func(*PinError)) *tls.Config {
	base := baseTLS(cert())
	// A certificate is asked for, and its absence refused in VerifyConnection, so
	// that a caller without one is reported like any other stranger.
	base.ClientAuth = tls.RequestClientCert
	verify := func(from net.Addr) func(tls.ConnectionState) error {
		return func(state tls.ConnectionState) error {
			seen := shownPin(state)
			if !seen.IsZero() && known(seen) {
				return nil
			}
			err := &PinError{Address: from, Seen: seen}
			refused(err)
			return err
		}
	}
	base.VerifyConnection = verify(nil)
	base.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		c := base.Clone()
		c.Certificates = []tls.Certificate{cert()}
		c.GetConfigForClient = nil
		if slices.Equal(hello.SupportedProtos, []string{alpnJoin}) && inviting() {
			c.NextProtos = []string{alpnJoin}
			c.VerifyConnection = func(state tls.ConnectionState) error {
				if shownPin(state).IsZero() {
					return &PinError{Address: hello.Conn.RemoteAddr()}
				}
				return nil
			}
			return c, nil
		}
		c.VerifyConnection = verify(hello.Conn.RemoteAddr())
		return c, nil
	}
	return base
}
