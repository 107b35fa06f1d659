package replicator

import (
	"testing"

	"github.com/novacron/afterimage/replicator/transport/transporttest"
)

// The protocol is the same over every transport that passes the suite.
func TestReplicationOverMemory(t *testing.T) {
	p := newPair(t)
	n := transporttest.NewNetwork()
	p.source.o.Transport, p.replica.o.Transport = n.Open, n.Open
	p.source.o.Peers[0].Address = p.replica.up(faults{})
	p.source.up(faults{})
	p.load(50, 4, 3000)
	p.caughtUp()
	p.replica.down()
	p.load(10, 1, 100)
	p.replica.o.Listen = p.source.o.Peers[0].Address
	p.replica.up(faults{})
	p.caughtUp()
}
