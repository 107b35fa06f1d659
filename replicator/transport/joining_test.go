package transport_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/novacron/afterimage/replicator/transport"
	"github.com/novacron/afterimage/replicator/transport/transporttest"
)

// Promise 14: a connection joins a session of its own peer alone, and only with the
// session's secret; one that may not is told so, and nothing that it says is read.
func TestStrangersDoNotJoin(t *testing.T) {
	for name, open := range map[string]transporttest.Open{
		"quic": func(o transport.Options) (transport.Transport, error) { return transport.NewQUIC(o) },
		"tls":  func(o transport.Options) (transport.Transport, error) { return transport.NewTLS(o) },
	} {
		t.Run(name, func(t *testing.T) {
			if err := strangers(t, open, func(transport.Transport) {}); err != nil {
				t.Error(err)
			}
			if err := strangers(t, open, transport.TrustAnyKey); err == nil {
				t.Error("planted fault not caught: another peer joins with a secret that is not its own")
			}
		})
	}
}

func strangers(t *testing.T, open transporttest.Open, plant func(transport.Transport)) error {
	w := transporttest.NewThree(t, open)
	plant(w.Called)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	secret := transport.SecretOf(w.CallerConn)
	if secret != transport.SecretOf(w.CalledConn) || secret == [32]byte{} {
		t.Fatal("the two ends do not agree on the session's secret")
	}
	wrong := secret
	wrong[31] ^= 1
	lanes := make(chan transport.ReceiveLane)
	go func() {
		for {
			l, err := w.CalledConn.NextLane(ctx)
			if err != nil {
				close(lanes)
				return
			}
			lanes <- l
		}
	}()
	for _, c := range []struct {
		what  string
		as    *tls.Config
		by    transport.Transport
		first []byte
	}{
		{"the peer with another secret", w.CallerTLS, w.Caller, transport.JoinText(wrong, 1)},
		{"the peer for nothing that there is", w.CallerTLS, w.Caller, transport.JoinText(secret, 99)},
		{"the peer with noise", w.CallerTLS, w.Caller, bytes.Repeat([]byte("noise"), 8)},
		{"another peer with the secret", w.OtherTLS, w.Other, transport.JoinText(secret, 1)},
	} {
		joined := make(chan error, 1)
		joining, stop := context.WithCancel(ctx)
		go func() { joined <- transport.JoinAs(joining, c.by, w.Called.Addr().String(), c.as, c.first) }()
		select {
		case err := <-joined:
			var closed *transport.ClosedError
			if !errors.As(err, &closed) || closed.Code != transport.CodeNoSession {
				t.Errorf("%s hears %v, want code %d", c.what, err, transport.CodeNoSession)
			}
			stop()
		case <-lanes:
			stop()
			<-joined
			return errors.New(c.what + " joins")
		}
	}
	stranger := w.StrangerTLS
	if err := transport.JoinAs(ctx, w.Other, w.Called.Addr().String(), stranger, transport.JoinText(secret, 1)); !errors.Is(err, transport.ErrUntrusted) {
		t.Errorf("a stranger with the secret hears %v, want %v", err, transport.ErrUntrusted)
	}
	// Who may join still does.
	for range 2 {
		own, err := w.CallerConn.OpenLane(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := own.Write([]byte("mine")); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 4)
		if _, err := io.ReadFull(<-lanes, got); err != nil || string(got) != "mine" {
			t.Fatalf("the session's own lane brings %q, %v", got, err)
		}
	}
	return nil
}
