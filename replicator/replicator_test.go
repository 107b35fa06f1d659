package replicator

import (
	"fmt"
	"testing"
	"time"
)

// load appends n frames of records and bytes each.
func (p *pair) load(n, records, bytes int) {
	for i := range n {
		p.from.Append([]byte(fmt.Sprintf("%0*d", bytes, i)), records, time.Now())
	}
}

func TestReplicaGetsEveryFrame(t *testing.T) {
	p := newPair(t)
	p.load(20, 3, 1000)
	p.up()
	p.caughtUp()
	p.load(20, 1, 300_000)
	p.caughtUp()
	eventually(t, "source knows", func() bool {
		l := p.source.lag()
		return l.State == StateStreaming && l.Known && l.Records == 0 && l.Bytes == 0 && l.RPO < patience
	})
	eventually(t, "replica knows", func() bool {
		l := p.replica.lag()
		return l.State == StateStreaming && l.Known && l.Records == 0 && l.Bytes == 0 && l.ClockError > 0
	})
	t.Logf("source %+v", p.source.lag())
	t.Logf("replica %+v", p.replica.lag())
}
