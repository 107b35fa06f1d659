package site

import (
	"testing"
	"time"

	"github.com/novacron/afterimage/site/config"
)

// The watchdog looks often enough for the group that bears the least, whatever others bear
// that are tapped, or never are.
func TestTheWatchdogLooksOftenEnoughForEachGroup(t *testing.T) {
	tapped := func(stall time.Duration) config.Group {
		return config.Group{Name: "tapped", Role: config.Primary, StallBudget: config.Duration(stall), Libvirt: &config.Libvirt{Domain: "web"}}
	}
	started := func(stall time.Duration) config.Group {
		return config.Group{Name: "started", Role: config.Replica, StallBudget: config.Duration(stall), Machine: &config.Machine{Name: "web"}}
	}
	for _, x := range []struct {
		name   string
		groups []config.Group
		want   time.Duration
	}{
		{"one that is never tapped beside", []config.Group{tapped(time.Second), started(time.Minute)}, 2 * time.Second},
		{"in the other order", []config.Group{started(time.Minute), tapped(time.Second)}, 2 * time.Second},
		{"two that are tapped", []config.Group{tapped(time.Minute), tapped(time.Second)}, 2 * time.Second},
		{"alone", []config.Group{started(time.Minute)}, 2 * time.Minute},
	} {
		w, err := (&Site{cfg: &config.Config{Groups: x.groups}}).newWatchdog()
		if err != nil {
			t.Fatal(err)
		}
		if w.stall != x.want {
			t.Errorf("%s: %s, want %s", x.name, w.stall, x.want)
		}
		if err := w.close(); err != nil {
			t.Error(err)
		}
	}
}
