package replicator

import "time"

// driftPerSecond bounds how far two clocks part: a worst case for quartz (100
// parts in a million each), since an estimate that is too short would show less
// lag than there is.
const driftPerSecond = 200 * time.Microsecond

// lifeClock is this process's clock as peers see it: wall time at its start plus
// elapsed time, so that a step of the wall clock moves nothing.
type lifeClock struct {
	now   func() time.Time
	start time.Time
	wall  int64 // Unix ns at start
}

func newLifeClock(now func() time.Time) lifeClock {
	start := now()
	return lifeClock{now: now, start: start, wall: start.UnixNano()}
}

// nanos is the clock at t, a value of now.
func (c lifeClock) nanos(t time.Time) int64 { return c.wall + int64(t.Sub(c.start)) }

// at is the moment at which the clock showed n.
func (c lifeClock) at(n int64) time.Time { return c.start.Add(time.Duration(n - c.wall)) }

// offset says how a peer's clock stood to ours at one moment: when ours showed
// local, the peer's showed remote, give or take margin. The zero offset knows nothing.
type offset struct {
	local  time.Time
	remote int64 // ns of the peer's clock
	margin time.Duration
}

func (o offset) known() bool { return !o.local.IsZero() }

// measure is the offset that one ping and its pong prove: the peer read its clock
// somewhere between our sending and our hearing, whatever the two ways took.
// ours sent and heard, theirs received and answered.
func measure(sent, heard time.Time, received, answered int64) offset {
	waited, thought := heard.Sub(sent), time.Duration(answered-received)
	slack := drift(thought) // the two clocks may differ about how long that was
	if thought < 0 || thought > waited+slack {
		return offset{}
	}
	margin := max(waited-thought, 0)/2 + slack + 1
	return offset{local: sent.Add(waited / 2), remote: received + int64(thought/2), margin: margin}
}

// better is the one of o and p that is more exact at now, drift included.
func (o offset) better(p offset, now time.Time) offset {
	switch {
	case !p.known():
		return o
	case !o.known() || p.marginAt(now) <= o.marginAt(now) || o.contradicts(p):
		return p
	}
	return o
}

// contradicts reports that o and the later p cannot both hold: one of the clocks
// stood still (a suspended machine) or jumped.
func (o offset) contradicts(p offset) bool {
	apart := time.Duration(p.remote-o.remote) - p.local.Sub(o.local)
	return apart.Abs() > o.marginAt(p.local)+p.margin
}

func drift(d time.Duration) time.Duration {
	if d < 0 {
		d = -d
	}
	return time.Duration(float64(driftPerSecond) * d.Seconds())
}

// marginAt is the bound of the error for a moment of our clock.
func (o offset) marginAt(t time.Time) time.Duration { return o.margin + drift(t.Sub(o.local)) }

// earliest is the earliest moment of our clock at which the peer's can have shown remote.
func (o offset) earliest(remote int64) time.Time {
	since := time.Duration(remote - o.remote)
	return o.local.Add(since - o.margin - drift(since))
}

// ahead is how far the peer's clock runs before ours.
func (o offset) ahead(c lifeClock) time.Duration {
	if !o.known() {
		return 0
	}
	return time.Duration(o.remote - c.nanos(o.local))
}
