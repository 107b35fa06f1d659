package transporttest

import (
	"context"
	"crypto/tls"
	"errors"
	"testing"

	"github.com/novacron/afterimage/replicator/transport"
)

// Three is a site that knows two others, of which one has begun a session with it.
type Three struct {
	Called, Caller, Other            transport.Transport
	CallerTLS, OtherTLS, StrangerTLS *tls.Config // by which each calls
	CallerConn, CalledConn           transport.Conn
}

// NewThree connects them.
func NewThree(t *testing.T, open Open) *Three {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	cert, pin := newCertificate(t)
	callerCert, callerPin := newCertificate(t)
	otherCert, otherPin := newCertificate(t)
	strangerCert, _ := newCertificate(t)
	as := func(c tls.Certificate) *tls.Config { return trusting(c, func() [32]byte { return pin }) }
	accept := trusting(cert, nil)
	accept.VerifyConnection = func(s tls.ConnectionState) error {
		if p := pinOf(s); p != callerPin && p != otherPin {
			return errors.New("neither of the two")
		}
		return nil
	}
	o := transport.Options{Listen: "127.0.0.1:0", Accept: accept, HandshakeTimeout: patience, IdleTimeout: patience, LaneBytes: laneBytes, MaxLanes: 8, MaxQuestions: 2}
	called, err := open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = called.Close() })
	w := &Three{Called: called, Caller: newParty(t, open, false, callerCert, nil), Other: newParty(t, open, false, otherCert, nil),
		CallerTLS: as(callerCert), OtherTLS: as(otherCert), StrangerTLS: as(strangerCert)}
	if w.CallerConn, err = w.Caller.Dial(ctx, called.Addr().String(), w.CallerTLS); err != nil {
		t.Fatal(err)
	}
	if w.CalledConn, err = called.Accept(ctx); err != nil {
		t.Fatal(err)
	}
	return w
}
