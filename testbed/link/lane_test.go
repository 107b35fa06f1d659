package link

import (
	"math"
	"testing"
	"time"
)

const kib = 1 << 10

// fates runs n datagrams of 1000 bytes through a lane, one every gap of its clock.
func fates(c Config, n int, gap time.Duration) (arrivals [][]time.Duration, s Stats) {
	l := newLane(c, 0)
	for i := range n {
		at, copies := l.admit(time.Duration(i)*gap, 1000, 0)
		arrivals = append(arrivals, append([]time.Duration(nil), at[:copies]...))
	}
	return arrivals, l.stats
}

func TestLaneDelaysByHalfTheRTT(t *testing.T) {
	arrivals, _ := fates(Config{RTT: 80 * time.Millisecond}, 10, time.Millisecond)
	for i, at := range arrivals {
		if want := time.Duration(i)*time.Millisecond + 40*time.Millisecond; len(at) != 1 || at[0] != want {
			t.Errorf("datagram %d arrives at %v, want %v", i, at, want)
		}
	}
}

func TestLaneHoldsItsRateAndItsQueue(t *testing.T) {
	const rate, queue = 100_000, 20_000 // bytes a second, bytes
	l := newLane(Config{BytesPerSecond: rate, QueueBytes: queue}, 0)
	var last time.Duration
	through := 0
	for range 100 { // all at once
		if at, n := l.admit(0, 1000, 0); n == 1 {
			through++
			if at[0]-last != 10*time.Millisecond {
				t.Fatalf("datagram %d leaves %v after the one before, want 10ms", through, at[0]-last)
			}
			last = at[0]
		}
	}
	if through != 20 || l.stats.Overflowed != 80 {
		t.Errorf("%d pass, %d overflow a queue of 20", through, l.stats.Overflowed)
	}
	if at, n := l.admit(time.Second, 1000, 0); n != 1 || at[0] != time.Second+10*time.Millisecond {
		t.Errorf("when the queue is empty again: %v, %d", at[0], n)
	}
	l = newLane(Config{QueueBytes: queue}, 0)
	if _, n := l.admit(0, 1000, queue-999); n != 0 {
		t.Error("without a rate the queue has no bound")
	}
}

func TestLaneThrowsItsDiceAsOftenAsItSays(t *testing.T) {
	const n = 20000
	c := Config{Loss: 0.05, Duplicate: 0.02, Reorder: 0.1, Seed: 7}
	arrivals, s := fates(c, n, 100*time.Microsecond)
	for _, d := range []struct {
		name string
		got  uint64
		want float64
	}{
		{"lost", s.Lost, c.Loss},
		{"duplicated", s.Duplicated, c.Duplicate * (1 - c.Loss)},
		{"reordered", s.Reordered, c.Reorder * (1 - c.Loss)},
	} {
		mean := d.want * n
		if math.Abs(float64(d.got)-mean) > 5*math.Sqrt(mean) {
			t.Errorf("%s: %d of %d, want about %.0f (seed %d)", d.name, d.got, n, mean, c.Seed)
		}
	}
	overtaken := 0
	var latest time.Duration
	for _, at := range arrivals {
		if len(at) > 0 && at[0] < latest {
			overtaken++
		}
		if len(at) > 0 {
			latest = max(latest, at[0])
		}
	}
	if overtaken == 0 {
		t.Error("nothing was overtaken")
	}
	again, _ := fates(c, n, 100*time.Microsecond)
	other, _ := fates(Config{Loss: 0.05, Duplicate: 0.02, Reorder: 0.1, Seed: 8}, n, 100*time.Microsecond)
	if differences(arrivals, again) != 0 {
		t.Error("the same seed gives another fate")
	}
	if differences(arrivals, other) == 0 {
		t.Error("another seed gives the same fate")
	}
}

func differences(a, b [][]time.Duration) int {
	n := 0
	for i := range a {
		if len(a[i]) != len(b[i]) || len(a[i]) > 0 && a[i][0] != b[i][0] {
			n++
		}
	}
	return n
}

func TestLaneKeepsOrderUnderJitter(t *testing.T) {
	arrivals, _ := fates(Config{RTT: 10 * time.Millisecond, Jitter: 5 * time.Millisecond, Seed: 3}, 1000, 100*time.Microsecond)
	spread := false
	for i := 1; i < len(arrivals); i++ {
		if arrivals[i][0] < arrivals[i-1][0] {
			t.Fatalf("datagram %d overtakes", i)
		}
		spread = spread || arrivals[i][0]-time.Duration(i)*100*time.Microsecond != 5*time.Millisecond
	}
	if !spread {
		t.Error("no jitter")
	}
}

func TestConfigRefusesWhatIsNoPath(t *testing.T) {
	for _, c := range []Config{{Loss: 1.1}, {Loss: math.NaN()}, {Duplicate: -1}, {RTT: -1}, {BytesPerSecond: -kib}} {
		if c.validate() == nil {
			t.Errorf("%+v is taken", c)
		}
	}
}
