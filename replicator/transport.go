package replicator

import (
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/time/rate"
)

const (
	// wantUDPBufferBytes is what quic-go asks of the kernel (its wiki page "UDP Buffer Sizes").
	wantUDPBufferBytes = 7 << 20
	controlWindowBytes = 8 << 20
	// freeHandshakesPerSecond come in without proving their address first; beyond
	// that callers get a Retry, so that spoofed ones cost us no state.
	freeHandshakesPerSecond = 20
)

// quicConfig is used at both ends; only the listening one takes data streams.
//
// The windows bound what waits for a slow journal: one group's data stream holds
// at most WindowBytes. The connection's window has room for all of them and the
// control stream at once, from the start: a group that does not move must hold up
// neither heartbeats nor another tenant's group.
func quicConfig(o Options, listening bool) *quic.Config {
	all := uint64(o.WindowBytes)*uint64(o.MaxGroups) + controlWindowBytes
	c := &quic.Config{
		Versions:                       []quic.Version{quic.Version1},
		HandshakeIdleTimeout:           o.HandshakeTimeout,
		MaxIdleTimeout:                 o.IdleTimeout,
		KeepAlivePeriod:                o.IdleTimeout / 3,
		InitialStreamReceiveWindow:     uint64(min(o.WindowBytes, 1<<20)),
		MaxStreamReceiveWindow:         uint64(o.WindowBytes),
		InitialConnectionReceiveWindow: all,
		MaxConnectionReceiveWindow:     all,
		MaxIncomingStreams:             maxQuestions,
		MaxIncomingUniStreams:          -1,
		Allow0RTT:                      false,
	}
	if listening {
		c.MaxIncomingStreams = 1 + maxQuestions // the control stream
		c.MaxIncomingUniStreams = int64(o.MaxGroups)
	}
	return c
}

// bind opens the one UDP socket that this site listens on and dials from.
func bind(o Options) (*quic.Transport, *net.UDPConn, error) {
	address := o.Listen
	if address == "" {
		address = ":0"
	}
	local, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		return nil, nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	conn, err := net.ListenUDP("udp", local)
	if err != nil {
		return nil, nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	// Derived from the site's key, so that peers learn of our restart from the
	// first packet they send and not from their idle timeout.
	reset := quic.StatelessResetKey(o.Identity.derived("stateless reset"))
	token := quic.TokenGeneratorKey(o.Identity.derived("address token"))
	free := rate.NewLimiter(freeHandshakesPerSecond, 2*freeHandshakesPerSecond)
	return &quic.Transport{
		Conn:                conn,
		StatelessResetKey:   &reset,
		TokenGeneratorKey:   &token,
		VerifySourceAddress: func(net.Addr) bool { return !free.AllowN(time.Now(), 1) },
	}, conn, nil
}

// udpBuffers are the socket's sizes in bytes as the kernel granted them (it
// reports twice what can be asked for; see socket(7), SO_RCVBUF).
func udpBuffers(conn *net.UDPConn) (receive, send int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, 0, fmt.Errorf("inspect UDP buffers: %w", err)
	}
	var rerr, serr error
	err = raw.Control(func(fd uintptr) {
		receive, rerr = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF)
		send, serr = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF)
	})
	for _, e := range []error{rerr, serr} {
		if err == nil {
			err = e
		}
	}
	if err != nil {
		return 0, 0, fmt.Errorf("inspect UDP buffers: %w", err)
	}
	return receive, send, nil
}
