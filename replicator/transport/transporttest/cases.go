package transporttest

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"github.com/novacron/afterimage/replicator/transport"
)

func testStreams(t *testing.T, open Open) {
	p := newConn(t, open)
	for _, way := range []struct{ from, to transport.Conn }{{p.caller, p.called}, {p.called, p.caller}} {
		q, a := noise(3*laneBytes), noise(2*laneBytes)
		asked := make(chan error, 1)
		go func() {
			s, err := way.to.NextQuestion(p.ctx)
			if err == nil {
				var got []byte
				if got, err = io.ReadAll(s); err == nil && string(got) != string(q) {
					err = errors.New("the question arrived changed")
				}
			}
			if err == nil {
				_, err = s.Write(a)
			}
			if err == nil {
				err = s.Close()
			}
			asked <- err
		}()
		s, err := way.from.Ask(p.ctx)
		if err != nil {
			t.Fatal(err)
		}
		p.say(s, q)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		p.hear(s, a)
		if n, err := s.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Fatalf("after the answer: %d bytes, %v; want io.EOF", n, err)
		}
		if err := <-asked; err != nil {
			t.Fatal(err)
		}
	}
	p.say(p.calleS, []byte("still here"))
	p.hear(p.callerS, []byte("still here"))
	if s := p.caller.Stats(); s.Connections < 1 {
		t.Errorf("stats of a live connection: %+v", s)
	}
}

// lane opens one and carries its first bytes.
func (p *pair) lane(first []byte) (transport.SendLane, transport.ReceiveLane) {
	p.Helper()
	out, err := p.caller.OpenLane(p.ctx)
	if err != nil {
		p.Fatal(err)
	}
	p.say(out, first)
	in, err := p.called.NextLane(p.ctx)
	if err != nil {
		p.Fatal(err)
	}
	p.hear(in, first)
	return out, in
}

func testLanes(t *testing.T, open Open) {
	p := newConn(t, open)
	for i := range byte(3) {
		out, in := p.lane([]byte{i})
		text := noise(4 * laneBytes)
		sent := make(chan error, 1)
		go func() {
			_, err := out.Write(text)
			if err == nil {
				err = out.Close()
			}
			sent <- err
		}()
		p.hear(in, text)
		if n, err := in.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Fatalf("after the end: %d bytes, %v; want io.EOF", n, err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	}
}

func testIndependence(t *testing.T, open Open) {
	p := newConn(t, open)
	stuck, unread := p.lane([]byte("stuck"))
	ended := make(chan error, 1)
	go func() {
		for {
			if _, err := stuck.Write(noise(laneBytes)); err != nil {
				ended <- err
				return
			}
		}
	}()
	out, in := p.lane([]byte("free"))
	for range 8 {
		text := noise(laneBytes / 2)
		p.say(out, text)
		p.hear(in, text)
		p.say(p.callerS, text[:1000])
		p.hear(p.calleS, text[:1000])
	}
	unread.Cancel()
	if err := <-ended; err == nil {
		t.Error("writing to a lane that was given up went on")
	}
}

func (p *pair) gone(what string, lane transport.SendLane) {
	p.Helper()
	select {
	case <-lane.Gone():
	case <-p.ctx.Done():
		p.Errorf("%s is not gone", what)
	}
}

func testCancel(t *testing.T, open Open) {
	p := newConn(t, open)
	out, in := p.lane([]byte("x"))
	out.Cancel()
	if _, err := in.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("read of a lane that its writer gave up: %v", err)
	}
	p.gone("a lane that its writer gave up", out)
	out, in = p.lane([]byte("y"))
	select {
	case <-out.Gone():
		t.Error("a lane that is read is gone")
	default:
	}
	in.Cancel()
	p.gone("a lane that its reader gave up", out)
	out, _ = p.lane([]byte("z"))
	defer p.gone("a lane of a connection that has ended", out)
	defer p.called.Close(1, "bye")
	s, err := p.caller.Ask(p.ctx)
	if err != nil {
		t.Fatal(err)
	}
	p.say(s, []byte("q"))
	asked, err := p.called.NextQuestion(p.ctx)
	if err != nil {
		t.Fatal(err)
	}
	p.hear(asked, []byte("q"))
	asked.Cancel()
	if _, err := s.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("read of a stream that the other end gave up: %v", err)
	}
	p.say(p.callerS, []byte("on"))
	p.hear(p.calleS, []byte("on"))
}

func testDeadlines(t *testing.T, open Open) {
	p := newConn(t, open)
	_, in := p.lane([]byte("x"))
	if err := in.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read past its deadline: %v", err)
	}
	out, _ := p.lane([]byte("y"))
	if err := out.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	for { // what is on its way is bounded
		if _, err := out.Write(noise(laneBytes)); errors.Is(err, os.ErrDeadlineExceeded) {
			break
		} else if err != nil {
			t.Fatalf("write past its deadline: %v", err)
		}
	}
	if err := p.calleS.SetDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := p.calleS.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read past its deadline: %v", err)
	}
}

func testClose(t *testing.T, open Open) {
	p := newConn(t, open)
	out, in := p.lane([]byte("x"))
	reads := make(chan error, 2)
	go func() { _, err := p.calleS.Read(make([]byte, 1)); reads <- err }()
	go func() { _, err := in.Read(make([]byte, 1)); reads <- err }()
	p.caller.Close(17, "that is why")
	p.caller.Close(18, "too late")
	p.closed(p.caller)
	p.closed(p.called)
	for range 2 {
		err := <-reads
		var closed *transport.ClosedError
		if !errors.As(err, &closed) || closed.Code != 17 || closed.Text != "that is why" {
			t.Errorf("read at the other end: %v, want code 17 and its text", err)
		}
	}
	if _, err := out.Write([]byte("x")); err == nil {
		t.Error("a lane of a closed connection takes bytes")
	}
	if _, err := p.callerS.Write([]byte("x")); err == nil {
		t.Error("the control stream of a closed connection takes bytes")
	}
	if _, err := p.called.NextLane(p.ctx); err == nil {
		t.Error("a closed connection gives lanes")
	}
	if s := p.called.Stats(); s.Connections != 0 {
		t.Errorf("stats of a closed connection: %+v", s)
	}
}

func testStrangers(t *testing.T, open Open) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cert, pin := newCertificate(t)
	known, knownPin := newCertificate(t)
	stranger, _ := newCertificate(t)
	b := newParty(t, open, true, cert, func() [32]byte { return knownPin })
	a := newParty(t, open, false, stranger, nil)
	peer := func() [32]byte { return pin }
	for _, c := range []*tls.Config{trusting(stranger, peer), withoutCertificate(trusting(stranger, peer))} {
		conn, err := a.Dial(ctx, b.Addr().String(), c)
		if err == nil { // it hears of it with the first bytes
			var s transport.Stream
			if s, err = conn.Control(ctx); err == nil {
				_, _ = s.Write([]byte("x")) // fails or not, as the news comes
				_, err = s.Read(make([]byte, 1))
			}
			conn.Close(0, "")
		}
		if !errors.Is(err, transport.ErrUntrusted) {
			t.Errorf("a stranger hears %v, want %v", err, transport.ErrUntrusted)
		}
	}
	conn, err := a.Dial(ctx, b.Addr().String(), trusting(known, peer))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(0, "")
	s, err := conn.Control(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	first, err := b.Accept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if pinOf(first.State()) != knownPin {
		t.Error("a stranger was let in")
	}
}

func testWrongSite(t *testing.T, open Open) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cert, _ := newCertificate(t)
	mine, pin := newCertificate(t)
	b := newParty(t, open, true, cert, func() [32]byte { return pin })
	a := newParty(t, open, false, mine, nil)
	if conn, err := a.Dial(ctx, b.Addr().String(), trusting(mine, func() [32]byte { return [32]byte{1} })); !errors.Is(err, errStranger) {
		t.Errorf("dialled %v, %v; want what the configuration said", conn, err)
	}
}

func testContexts(t *testing.T, open Open) {
	p := newConn(t, open)
	ctx, cancel := context.WithCancel(p.ctx)
	waits := []func() error{
		func() error { _, err := p.called.NextLane(ctx); return err },
		func() error { _, err := p.called.NextQuestion(ctx); return err },
		func() error { _, err := p.caller.NextQuestion(ctx); return err },
	}
	ended := make(chan error, len(waits))
	for _, w := range waits {
		go func() { ended <- w() }()
	}
	cancel()
	for range waits {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("a wait ended with %v, want %v", err, context.Canceled)
		}
	}
	p.say(p.callerS, []byte("on"))
	p.hear(p.calleS, []byte("on"))
}
