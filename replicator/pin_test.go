package replicator

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/quic-go/quic-go"

	"github.com/novacron/afterimage/journal"
)

// Promise 14: a caller whose key is in no configuration gets nothing and is named.
func TestUnpinnedCallerGetsNothing(t *testing.T) {
	p := newPair(t)
	stranger := mustIdentity(t)
	wanted := p.source.o.Identity.Pin()
	p.source.o.Identity = stranger
	var asked atomic.Int32
	receive := p.replica.o.Receive
	p.replica.o.Receive = func(peer string, id journal.Identity, te, gr string) (Replica, error) {
		asked.Add(1)
		return receive(peer, id, te, gr)
	}
	p.up()
	eventually(t, "reported", func() bool {
		p.replica.mu.Lock()
		defer p.replica.mu.Unlock()
		return len(p.replica.unpinned) > 1
	})
	p.replica.note(func() {
		e := p.replica.unpinned[0]
		if e.Seen != stranger.Pin() || e.Seen == wanted || e.Address == nil {
			t.Errorf("reported %+v, want pin %v and an address", e, stranger.Pin())
		}
	})
	eventually(t, "caller is told", func() bool {
		var refused *RefusedError
		return errors.As(p.source.lag().Err, &refused) && refused.Code == CodeUnpinned
	})
	if asked.Load() != 0 || p.to.Head().Seq != 0 {
		t.Error("an unpinned caller got past the handshake")
	}
}

func TestCallerWithoutCertificateGetsNothing(t *testing.T) {
	p := newPair(t)
	addr := p.replica.up(faults{})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := quic.DialAddr(ctx, addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{alpn}}, &quic.Config{})
	if err == nil {
		_, err = conn.AcceptStream(ctx)
		_ = conn.CloseWithError(0, "")
	}
	if err == nil || ctx.Err() != nil {
		t.Fatalf("served without a certificate: %v", err)
	}
	p.replica.note(func() {
		if len(p.replica.unpinned) != 1 || !p.replica.unpinned[0].Seen.IsZero() {
			t.Errorf("reported %+v, want one caller without a key", p.replica.unpinned)
		}
	})
}

func TestWrongPinAtTheDiallingEnd(t *testing.T) {
	p := newPair(t)
	expected := mustIdentity(t).Pin()
	p.source.o.Peers[0].Pin = expected
	p.up()
	var pin *PinError
	eventually(t, "reported", func() bool { return errors.As(p.source.lag().Err, &pin) })
	if pin.Expected[0] != expected || pin.Seen != p.replica.o.Identity.Pin() || pin.Peer != "b" {
		t.Errorf("reported %v, want pins %v and %v", pin, expected, p.replica.o.Identity.Pin())
	}
	if p.to.Head().Seq != 0 {
		t.Error("frames went to a peer with the wrong key")
	}
}

func TestIdentityIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "identity.pem")
	a, err := LoadOrCreateIdentity(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := LoadOrCreateIdentity(path)
	if err != nil || a.Pin() != b.Pin() {
		t.Fatalf("second load: pin %v, %v, want %v", b.Pin(), err, a.Pin())
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v, want 0600", info.Mode(), err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".identity-*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if a.derived("x") != b.derived("x") || a.derived("x") == a.derived("y") {
		t.Error("derived keys must depend on the key and the purpose alone")
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadOrCreateIdentity(path); err == nil {
		t.Error("a key that others may read was accepted")
	}
	for _, text := range []string{"", "no PEM", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		bad := filepath.Join(t.TempDir(), "bad.pem")
		if err := os.WriteFile(bad, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadOrCreateIdentity(bad); err == nil {
			t.Errorf("a key of %q was accepted", text)
		}
	}
}

func TestPinText(t *testing.T) {
	pin := mustIdentity(t).Pin()
	back, err := ParsePin(pin.String())
	if err != nil || back != pin {
		t.Errorf("parse %v: %v, %v", pin, back, err)
	}
	for _, bad := range []string{"", "sha256:", pin.String()[1:], pin.String() + "A", "md5:abc", "sha256:" + string(make([]byte, 43)),
		"sha256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"} {
		if v, err := ParsePin(bad); err == nil {
			t.Errorf("parse %q: %v, want an error", bad, v)
		}
	}
}

// A key change is not served from a session that was resumed: there are none.
func TestSessionsAreNotResumed(t *testing.T) {
	id := mustIdentity(t)
	cert, err := id.certificate()
	if err != nil {
		t.Fatal(err)
	}
	c := listenTLS(func() tls.Certificate { return cert }, func(Pin) bool { return true }, func() bool { return false }, func(*PinError) {})
	perConn, err := c.GetConfigForClient(&tls.ClientHelloInfo{Conn: noConn{}})
	if err != nil {
		t.Fatal(err)
	}
	if !perConn.SessionTicketsDisabled || perConn.VerifyConnection == nil || perConn.MinVersion != tls.VersionTLS13 {
		t.Error("the listening end must give no tickets and verify every connection")
	}
}

type noConn struct{ net.Conn }

func (noConn) RemoteAddr() net.Addr { return &net.UDPAddr{} }

// The reset key makes a restarted peer known at once, not after the idle timeout.
func TestRestartIsNoticedBeforeTheIdleTimeout(t *testing.T) {
	p := newPair(t)
	p.source.o.IdleTimeout, p.replica.o.IdleTimeout = 10*patience, 10*patience
	p.replica.o.Listen = "127.0.0.1:0"
	p.up()
	p.caughtUp()
	p.relay.cut.Store(true) // so that the end of the old life is not heard
	p.replica.down()
	p.upReplica()
	p.relay.cut.Store(false)
	p.load(5, 1, 100)
	p.caughtUp()
}
