package replicator

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/novacron/afterimage/journal"
)

func TestLedger(t *testing.T) {
	var l ledger
	step := func(what string, wantAt int64, known bool) {
		t.Helper()
		if l.known != known || l.proven.at != wantAt {
			t.Errorf("%s: proven %d, known %v, want %d, %v", what, l.proven.at, l.known, wantAt, known)
		}
	}
	l.note(sample{at: 10, seq: 5, bytes: 500})
	l.durable(4, 10)
	step("one record is missing", 0, false)
	l.durable(5, 9)
	step("durable, but the replica has not heard of that moment", 0, false)
	l.durable(5, 10)
	step("durable and heard", 10, true)
	l.note(sample{at: 20, seq: 5, bytes: 500})
	l.durable(5, 20)
	step("idle, a later moment is heard", 20, true)
	l.note(sample{at: 30, seq: 9, bytes: 900})
	l.note(sample{at: 15, seq: 5, bytes: 500})
	l.durable(8, math.MaxInt64)
	step("behind by one", 20, true)
	if got := l.behindBytes(9, 900, 8); got != 400 {
		t.Errorf("bytes behind: %d, want 400", got)
	}
	if got := l.behindBytes(9, 900, 9); got != 0 {
		t.Errorf("bytes behind when even: %d, want 0", got)
	}
	l.note(sample{at: 40, seq: 7, bytes: 1000}) // a fork below
	l.durable(7, 40)
	step("the left branch proves nothing", 40, true)
}

// Idle over a link slower than the heartbeat still proves moments.
func TestLedgerIdleOverASlowLink(t *testing.T) {
	var l ledger
	const late = 5 // heartbeats under way
	for i := int64(1); i < 100; i++ {
		l.note(sample{at: i, seq: 3})
		l.durable(3, i-late)
		if i > 3*late && i-l.proven.at > 3*late {
			t.Fatalf("at %d only %d is proven", i, l.proven.at)
		}
	}
}

// Promise 9 as a property: whatever is written, lost, late or thinned, the lag
// shown is never less than the true one, and it is exact when all has arrived.
func TestLagIsNeverLessThanTrue(t *testing.T) {
	const runs = 300
	rapid.Check(t, func(t *rapid.T) {
		var l ledger
		written := []int64{0} // written[s] is when record s was captured
		var durable journal.Seq
		var heard, now, bytes int64
		for range rapid.IntRange(1, runs).Draw(t, "steps") {
			now += rapid.Int64Range(1, 50).Draw(t, "passes")
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0, 1:
				written = append(written, now)
				bytes += 10
			case 2, 3:
				l.note(sample{at: now, seq: journal.Seq(len(written) - 1), bytes: bytes})
				if rapid.Bool().Draw(t, "arrives") {
					heard = now
				}
			case 4:
				durable += journal.Seq(rapid.IntRange(0, len(written)-1-int(durable)).Draw(t, "arrived"))
				l.durable(durable, heard)
			case 5:
				l.thin()
			}
			head := journal.Seq(len(written) - 1)
			if durable < head && l.known {
				if truth := now - written[durable+1]; int64(sourceRPO(now, l.proven.at)) < truth {
					t.Fatalf("shows RPO %v, record %d was captured %d ago", sourceRPO(now, l.proven.at), durable+1, truth)
				}
			}
			if got, truth := l.behindBytes(head, bytes, durable), int64(head-durable)*10; got < truth {
				t.Fatalf("shows %d bytes behind, %d are", got, truth)
			}
			if len(l.pending) > maxSamples {
				t.Fatalf("%d samples kept", len(l.pending))
			}
		}
		l.note(sample{at: now + 1, seq: journal.Seq(len(written) - 1), bytes: bytes})
		if l.durable(journal.Seq(len(written)-1), now+1); !l.known || l.proven.at != now+1 {
			t.Fatalf("all has arrived, proven is %d of %d", l.proven.at, now+1)
		}
	})
}

// The replica never places a moment of the source later than it was, for any skew,
// drift within the bound, and asymmetric way.
func TestReplicaMomentIsNeverLate(t *testing.T) {
	base := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		skew := time.Duration(rapid.Int64Range(-int64(time.Hour), int64(time.Hour)).Draw(t, "skew"))
		// The source's clock as a function of the replica's; the bound holds for both together.
		ppm := float64(rapid.IntRange(-190, 190).Draw(t, "drift"))
		remote := func(at time.Time) int64 {
			since := at.Sub(base)
			return base.Add(skew + since + time.Duration(float64(since)*ppm/1e6)).UnixNano()
		}
		delay := func(name string) time.Duration {
			return time.Duration(rapid.Int64Range(0, int64(2*time.Second)).Draw(t, name))
		}
		var o offset
		now := base
		for range rapid.IntRange(1, 5).Draw(t, "pings") {
			now = now.Add(delay("pause"))
			sent := now
			received := sent.Add(delay("there"))
			answered := received.Add(delay("thinking"))
			heard := answered.Add(delay("back"))
			o = o.better(measure(sent, heard, remote(received), remote(answered)), heard)
			now = heard
		}
		taken := now.Add(delay("until taken") * time.Duration(rapid.IntRange(0, 1000).Draw(t, "long")))
		arrived := taken.Add(delay("late"))
		got := replicaMoment(sample{at: remote(taken), arrived: arrived}, o)
		if got.After(taken.Add(time.Microsecond)) {
			t.Fatalf("taken at %v, placed %v later (margin %v)", taken, got.Sub(taken), o.margin)
		}
		if early := taken.Sub(got); early > 2*o.margin+2*drift(taken.Sub(base))+time.Millisecond {
			t.Fatalf("placed %v early with margin %v", early, o.margin)
		}
	})
}

func TestMeasureRefusesTheImpossible(t *testing.T) {
	at := time.Now()
	if measure(at, at.Add(time.Millisecond), 0, int64(time.Second)).known() {
		t.Error("a peer that thought for longer than we waited was believed")
	}
	old := measure(at, at.Add(time.Millisecond), 0, 0)
	later := at.Add(time.Minute)
	jumped := measure(later, later.Add(time.Second), int64(time.Hour), int64(time.Hour))
	if old.better(jumped, later) != jumped {
		t.Error("a clock that jumped is still placed by the old measurement")
	}
}
