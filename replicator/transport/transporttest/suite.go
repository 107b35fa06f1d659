package transporttest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"testing"
	"time"

	"github.com/novacron/afterimage/replicator/transport"
)

// patience is how long a condition may take on a slow machine; none needs it.
const patience = time.Minute

// Open makes the transport under test.
type Open func(transport.Options) (transport.Transport, error)

// Conform holds a transport against what package transport promises. open is called
// for each site; sites that it opens must reach each other.
func Conform(t *testing.T, open Open) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, open Open)
	}{
		{"streams carry bytes in order and end", testStreams},
		{"lanes carry bytes in order and end", testLanes},
		{"a lane that is not read holds up nothing", testIndependence},
		{"cancelled streams fail at both ends", testCancel},
		{"deadlines end waits", testDeadlines},
		{"the end is heard with its code", testClose},
		{"strangers are not let in", testStrangers},
		{"the wrong site is not dialled", testWrongSite},
		{"waits end with their contexts", testContexts},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open) })
	}
}

func newCertificate(t *testing.T) (tls.Certificate, [32]byte) {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
}

func pinOf(s tls.ConnectionState) [32]byte {
	if len(s.PeerCertificates) == 0 {
		return [32]byte{}
	}
	return sha256.Sum256(s.PeerCertificates[0].RawSubjectPublicKeyInfo)
}

var errStranger = errors.New("not the key that was expected")

// trusting is a configuration of the site with cert that knows one other key.
func trusting(cert tls.Certificate, pin func() [32]byte) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, NextProtos: []string{"conform/1"},
		SessionTicketsDisabled: true, InsecureSkipVerify: true, ClientAuth: tls.RequestClientCert,
		VerifyConnection: func(s tls.ConnectionState) error {
			if pinOf(s) != pin() {
				return errStranger
			}
			return nil
		}}
}

const laneBytes = 256 << 10

func newParty(t *testing.T, open Open, listen bool, cert tls.Certificate, known func() [32]byte) transport.Transport {
	t.Helper()
	o := transport.Options{HandshakeTimeout: patience, IdleTimeout: patience, LaneBytes: laneBytes, MaxLanes: 8, MaxQuestions: 2}
	_, _ = rand.Read(o.ResetKey[:])
	_, _ = rand.Read(o.TokenKey[:])
	if listen {
		o.Listen, o.Accept = "127.0.0.1:0", trusting(cert, known)
	}
	tr, err := open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tr.Close() })
	return tr
}

// pair is a connection between two sites that know each other.
type pair struct {
	*testing.T
	ctx             context.Context
	caller, called  transport.Conn
	callerS, calleS transport.Stream // the control stream
}

// Connected is both ends of a connection whose dialling end may open so many lanes.
func Connected(t *testing.T, open Open, lanes int) (caller, called transport.Conn) {
	p := newConn(t, func(o transport.Options) (transport.Transport, error) {
		o.MaxLanes = lanes
		return open(o)
	})
	return p.caller, p.called
}

func newConn(t *testing.T, open Open) *pair {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	certA, pinA := newCertificate(t)
	certB, pinB := newCertificate(t)
	b := newParty(t, open, true, certB, func() [32]byte { return pinA })
	a := newParty(t, open, false, certA, nil)
	p := &pair{T: t, ctx: ctx}
	accepted := make(chan error, 1)
	go func() {
		var err error
		if p.called, err = b.Accept(ctx); err == nil {
			p.calleS, err = p.called.Control(ctx)
		}
		accepted <- err
	}()
	var err error
	if p.caller, err = a.Dial(ctx, b.Addr().String(), trusting(certA, func() [32]byte { return pinB })); err != nil {
		t.Fatal(err)
	}
	if p.callerS, err = p.caller.Control(ctx); err != nil {
		t.Fatal(err)
	}
	p.say(p.callerS, []byte("hello"))
	if err := <-accepted; err != nil {
		t.Fatal(err)
	}
	p.hear(p.calleS, []byte("hello"))
	if pinOf(p.caller.State()) != pinB || pinOf(p.called.State()) != pinA {
		t.Fatal("the keys are not those of the other end")
	}
	if p.caller.State().NegotiatedProtocol != "conform/1" {
		t.Fatalf("protocol %q", p.caller.State().NegotiatedProtocol)
	}
	return p
}

func (p *pair) say(w io.Writer, b []byte) {
	p.Helper()
	if n, err := w.Write(b); n != len(b) || err != nil {
		p.Fatalf("wrote %d of %d bytes: %v", n, len(b), err)
	}
}

func (p *pair) hear(r io.Reader, want []byte) {
	p.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil {
		p.Fatalf("read %d of %d bytes: %v", n, len(want), err)
	}
	if !bytes.Equal(got, want) {
		p.Fatal("read other bytes than were written")
	}
}

// noise is n bytes that differ from place to place.
func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// closed waits until c has ended.
func (p *pair) closed(c transport.Conn) {
	p.Helper()
	select {
	case <-c.Done():
	case <-p.ctx.Done():
		p.Fatal("the connection does not end")
	}
}

// withoutCertificate is c of a site that shows no key.
func withoutCertificate(c *tls.Config) *tls.Config {
	c.Certificates = nil
	return c
}
