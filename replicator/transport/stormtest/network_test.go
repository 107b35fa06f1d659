package stormtest

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/novacron/afterimage/replicator/transport"
)

// trusting lets everybody in.
var trusting = &tls.Config{NextProtos: []string{"storm"}, VerifyConnection: func(tls.ConnectionState) error { return nil }}

// two is a connection between the sites a and b of a network.
type two struct {
	*testing.T
	n    *Network
	a, b transport.Transport
	near transport.Conn
	far  transport.Conn
}

const idle = 10 * time.Second

func connect(t *testing.T, n *Network) *two {
	t.Helper()
	p := &two{T: t, n: n}
	for _, s := range []struct {
		at   string
		open *transport.Transport
	}{{"a:1", &p.a}, {"b:1", &p.b}} {
		tr, err := n.Open(transport.Options{Listen: s.at, Accept: trusting, HandshakeTimeout: idle, IdleTimeout: idle, LaneBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tr.Close() })
		*s.open = tr
	}
	p.dial()
	return p
}

func (p *two) dial() {
	p.Helper()
	var err error
	if p.near, err = p.a.Dial(context.Background(), "b:1", trusting); err != nil {
		p.Fatal(err)
	}
	if p.far, err = p.b.Accept(context.Background()); err != nil {
		p.Fatal(err)
	}
}

func ended(c transport.Conn) bool {
	select {
	case <-c.Done():
		return true
	default:
		return false
	}
}

// after lets time pass until everybody rests.
func after(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestPiecesAreLateAndInOrder(t *testing.T) {
	took := func(seed uint64) (d time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			n := New(seed)
			n.Set(Weather{Least: time.Millisecond, Most: 50 * time.Millisecond, LossPercent: 30})
			p := connect(t, n)
			begun := time.Now()
			out, err := p.near.OpenLane(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for i := range byte(100) {
				if _, err := out.Write([]byte{i}); err != nil {
					t.Fatal(err)
				}
			}
			if err := out.Close(); err != nil {
				t.Fatal(err)
			}
			in, err := p.far.NextLane(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(in)
			if err != nil || len(got) != 100 {
				t.Fatalf("%d bytes: %v", len(got), err)
			}
			for i, b := range got {
				if int(b) != i {
					t.Fatalf("byte %d is %d", i, b)
				}
			}
			d = time.Since(begun)
		})
		return d
	}
	if a, b := took(1), took(1); a != b || a < 50*time.Millisecond {
		t.Errorf("took %v and then %v", a, b)
	}
	if took(1) == took(2) {
		t.Error("the seed makes no difference")
	}
}

// A way that is cut ends the connection at who hears nothing any more; the other end is
// told when it can be.
func TestOneWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := connect(t, New(1))
		p.n.Cut("a:1", "b:1")
		after(idle - time.Second)
		if ended(p.near) || ended(p.far) {
			t.Fatal("it ended before anybody can have missed it")
		}
		after(2 * time.Second)
		if !ended(p.far) || ended(p.near) {
			t.Errorf("ended at who is not heard %v, at who hears nothing %v", ended(p.near), ended(p.far))
		}
		p.n.Heal("a:1", "b:1")
		after(idle / 2)
		if !ended(p.near) {
			t.Error("who is not known any more was not told")
		}
	})
}

// What waits for a way that is cut arrives after it, unless its sender is gone.
func TestHeldPieces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := connect(t, New(1))
		p.n.Cut("a:1", "b:1")
		out, err := p.near.OpenLane(t.Context())
		if err == nil {
			_, err = out.Write([]byte("late"))
		}
		if err != nil {
			t.Fatal(err)
		}
		after(time.Second)
		p.n.Heal("a:1", "b:1")
		in, err := p.far.NextLane(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if b := make([]byte, 4); true {
			if _, err := io.ReadFull(in, b); err != nil || string(b) != "late" {
				t.Errorf("read %q: %v", b, err)
			}
		}
	})
}

// A site that lost power is missed after a while only; one that came back says so.
func TestUnplugged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := connect(t, New(1))
		p.n.Unplug("b:1")
		after(0)
		if ended(p.near) || !ended(p.far) {
			t.Fatal("it was missed at once, or lives on")
		}
		if _, err := p.b.Accept(t.Context()); err == nil {
			t.Error("it accepts")
		}
		b, err := p.n.Open(transport.Options{Listen: "b:1", Accept: trusting, HandshakeTimeout: idle, IdleTimeout: idle})
		if err != nil {
			t.Fatal(err)
		}
		p.b = b
		p.dial() // beside the connection that nobody has missed yet
		after(idle / 2)
		if ended(p.far) {
			t.Error("the new connection ended")
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
}

// Who forgets a connection does not say so; the other end hears it when it speaks.
func TestForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := connect(t, New(1))
		p.n.Break("b:1", "a:1")
		after(0)
		if !ended(p.far) || ended(p.near) {
			t.Fatalf("ended at who forgets %v, at the other %v", ended(p.far), ended(p.near))
		}
		after(idle / 2)
		if !ended(p.near) {
			t.Error("the other end was not told")
		}
		if _, err := p.near.OpenLane(t.Context()); !errors.Is(err, errReset) {
			t.Errorf("it ended with %v", err)
		}
	})
}
