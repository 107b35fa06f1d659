package replicator

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	path "github.com/novacron/afterimage/testbed/link"
)

// BenchmarkGoodput sends frames for a while over a path of 200 Mbit/s and 50 ms, by the
// share of it that is lost and the connections that a session may use, and states which
// part of the path arrived at the replica in the second half. Run it with -benchtime=1x.
func BenchmarkGoodput(b *testing.B) {
	const rate = 25_000_000
	for _, loss := range []float64{0, 0.001, 0.01} {
		for _, most := range []int{1, 2, 8, 16, 64, 128} {
			b.Run(fmt.Sprintf("loss=%g/connections=%d", loss, most), func(b *testing.B) {
				for range b.N {
					share, used := goodput(b, path.Config{RTT: 50 * time.Millisecond, Loss: loss, BytesPerSecond: rate, QueueBytes: rate / 20, Seed: 1}, most)
					b.ReportMetric(share/rate, "of-link")
					b.ReportMetric(float64(used), "connections")
				}
			})
		}
	}
}

// goodput is what arrives a second, and over how many connections.
func goodput(b *testing.B, c path.Config, most int) (bytesPerSecond float64, connections int) {
	p := newBenchPair(b, c, most)
	const warm, span = 8 * time.Second, 6 * time.Second
	timer := time.NewTimer(warm)
	<-timer.C
	before, began := p.to.Head().Bytes, time.Now()
	timer.Reset(span)
	<-timer.C
	bytesPerSecond = float64(p.to.Head().Bytes-before) / time.Since(began).Seconds()
	p.source.rep.mu.Lock()
	defer p.source.rep.mu.Unlock()
	for _, l := range p.source.rep.links {
		connections = max(connections, l.conn.Stats().Connections)
	}
	return bytesPerSecond, connections
}

// newBenchPair runs two sites with a path between them and a group that has much to send.
func newBenchPair(b *testing.B, c path.Config, most int) *pair {
	p := newPair(b)
	p.source.o.MaxConnections, p.replica.o.MaxConnections = most, most
	way, err := path.New(netip.MustParseAddrPort(p.replica.up(faults{})), c)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- way.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		<-done
		way.Close()
	})
	p.source.o.Peers[0].Address = way.Addr().String()
	p.load(420, 1, 1<<20)
	p.source.up(faults{})
	return p
}
