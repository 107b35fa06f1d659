package replicator

import (
	"testing"
	"time"
)

// What is under way comes to fill the path and waits in it for no longer than the path
// itself takes, wherever it began.
func TestPipeFindsWhatThePathHolds(t *testing.T) {
	for _, c := range []struct {
		name  string
		rate  float64
		floor time.Duration
		begin int64
	}{
		{"a long path", 50e6, 100 * time.Millisecond, 0},
		{"a short path", 50e6, 50 * time.Millisecond, 0},
		{"much too much", 50e6, 50 * time.Millisecond, 1 << 28},
		{"a path that is fast and long", 500e6, 200 * time.Millisecond, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := pipe{bytes: c.begin, filled: c.begin > 0}
			var goodput float64
			var rtt time.Duration
			for range 200 {
				rtt = max(c.floor, time.Duration(float64(p.bytes)/c.rate*float64(time.Second)))
				goodput = min(c.rate, float64(p.bytes)/rtt.Seconds())
				p.limited = true
				p.tick(goodput, rtt, c.floor)
			}
			if goodput < 0.95*c.rate || rtt > 2*c.floor {
				t.Errorf("%d bytes under way bring %.0f of %.0f bytes a second in %v, without a queue %v", p.bytes, goodput, c.rate, rtt, c.floor)
			}
			if !p.takes(p.bytes-1) || p.takes(p.bytes) {
				t.Errorf("a bound of %d bytes is not kept", p.bytes)
			}
		})
	}
	var blind pipe
	if blind.tick(1e6, 0, 0); !blind.takes(1 << 40) {
		t.Error("something is bounded of which nothing is known")
	}
}

// A round trip that busy processors lengthen, whatever is under way, is no reason to send
// less than the path has shown to take without a queue.
func TestPipeSendsOnWhereProcessorsAreBusy(t *testing.T) {
	const rate, floor, busy = 50e6, 50 * time.Millisecond, 30 * time.Millisecond
	p := pipe{}
	p.tick(rate, floor, floor)
	goodput := rate
	for range 50 { // some 10 s
		rtt := floor + busy
		goodput = min(rate, float64(p.bytes)/rtt.Seconds())
		p.limited = true
		p.tick(goodput, rtt, floor)
	}
	if goodput < 0.5*rate {
		t.Errorf("%d bytes under way bring %.0f bytes a second, the path takes %.0f", p.bytes, goodput, rate)
	}
}

// A path that tells of itself: windows that loss keeps small, and a queue that grows
// once it is full.
type toldPath struct {
	rate   float64
	floor  time.Duration
	window float64 // of each connection
	demand float64
}

func (p toldPath) with(lanes int) (goodput float64, busy bool, v pathView) {
	window := p.window * float64(lanes)
	held := p.rate * p.floor.Seconds()
	v = pathView{rtt: p.floor, least: p.floor, window: window, lost: true, light: p.demand < p.rate}
	goodput = min(window/p.floor.Seconds(), p.rate, p.demand)
	if busy = goodput < p.demand; busy && window > held {
		v.rtt = min(time.Duration(window/p.rate*float64(time.Second)), 2*p.floor)
	}
	return goodput, busy, v
}

func TestLanePlanFollowsWhatThePathTells(t *testing.T) {
	const endless = 1e12
	for _, c := range []struct {
		name        string
		path        toldPath
		least, most int
	}{
		{"a clean path", toldPath{25e6, 50 * time.Millisecond, 2e6, endless}, 1, 4},
		{"a lossy path", toldPath{25e6, 50 * time.Millisecond, 55e3, endless}, 23, 64},
		{"a very lossy path", toldPath{25e6, 50 * time.Millisecond, 17e3, endless}, 70, 128},
		{"less than the path would take", toldPath{50e6, 50 * time.Millisecond, 40e3, 10e6}, 25, 64},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, now, lanes := newLanePlan(128), time.Unix(1000, 0), 1
			const tick = 200 * time.Millisecond
			for i := range 3000 {
				goodput, busy, v := c.path.with(lanes)
				lanes = p.tick(now, goodput, busy, v)
				now = now.Add(tick)
				if i > 50 && (lanes < c.least || lanes > c.most) {
					t.Fatalf("%d connections after %v, want %d to %d", lanes, time.Duration(i)*tick, c.least, c.most)
				}
			}
			for range 200 {
				lanes = p.tick(now, 0, false, pathView{rtt: c.path.floor, least: c.path.floor, window: c.path.window})
				now = now.Add(tick)
			}
			if lanes != 1 {
				t.Errorf("%d connections while nothing is sent, want 1", lanes)
			}
		})
	}
}

// A path that has become longer is not taken for a full one for ever.
func TestLanePlanSeesThatAPathBecameLonger(t *testing.T) {
	p, now := newLanePlan(128), time.Unix(1000, 0)
	view := pathView{rtt: 20 * time.Millisecond, least: 20 * time.Millisecond, window: 1e6, light: true}
	p.tick(now, 1e6, false, view)
	if view.rtt = 200 * time.Millisecond; !p.full(now, 1e6, view) {
		t.Fatal("ten times the round trip is no queue")
	}
	for range 1000 {
		p.full(now, 1e6, view)
	}
	if p.full(now, 1e6, view) {
		t.Errorf("a path of %v counts as full, its own round trip as %v", view.rtt, p.floor)
	}
}

// A long path is begun with several connections, a short one with one: what fills it
// there is not known, and found out at once.
func TestALongPathIsBegunWithSeveralLanes(t *testing.T) {
	for rtt, want := range map[time.Duration]int{0: 1, time.Millisecond: 1, 50 * time.Millisecond: longLanes} {
		if got := lanesFor(rtt); got != want {
			t.Errorf("%v: %d lanes, want %d", rtt, got, want)
		}
	}
}
