package tunnel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/novacron/afterimage/testbed/link"
	"github.com/novacron/afterimage/testbed/scale"
)

func TestMain(m *testing.M) {
	if address := os.Getenv(flood); address != "" {
		floodMain(address)
		return
	}
	goleak.VerifyTestMain(m)
}

const patience = time.Minute

// up is a tunnel between two spaces until the test ends.
func up(t testing.TB, c link.Config) (*Tunnel, *Space, *Space) {
	t.Helper()
	var spaces [2]*Space
	for i := range spaces {
		s, err := NewSpace()
		if errors.Is(err, ErrPrivilege) {
			scale.Missing(t, err.Error())
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		spaces[i] = s
	}
	l, err := Lay(spaces[0], spaces[1], 1, c)
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
	return l, spaces[0], spaces[1]
}

// udp is a socket of a space.
func udp(t testing.TB, s *Space, at netip.AddrPort) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	if err := s.Do(func() (err error) {
		c, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

func anyPort(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 0) }

func bound(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

func send(t testing.TB, c *net.UDPConn, p []byte, to netip.AddrPort) {
	t.Helper()
	if _, err := c.WriteToUDPAddrPort(p, to); err != nil {
		t.Fatal(err)
	}
}

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

func TestTunnelIsNeverEarly(t *testing.T) {
	const rtt = 60 * time.Millisecond
	l, a, b := up(t, link.Config{RTT: rtt})
	near, far := udp(t, a, anyPort(l.Near())), udp(t, b, anyPort(l.Far()))
	began := time.Now()
	send(t, near, []byte("ping"), bound(far))
	buf := make([]byte, mtu)
	_, from, err := far.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatal(err)
	}
	send(t, far, []byte("pong"), from)
	if _, _, err := near.ReadFromUDPAddrPort(buf); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < rtt {
		t.Errorf("there and back in %v, RTT %v", took, rtt)
	}
}

// What is lost is what the dice took, and they fall as often as they should.
func TestTunnelLosesWhatItsDiceTake(t *testing.T) {
	const n = 10000
	c := link.Config{Loss: 0.05, Duplicate: 0.02, RTT: time.Millisecond, Seed: 7}
	l, a, b := up(t, c)
	near, far := udp(t, a, anyPort(l.Near())), udp(t, b, anyPort(l.Far()))
	buf, seen, got := make([]byte, mtu), make(map[uint64]int), uint64(0)
	for k := range uint64(n) {
		send(t, near, binary.LittleEndian.AppendUint64(nil, k), bound(far))
		if k%100 < 99 {
			continue
		}
		// No more under way than a socket holds.
		until(t, func() bool { s, _ := l.Stats(); return s.Received == k+1 && s.Delivered == k+1-s.Lost+s.Duplicated })
		for s, _ := l.Stats(); got < s.Delivered; got++ {
			if _, _, err := far.ReadFromUDPAddrPort(buf); err != nil {
				t.Fatal(err)
			}
			seen[binary.LittleEndian.Uint64(buf)]++
		}
	}
	s, _ := l.Stats()
	twice := uint64(0)
	for _, times := range seen {
		if times == 2 {
			twice++
		}
	}
	if uint64(len(seen)) != n-s.Lost || twice != s.Duplicated || s.Overflowed != 0 {
		t.Errorf("%d numbers, %d of them twice; stats %+v", len(seen), twice, s)
	}
	if mean := c.Loss * n; math.Abs(float64(s.Lost)-mean) > 5*math.Sqrt(mean) {
		t.Errorf("%d of %d lost at a loss of %v (seed %d)", s.Lost, n, c.Loss, c.Seed)
	}
}

// No more passes than the rate allows, and where the machine gives the sender its
// time, no less: three in a hundred either way.
func TestTunnelHoldsItsRate(t *testing.T) {
	const rate, size, window = 8 << 20, 1400, 500 * time.Millisecond
	l, a, b := up(t, link.Config{BytesPerSecond: rate, QueueBytes: 1 << 20})
	near, far := udp(t, a, anyPort(l.Near())), udp(t, b, anyPort(l.Far()))
	stop := make(chan struct{})
	sent := make(chan struct{})
	began := time.Now()
	go func() {
		defer close(sent)
		p := make([]byte, size)
		pace := time.NewTicker(time.Millisecond)
		defer pace.Stop()
		for {
			select {
			case <-stop:
				return
			case <-pace.C:
			}
			for range 3 * rate / 1000 / size { // three times as much as passes
				near.WriteToUDPAddrPort(p, bound(far))
			}
		}
	}()
	defer func() { close(stop); <-sent }()
	const packet = size + 28 // with its headers
	buf := make([]byte, mtu)
	total, inWindow, from := int64(0), int64(0), time.Time{}
	for best := 0.0; best < 0.97; {
		if _, _, err := far.ReadFromUDPAddrPort(buf); err != nil {
			t.Fatalf("at best %.3f of the rate in %v: %v", best, window, err)
		}
		now := time.Now()
		total += packet
		if allowed := now.Sub(began).Seconds()*rate*1.03 + packet; float64(total) > allowed {
			t.Fatalf("%d bytes after %v, at a rate of %d", total, now.Sub(began), int64(rate))
		}
		if from.IsZero() || now.Sub(from) > window {
			if !from.IsZero() {
				best = max(best, float64(inWindow)/(now.Sub(from).Seconds()*rate))
			}
			from, inWindow = now, 0
		}
		inWindow += packet
	}
}

// A stream over TCP comes through whole, whatever the path does to its packets.
func TestTunnelCarriesTCPOverABadPath(t *testing.T) {
	l, a, b := up(t, link.Config{RTT: 2 * time.Millisecond, Loss: 0.03, Duplicate: 0.05, Reorder: 0.05, BytesPerSecond: 50 << 20, Seed: 3})
	var listener net.Listener
	if err := b.Do(func() (err error) {
		listener, err = net.Listen("tcp4", netip.AddrPortFrom(l.Far(), 0).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	got := make(chan [32]byte, 1)
	go func() {
		h := sha256.New()
		if c, err := listener.Accept(); err == nil {
			io.Copy(h, c)
			c.Close()
		}
		got <- [32]byte(h.Sum(nil))
	}()
	var conn net.Conn
	if err := a.Do(func() (err error) {
		conn, err = net.Dial("tcp4", listener.Addr().String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("an afterimage "), 1<<16)
	if _, err := conn.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if h := <-got; h != sha256.Sum256(data) {
		t.Error("the stream is another one")
	}
	if s, _ := l.Stats(); s.Lost == 0 || s.Duplicated == 0 || s.Reordered == 0 {
		t.Errorf("a bad path that does no harm: %+v", s)
	}
}

func TestOneDirectionIsCutAlone(t *testing.T) {
	l, a, b := up(t, link.Config{})
	near, far := udp(t, a, anyPort(l.Near())), udp(t, b, anyPort(l.Far()))
	l.CutToward()
	send(t, near, []byte("lost"), bound(far))
	send(t, far, []byte("through"), bound(near))
	buf := make([]byte, mtu)
	if n, _, err := near.ReadFromUDPAddrPort(buf); err != nil || string(buf[:n]) != "through" {
		t.Fatalf("%q, %v", buf[:n], err)
	}
	until(t, func() bool { s, _ := l.Stats(); return s.Cut == 1 })
	l.Heal()
	send(t, near, []byte("healed"), bound(far))
	if n, _, err := far.ReadFromUDPAddrPort(buf); err != nil || string(buf[:n]) != "healed" {
		t.Fatalf("%q, %v", buf[:n], err)
	}
}

// A socket that is bound to no address goes on from a new one.
func TestTheNearSideMoves(t *testing.T) {
	l, a, b := up(t, link.Config{})
	near, far := udp(t, a, anyPort(netip.IPv4Unspecified())), udp(t, b, anyPort(l.Far()))
	buf := make([]byte, mtu)
	for _, host := range []uint8{1, 77, 1} {
		if err := l.MoveNear(host); err != nil {
			t.Fatal(err)
		}
		send(t, near, []byte("from"), bound(far))
		_, from, err := far.ReadFromUDPAddrPort(buf)
		if err != nil || from.Addr().As4()[3] != host {
			t.Fatalf("from %v, want host %d: %v", from, host, err)
		}
		send(t, far, []byte("to"), from)
		if _, _, err := near.ReadFromUDPAddrPort(buf); err != nil {
			t.Fatal(err)
		}
	}
}

// A process that was started in a space is alone there, and does not outlive it.
func TestAProcessBelongsToItsSpace(t *testing.T) {
	_, a, _ := up(t, link.Config{})
	here, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range here {
		if i.Name == "lane1" {
			t.Error("the device is seen outside")
		}
	}
	cat := exec.Command("cat", "/proc/self/net/dev", "-")
	stdin, err := cat.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	var said bytes.Buffer
	cat.Stdout = &said
	if err := a.Start(cat); err != nil {
		t.Fatal(err)
	}
	a.Close()
	if err := cat.Wait(); err == nil {
		t.Error("it ended by itself")
	}
	if err := a.Do(func() error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("a closed space works: %v", err)
	}
}

func TestWhatIsNoPathIsRefused(t *testing.T) {
	if _, err := Lay(nil, nil, 1, link.Config{Loss: 2}); err == nil {
		t.Error("a loss of 2 is taken")
	}
}
