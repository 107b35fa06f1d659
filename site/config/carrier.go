package config

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/fault"
)

// Bounds of what a configuration may ask: of a peer, and of a group beside others.
const (
	maxConnections = 128
	maxPriority    = 100
)

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
	if _, err := replicator.ParsePacking(p.Pack); err != nil {
		s.wrong(path+".pack", err.Error(), "auto packs frames where that pays: on a link slower than the packing")
	}
	if p.Connections < 0 || p.Connections > maxConnections {
		s.wrong(path+".connections", fmt.Sprintf("connections: %d", p.Connections), fmt.Sprintf("1 to %d; without it, as many as help", maxConnections))
	}
}

// sending judges to whom a group goes, and how.
func (s *shape) sending(path string, g Group) {
	if g.Priority < 0 || g.Priority > maxPriority {
		s.wrong(path+".priority", fmt.Sprintf("priority: %d", g.Priority), fmt.Sprintf("1 to %d; without it, 1", maxPriority))
	}
	seen := uniques{}
	for i, p := range g.Relay {
		at := fmt.Sprintf("%s.relay[%d]", path, i)
		seen.add(s, at, "peer", p)
		if !slices.Contains(g.Peers, p) {
			s.report(fault.ConfigReference, s.at(at), at, fmt.Sprintf("peer %q is none of the group's peers", p), "relay: names some of peers:, those who get from here what comes in")
		}
	}
}
