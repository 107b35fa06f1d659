package link

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = time.Minute

// up runs a link to target until the test ends.
func up(t testing.TB, target netip.AddrPort, c Config) *Link {
	t.Helper()
	l, err := New(target, c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return l
}

func socket(t testing.TB) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	widen(c)
	t.Cleanup(func() { c.Close() })
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

func addr(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

// echo answers every datagram with itself.
func echo(t testing.TB) netip.AddrPort {
	t.Helper()
	c := socket(t)
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, maxDatagram)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			c.WriteToUDPAddrPort(buf[:n], from)
		}
	})
	t.Cleanup(func() { c.Close(); wg.Wait() })
	return addr(c)
}

// bounce sends p and returns what comes back.
func bounce(t testing.TB, c *net.UDPConn, l *Link, p []byte) []byte {
	t.Helper()
	if _, err := c.WriteToUDPAddrPort(p, l.Addr()); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, maxDatagram)
	n, _, err := c.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

func TestLinkKeepsDatagramsWhole(t *testing.T) {
	l := up(t, echo(t), Config{})
	a, b := socket(t), socket(t)
	random := rand.NewChaCha8([32]byte{1})
	for _, size := range []int{0, 1, 1200, smallDatagram, smallDatagram + 1, 9000, maxDatagram} {
		for _, c := range []*net.UDPConn{a, b} {
			p := make([]byte, size)
			random.Read(p)
			if got := bounce(t, c, l, p); !bytes.Equal(got, p) {
				t.Errorf("%d bytes came back as %d others", size, len(got))
			}
		}
	}
	if toward, back := l.Stats(); toward.Delivered != 14 || back.Delivered != 14 || toward.DeliveredBytes != back.ReceivedBytes {
		t.Errorf("stats %+v, %+v", toward, back)
	}
}

func TestLinkIsNeverEarly(t *testing.T) {
	const rtt = 60 * time.Millisecond
	l := up(t, echo(t), Config{RTT: rtt})
	c := socket(t)
	began := time.Now()
	bounce(t, c, l, []byte("ping"))
	if took := time.Since(began); took < rtt {
		t.Errorf("there and back in %v, RTT %v", took, rtt)
	}
	if err := l.Set(Config{}); err != nil {
		t.Fatal(err)
	}
	bounce(t, c, l, []byte("ping"))
}

func TestCutLosesWhatIsOnTheWay(t *testing.T) {
	l := up(t, echo(t), Config{RTT: time.Hour})
	c := socket(t)
	if _, err := c.WriteToUDPAddrPort([]byte("lost"), l.Addr()); err != nil {
		t.Fatal(err)
	}
	until(t, func() bool { s, _ := l.Stats(); return s.Received == 1 })
	l.Cut()
	if err := l.Set(Config{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteToUDPAddrPort([]byte("lost too"), l.Addr()); err != nil {
		t.Fatal(err)
	}
	until(t, func() bool { s, _ := l.Stats(); return s.Cut == 2 })
	l.Heal()
	if got := bounce(t, c, l, []byte("through")); string(got) != "through" {
		t.Errorf("after the cut comes %q", got)
	}
}

// TestLinkAccountsForEveryDatagram sends numbered datagrams over a bad path and
// holds what arrives against the sums.
func TestLinkAccountsForEveryDatagram(t *testing.T) {
	const n = 2000
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	sink := socket(t)
	l := up(t, addr(sink), Config{
		RTT: 4 * time.Millisecond, Loss: 0.1, Duplicate: 0.1, Reorder: 0.1, BytesPerSecond: 4 << 20, Seed: seed,
	})
	c := socket(t)
	for i := range uint64(n) {
		p := binary.LittleEndian.AppendUint64(make([]byte, 0, 600), i)
		if _, err := c.WriteToUDPAddrPort(p[:600], l.Addr()); err != nil {
			t.Fatal(err)
		}
		if i%64 == 63 { // no more under way than sockets hold
			until(t, func() bool { s, _ := l.Stats(); return s.Received == i+1 })
		}
	}
	until(t, func() bool { s, _ := l.Stats(); return s.Received == n && s.Delivered == n-s.Lost+s.Duplicated })
	s, _ := l.Stats()
	if s.Overflowed != 0 || s.Lost == 0 || s.Duplicated == 0 || s.Reordered == 0 {
		t.Errorf("stats %+v", s)
	}
	seen := map[uint64]int{}
	buf := make([]byte, maxDatagram)
	var inversions, last uint64
	for range s.Delivered {
		size, _, err := sink.ReadFromUDPAddrPort(buf)
		if err != nil || size != 600 {
			t.Fatalf("%d bytes, %v", size, err)
		}
		k := binary.LittleEndian.Uint64(buf)
		seen[k]++
		if k < last {
			inversions++
		}
		last = k
	}
	var twice uint64
	for _, times := range seen {
		if times == 2 {
			twice++
		}
	}
	if uint64(len(seen)) != n-s.Lost || twice != s.Duplicated || inversions == 0 {
		t.Errorf("%d numbers, %d of them twice, %d inversions; stats %+v", len(seen), twice, inversions, s)
	}
}

func TestCloseEndsRun(t *testing.T) {
	l, err := New(echo(t), Config{RTT: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- l.Run(context.Background()) }()
	c := socket(t)
	if _, err := c.WriteToUDPAddrPort([]byte("x"), l.Addr()); err != nil {
		t.Fatal(err)
	}
	until(t, func() bool { s, _ := l.Stats(); return s.Received == 1 })
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
}

// until polls ok until it holds.
func until(t testing.TB, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatal("it never came to be")
		}
	}
}

// BenchmarkLink sends QUIC-sized datagrams one way, at most a megabyte under way.
// 400 Mbit/s are 50 MB/s.
func BenchmarkLink(b *testing.B) {
	const size, window = 1252, 1 << 20 / 1252
	sink := socket(b)
	l := up(b, addr(sink), Config{RTT: 10 * time.Millisecond})
	c := socket(b)
	credit := make(chan struct{}, window)
	done := make(chan struct{})
	b.SetBytes(size)
	go func() {
		defer close(done)
		buf := make([]byte, maxDatagram)
		for range b.N {
			if _, _, err := sink.ReadFromUDPAddrPort(buf); err != nil {
				b.Error(err)
				return
			}
			<-credit
		}
	}()
	p := make([]byte, size)
	for range b.N {
		select {
		case credit <- struct{}{}:
		case <-done:
		}
		if _, err := c.WriteToUDPAddrPort(p, l.Addr()); err != nil {
			b.Fatal(err)
		}
	}
	<-done
}
