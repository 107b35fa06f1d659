package config

import (
	"fmt"
	"strconv"

	"github.com/novacron/afterimage/replicator"
)

// maxConnections bounds what a configuration may ask of a peer.
const maxConnections = 128

// Count is a number of things.
type Count int

// UnmarshalText reads a whole number.
func (c *Count) UnmarshalText(b []byte) error {
	n, err := strconv.Atoi(string(b))
	if err != nil {
		return fmt.Errorf("%q is no whole number", b)
	}
	*c = Count(n)
	return nil
}

// MarshalText is the number.
func (c Count) MarshalText() ([]byte, error) { return strconv.AppendInt(nil, int64(c), 10), nil }

// transport judges what a peer is reached by.
func (s *shape) transport(path string, p Peer) {
	if _, err := replicator.ParseCarrier(p.Transport); err != nil {
		s.wrong(path+".transport", err.Error(), "auto is quic, and tls over TCP where UDP does not get through")
	}
	if p.Connections < 0 || p.Connections > maxConnections {
		s.wrong(path+".connections", fmt.Sprintf("connections: %d", p.Connections), fmt.Sprintf("1 to %d; without it, as many as help", maxConnections))
	}
}
