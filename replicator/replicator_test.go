package replicator

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/testbed/scale"
)

// load appends n frames of so many records and bytes each.
func (p *pair) load(n, records, bytes int) {
	for i := range n {
		payload := make([]byte, bytes)
		binary.LittleEndian.PutUint64(payload, uint64(i))
		p.from.Append(payload, records, time.Now())
	}
}

func TestReplicaGetsEveryFrame(t *testing.T) {
	p := newPair(t)
	p.load(20, 3, 1000)
	p.up()
	p.caughtUp()
	p.load(20, 1, 300_000)
	p.caughtUp()
	for _, e := range []*endpoint{p.source, p.replica} {
		eventually(t, e.o.Site+" knows that nothing is behind", func() bool {
			l := e.lag()
			return l.State == StateStreaming && l.Connected && l.Known && l.Records == 0 && l.Bytes == 0 && l.ClockError > 0 &&
				l.Head == p.from.Head().Position && l.Durable == p.from.Head().Durable
		})
	}
}

// Promise 10: a cut loses nothing and doubles nothing, in the middle of frames too.
func TestCutAndHealUnderLoad(t *testing.T) {
	p := newPair(t)
	p.source.o.IdleTimeout, p.replica.o.IdleTimeout = 300*time.Millisecond, 300*time.Millisecond
	p.up()
	p.load(5, 1, 100)
	p.caughtUp()
	const cuts = 4
	for i := range cuts {
		p.load(30, 2, 100_000)
		half := p.from.Head().Seq - 30
		eventually(t, "half is there", func() bool { return p.to.Head().Seq >= half })
		p.relay.cut.Store(true)
		cut := time.Now() // what is written from here on cannot arrive
		p.load(10, 2, 10_000)
		eventually(t, "source sees the cut", func() bool { return !p.source.lag().Connected })
		eventually(t, "replica sees the cut", func() bool { return !p.replica.lag().Connected })
		for _, e := range []*endpoint{p.source, p.replica} {
			at := time.Now()
			if l := e.lag(); l.Known && l.RPO < at.Sub(cut) {
				t.Fatalf("cut %d: %s shows RPO %v, %v after the cut", i, e.o.Site, l.RPO, at.Sub(cut))
			}
		}
		if l := p.source.lag(); l.Records < 20 || l.Bytes < 100_000 {
			t.Fatalf("cut %d: source shows %d records and %d bytes behind, at least 20 and 100000 are", i, l.Records, l.Bytes)
		}
		p.relay.cut.Store(false)
		p.caughtUp()
		eventually(t, "RPO is small again", func() bool { l := p.source.lag(); return l.Known && l.RPO < 200*time.Millisecond })
		eventually(t, "RPO is small again there", func() bool { l := p.replica.lag(); return l.Known && l.RPO < 200*time.Millisecond })
	}
}

func TestRestartOfEitherEnd(t *testing.T) {
	p := newPair(t)
	p.up()
	const rounds = 4
	for i := range rounds {
		p.load(40, 1, 50_000)
		want := p.from.Head().Seq - 20
		eventually(t, "half is there", func() bool { return p.to.Head().Seq >= want })
		if i%2 == 0 {
			p.replica.down()
			p.to.Crash() // what was not durable there is gone
			p.upReplica()
		} else {
			p.source.down()
			p.source.up(p.plant)
		}
		p.load(10, 1, 50_000)
		p.caughtUp()
	}
}

// A receiver that never calls anything durable and then crashes is sent again what
// it lost: acknowledgements of the transport mean nothing.
func TestCrashOfReplicaLosesOnlyWhatWasNotAcknowledged(t *testing.T) {
	p := newPair(t)
	p.to.ManualSync()
	p.load(10, 1, 1000)
	p.up()
	eventually(t, "all is written there", func() bool { return p.to.Head().Seq == p.from.Head().Seq })
	if l := p.source.lag(); l.Durable.Seq != 0 || l.Records == 0 {
		t.Fatalf("nothing is durable there, source shows %+v", l)
	}
	p.replica.down()
	p.to.Crash()
	p.upReplica()
	eventually(t, "all is written again", func() bool { return p.to.Head().Seq == p.from.Head().Seq })
	p.to.Sync()
	p.caughtUp()
	eventually(t, "source knows", func() bool { return p.source.lag().Durable == p.from.Head().Durable })
}

// ackedTooEarly runs a load against a replica whose disk is slow and reports
// whether the source ever took for durable what was not. stop makes the disk catch up.
func ackedTooEarly(t *testing.T, plant faults) bool {
	p := newPair(t)
	p.plant = plant
	p.to.ManualSync()
	early, acks := make(chan journal.Seq, 1), make(chan struct{}, 1)
	p.source.o.Events.Durable = func(_ string, _ Direction, _, _ string, at journal.Cursor) {
		if at.Seq > p.to.Head().Durable.Seq {
			select {
			case early <- at.Seq:
			default:
			}
		}
		select {
		case acks <- struct{}{}:
		default:
		}
	}
	p.up()
	p.load(10, 1, 1000)
	eventually(t, "all is written there", func() bool { return p.to.Head().Seq == p.from.Head().Seq })
	if plant == (faults{}) {
		p.to.Sync()
	}
	select {
	case <-acks:
	case <-time.After(patience):
		t.Fatal("no acknowledgement")
	}
	select {
	case <-early:
		return true
	default:
		return false
	}
}

// Promise 9, and the planted fault "ack before durable at the peer".
func TestAcknowledgedMeansDurable(t *testing.T) {
	if ackedTooEarly(t, faults{}) {
		t.Error("acknowledged before it was durable")
	}
	if !ackedTooEarly(t, faults{ackEarly: true}) {
		t.Fatal("planted fault not caught: ack before durable at the peer")
	}
	scale.Counted(t, "replicator-planted-faults", 1, 1)
}

// sentUndurable offers frames that are not durable at the source and reports
// whether the peer got one.
func sentUndurable(t *testing.T, plant faults) bool {
	p := newPair(t)
	p.plant = plant
	p.from.StreamAll = true
	p.up()
	p.caughtUp()
	p.from.ManualSync()
	p.load(3, 1, 1000)
	var refused bool
	eventually(t, "sent or refused", func() bool {
		refused = errors.Is(p.source.lag().Err, ErrNotDurable)
		return refused || p.to.Head().Seq > p.from.Head().Durable.Seq
	})
	if sent := p.to.Head().Seq > p.from.Head().Durable.Seq; sent || plant != (faults{}) {
		return sent
	}
	p.from.Sync()
	p.caughtUp()
	return false
}

// Promise 9, and the planted fault "send before fdatasync".
func TestOnlyDurableFramesAreSent(t *testing.T) {
	if sentUndurable(t, faults{}) {
		t.Error("sent what was not durable")
	}
	if !sentUndurable(t, faults{sendUndurable: true}) {
		t.Fatal("planted fault not caught: send before fdatasync")
	}
	scale.Counted(t, "replicator-planted-faults", 1, 1)
}

// skewedLag runs a pair whose replica's clock is off by skew, cuts the link, and
// says how the replica's RPO was wrong: less than true, or beyond all reason.
func skewedLag(t *testing.T, skew time.Duration, plant faults) error {
	p := newPair(t)
	p.plant = plant
	p.replica.o.Now = func() time.Time { return time.Now().Add(skew) }
	p.up()
	p.load(3, 1, 100)
	p.caughtUp()
	eventually(t, "replica knows", func() bool { return p.replica.lag().Known })
	if l := p.replica.lag(); l.RPO > patience {
		return fmt.Errorf("shows RPO %v while idle", l.RPO)
	}
	p.relay.cut.Store(true)
	written := time.Now()
	p.load(1, 1, 100)
	for time.Since(written) < 50*time.Millisecond {
		at := time.Now()
		l := p.replica.lag()
		if l.RPO < at.Sub(written) {
			return fmt.Errorf("shows RPO %v, a record of %v ago is not there", l.RPO, at.Sub(written))
		}
		if l.RPO > at.Sub(written)+patience {
			return fmt.Errorf("shows RPO %v, %v after the cut", l.RPO, at.Sub(written))
		}
	}
	l := p.replica.lag()
	if off := l.ClockOffset + skew; off.Abs() > l.ClockError {
		return fmt.Errorf("measured offset %v ± %v of a clock that is %v off", l.ClockOffset, l.ClockError, -skew)
	}
	return nil
}

// Promise 9, and the planted fault "lag from the source's clock alone".
func TestReplicaLagSurvivesSkewedClocks(t *testing.T) {
	for _, skew := range []time.Duration{-time.Hour, 0, time.Hour} {
		if err := skewedLag(t, skew, faults{}); err != nil {
			t.Errorf("skew %v: %v", skew, err)
		}
	}
	for _, skew := range []time.Duration{-time.Hour, time.Hour} {
		err := skewedLag(t, skew, faults{sourceClockOnly: true})
		if err == nil {
			t.Fatalf("skew %v: planted fault not caught: lag from the source's clock alone", skew)
		}
		t.Logf("caught at skew %v: %v", skew, err)
	}
	scale.Counted(t, "replicator-planted-faults", 1, 1)
}

// Promise 16: a replica that takes nothing holds the source back.
func TestSlowReplicaBoundsBytesInFlight(t *testing.T) {
	p := newPair(t)
	const window = 1 << 20
	p.source.o.WindowBytes, p.replica.o.WindowBytes = window, window
	release := make(chan struct{})
	p.to.Hold = func(ctx context.Context, read int64) error {
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	p.load(64, 1, 256<<10)
	p.up()
	eventually(t, "the window is full", func() bool { return p.source.lag().BytesMoved > window/2 })
	for range 20 { // heartbeats still pass
		p.load(1, 1, 10)
		head := p.from.Head().Seq
		eventually(t, "heartbeat arrives", func() bool { return p.replica.lag().Head.Seq == head })
		if moved := p.source.lag().BytesMoved; moved > 2*window {
			t.Fatalf("%d bytes in flight, the window holds %d", moved, window)
		}
	}
	close(release)
	p.caughtUp()
}

func TestLimitHolds(t *testing.T) {
	p := newPair(t)
	const limit, burst = 4 << 20, 64 << 10
	p.source.o.Peers[0].LimitBytesPerSecond, p.source.o.Peers[0].BurstBytes = limit, burst
	p.load(1, 1, 2<<20)
	start := time.Now()
	p.up()
	eventually(t, "half a second's worth is sent", func() bool { return p.source.lag().BytesMoved >= limit/4 })
	if took := time.Since(start); took < time.Second/4-time.Duration(float64(burst)/limit*float64(time.Second)) {
		t.Errorf("%d bytes took %v at %d bytes a second", limit/4, took, limit)
	}
	if err := p.source.rep.SetLimit("b", 0, 0); err != nil {
		t.Fatal(err)
	}
	p.caughtUp()
	if err := p.source.rep.SetLimit("nobody", 0, 0); err == nil {
		t.Error("limit of an unknown peer was set")
	}
}

func TestGroupsComeAndGo(t *testing.T) {
	p := newPair(t)
	var on atomic.Bool
	groups := p.source.o.Groups
	p.source.o.Groups = func() []Group {
		if !on.Load() {
			return nil
		}
		return groups()
	}
	p.up()
	if n := len(p.source.rep.Lags()); n != 0 {
		t.Fatalf("%d lags without a group", n)
	}
	on.Store(true)
	p.source.rep.Refresh()
	p.caughtUp()
	on.Store(false)
	p.source.rep.Refresh()
	eventually(t, "group is gone", func() bool { return len(p.source.rep.Lags()) == 0 && !p.replica.lag().Connected })
	on.Store(true)
	p.load(3, 1, 100)
	p.source.rep.Refresh()
	p.caughtUp()
}

func TestUnknownGroupIsRefused(t *testing.T) {
	p := newPair(t)
	p.replica.o.Receive = nil
	p.up()
	eventually(t, "refused", func() bool {
		l := p.source.lag()
		return l.State == StateRefused && errors.Is(l.Err, ErrUnknownGroup)
	})
	if n := len(p.replica.rep.Lags()); n != 0 {
		t.Errorf("replica shows %d groups that it does not take", n)
	}
}
