package site

import (
	"strings"
	"testing"

	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// Two sites that both ran a group meet: nothing of it flows either way, both say split
// brain with both histories, and neither takes a disk away from the machine that runs on
// it; what it writes goes on being recorded.
func TestMachinesThatRunAtFirstContactGoOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ca, cb := w.pair("", "")
	cb.Groups[0].Role, cb.Groups[0].Volumes = config.Primary, nil
	for _, v := range ca.Groups[0].Volumes {
		e := *v.Embedded
		e.Image += ".b"
		v.Embedded = &e
		cb.Groups[0].Volumes = append(cb.Groups[0].Volumes, v)
	}
	b := w.run(cb)
	ca.Peers[0].Address = b.address()
	b.awaitState("web", control.StateSynced)
	b.write("web/root", 2, 0, 4096)
	first := b.groupLine("web").Seq
	a := w.run(ca)
	for _, r := range []*running{a, b} {
		r.awaitState("web", control.StateHalted)
		for _, other := range []*running{a, b} { // each names the other's epoch beside its own
			await(t, r.cfg.Site+" shows the epoch of "+other.cfg.Site, func() bool {
				return strings.Contains(r.groupLine("web").Detail, other.groupLine("web").EpochID[:8])
			})
		}
	}
	a.write("web/root", 1, 0, 4096)
	b.write("web/root", 3, 4096, 4096)
	for _, r := range []*running{a, b} {
		g := r.groupLine("web")
		if g.Halt != control.HaltSplitBrain || g.Role != "primary" {
			t.Errorf("%s: %+v", r.cfg.Site, g)
		}
	}
	if g := b.groupLine("web"); g.Seq <= first {
		t.Errorf("what the machine wrote at b is not recorded: %d after %d", g.Seq, first)
	}
	a.reads("web/root", 1, 0, 4096)
	b.reads("web/root", 2, 0, 4096)
	b.reads("web/root", 3, 4096, 4096)
	if x, _ := fault.Lookup(fault.PeerDiverged); x.Exit != fault.ExitSplitBrain {
		t.Errorf("exit %d", x.Exit)
	}
}
