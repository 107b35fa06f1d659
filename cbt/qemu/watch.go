package qemu

import (
	"context"
	"fmt"
	"time"

	"github.com/novacron/afterimage/cbt"
)

// watch is the loop that keeps the guest from waiting: it lets go of taps whose
// requests outlast the budget, notices that the process stood still, and beats
// the watchdog's heart while requests are being answered.
func (t *Tracker) watch(ctx context.Context) {
	tick := time.NewTicker(t.opts.StallBudget / 8)
	defer tick.Stop()
	key := t.opts.captureSocket()
	defer t.opts.Heartbeat.Gone(key)
	yanked := make(map[*tap]bool)
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		taps, l := t.current()
		if late := t.pulse.late(); late > 0 && !t.opts.faults.ignorePause {
			for _, tap := range taps {
				tap.letGo(breakage(cbt.CauseStall, fmt.Errorf("this process stood still for %v", late.Round(time.Millisecond))))
			}
		}
		t.pulse.beat()
		healthy := true
		var nodes []string
		for _, tap := range taps {
			nodes = append(nodes, tap.node)
			age := time.Duration(0)
			if first := tap.oldest(); !first.IsZero() {
				age = time.Since(first)
			}
			if age > t.opts.StallBudget {
				tap.letGo(breakage(cbt.CauseStall, fmt.Errorf("a write was not safe after %v", age.Round(time.Millisecond))))
			}
			// Letting go answers what waits; what still waits is stuck beyond
			// our reach, and only QEMU's end of the connection can be cut.
			if age > t.opts.StallBudget+t.opts.StallBudget/2 {
				healthy = false
				if l != nil && !yanked[tap] {
					yanked[tap] = true
					go t.yank(ctx, l, tap)
				}
			}
		}
		if healthy {
			t.tell(nodes)
		}
	}
}

// announce tells the watchdog of the taps at once: from the moment that a mirror
// runs, nobody else can free the guest.
func (t *Tracker) announce() {
	taps, _ := t.current()
	nodes := make([]string, len(taps))
	for i, tap := range taps {
		nodes[i] = tap.node
	}
	t.tell(nodes)
}

// tell beats the watchdog's heart.
func (t *Tracker) tell(nodes []string) {
	beat := t.opts.Heartbeat.Beat
	if t.still.Load() {
		beat = t.opts.Heartbeat.Still
	}
	beat(t.opts.captureSocket(), t.opts.WatchdogQMP, nodes, 2*t.opts.StallBudget) // what it settles itself is not cut
}

func (t *Tracker) yank(ctx context.Context, l link, tap *tap) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := l.yank(ctx, tap.node); err != nil {
		t.opts.Log.Warn("yank capture node", "volume", tap.volume.Name, "error", err)
	}
}

func (t *Tracker) current() ([]*tap, link) {
	t.mu.Lock()
	defer t.mu.Unlock()
	taps := make([]*tap, 0, len(t.taps))
	for _, tap := range t.taps {
		taps = append(taps, tap)
	}
	return taps, t.link
}
