package replicator

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/novacron/afterimage/testbed/port"
)

// tcpRelay listens for TCP at the port of a relay for UDP, and forwards to a site.
func tcpRelay(t *testing.T, l net.Listener, to string) {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				near.Close()
				continue
			}
			for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
				wg.Go(func() {
					_, _ = io.Copy(way[0], way[1])
					way[0].Close()
					way[1].Close()
				})
			}
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
}

// sessionBy waits until the source's session goes over a transport.
func (p *pair) sessionBy(name string, reason bool) {
	p.Helper()
	eventually(p.TB, "the session goes over "+name, func() bool {
		all := p.source.rep.Sessions()
		return len(all) == 1 && all[0].Transport == name && all[0].Connections > 0 && (all[0].Why != "") == reason
	})
}

// Where UDP is blocked, TCP carries a session, and says why; UDP takes over again when
// it is blocked no more.
func TestBlockedUDPFallsToTCPAndBack(t *testing.T) {
	p := newPair(t)
	p.source.o.HandshakeTimeout, p.source.o.UDPRetry = time.Second, 10*time.Millisecond
	beside, err := net.Listen("tcp", p.relay.address())
	for err != nil { // somebody has that port for TCP
		p.relay = newRelay(t)
		beside, err = net.Listen("tcp", p.relay.address())
	}
	p.source.o.Peers[0].Address = p.relay.address()
	p.relay.cut.Store(true)
	p.load(20, 2, 1000)
	p.upReplica()
	tcpRelay(t, beside, p.replica.rep.Addr().String())
	p.source.up(faults{})
	p.caughtUp()
	p.sessionBy("tls", true)
	p.relay.cut.Store(false)
	p.sessionBy("quic", false)
	p.load(20, 2, 1000)
	p.caughtUp()
}

func TestATransportThatIsWantedIsUsed(t *testing.T) {
	for _, c := range []Carrier{CarryQUIC, CarryTLS, CarryAuto} {
		p := newPair(t)
		p.replica.o.Listen = port.Address(t)
		p.source.o.Peers[0].Address, p.source.o.Peers[0].Carrier = p.replica.up(faults{}), c
		p.load(30, 4, 5000)
		p.source.up(faults{})
		p.caughtUp()
		want := string(c)
		if c == CarryAuto {
			want = "quic"
		}
		p.sessionBy(want, false)
		p.replica.down() // and its loss is got over
		p.load(5, 1, 10)
		p.replica.up(faults{})
		p.caughtUp()
	}
}

// Promise 14, over TCP: neither a stranger nor one whose key is taken back is heard.
func TestKeysAreJudgedOverTCP(t *testing.T) {
	p := newPair(t)
	p.source.o.Peers[0].Address, p.source.o.Peers[0].Carrier = p.replica.up(faults{}), CarryTLS
	p.load(10, 1, 100)
	p.source.up(faults{})
	p.caughtUp()
	if err := p.replica.rep.SetPeers(nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the session ends", func() bool { return len(p.replica.rep.Sessions()) == 0 })
	held := p.to.Head().Seq
	p.load(10, 1, 100)
	eventually(t, "the caller is refused", func() bool {
		p.replica.mu.Lock()
		defer p.replica.mu.Unlock()
		return len(p.replica.unpinned) > 1 && p.replica.unpinned[0].Seen == p.source.o.Identity.Pin()
	})
	if p.to.Head().Seq != held {
		t.Error("frames of a peer that is known no more were taken")
	}
}
