package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/guest"
	"github.com/novacron/afterimage/testbed/stamp"
)

// verb runs failover VERB for each machine's group at a site, as an operator's script
// would, and decodes what each prints.
func (s *shop) verb(at *daemon, verb string, into func(name string) any, flags ...string) {
	s.t.Helper()
	for _, name := range shopMachines {
		ctx, cancel := context.WithTimeout(s.t.Context(), guestPatience)
		args := append([]string{"--config", at.config, "-o", "json", "failover", verb, name, "--yes"}, flags...)
		var said bytes.Buffer
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Stderr = &said
		out, err := cmd.Output()
		cancel()
		if err == nil {
			err = json.Unmarshal(out, into(name))
		}
		if err != nil {
			s.t.Fatalf("%s of %s at %s: %v\n%s%s", verb, name, at.name, err, &said, out)
		}
	}
}

// atHome is what the machine at a found when it booted next.
func (s *shop) atHome(name string) guest.Verified {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), guestPatience)
	defer cancel()
	line, err := s.consoles[name].Wait(ctx, "verified ")
	if err != nil {
		s.t.Fatal(err)
	}
	v, err := guest.ParseVerified(line)
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

// runsAt holds that the machines are where they should be: at a from disks of their own,
// off but defined there otherwise; at b there is nothing of them unless they run there.
func (s *shop) runsAt(site string) {
	s.t.Helper()
	all := strings.Join(shopMachines, "\n")
	here, there := "", ""
	if site == "a" {
		here = all
	} else {
		there = all
	}
	sorted := func(text string) string {
		return strings.Join(slices.Sorted(slices.Values(strings.Fields(text))), "\n")
	}
	if got := sorted(s.virsh(s.from, "list", "--all", "--name")); got != all {
		s.t.Errorf("a's libvirtd has %q", got)
	}
	if got := sorted(s.virsh(s.from, "list", "--name")); got != here {
		s.t.Errorf("a runs %q, want %q", got, here)
	}
	if got := sorted(s.virsh(s.to, "list", "--all", "--name")); got != there {
		s.t.Errorf("b's libvirtd has %q, want %q", got, there)
	}
	for _, name := range strings.Fields(here) {
		if disks := s.virsh(s.from, "domblklist", name); !strings.Contains(disks, s.from.Path(name+".qcow2")) {
			s.t.Errorf("%s runs at a from\n%s", name, disks)
		}
	}
}

// nothingLost judges a move: the guest on the other side has what it told of on this one,
// up to the last stamp before it switched itself off.
func (s *shop) nothingLost(verb, name string, told uint64, v guest.Verified) {
	s.t.Helper()
	s.t.Logf("%s: %s had told of %d stamps and has %d: lost %d, reported 0", verb, name, told, v.Max, told-v.Max)
	if told < 10 || !v.Whole(told) || v.Max != told {
		s.t.Errorf("%s: %s had told of %d stamps, and has %+v", verb, name, told, v)
	}
}

// stampsAt is the highest stamp on a machine's disk at a point of b's history.
func (s *shop) stampsAt(name, at string) uint64 {
	s.t.Helper()
	to := filepath.Join(s.t.TempDir(), name)
	if _, err := s.b.api.Restore(s.t.Context(), control.RestoreRequest{Group: name, At: at, To: to, Format: control.FormatSparse}, func(control.Progress) {}); err != nil {
		s.t.Fatal(err)
	}
	image, err := os.ReadFile(to)
	if err != nil {
		s.t.Fatal(err)
	}
	r, err := stamp.Scan(bytes.NewReader(image), 0, domainSlots)
	if err != nil || !r.Whole(r.Max) {
		s.t.Fatalf("%s at %s: %v, %v", name, at, r, err)
	}
	return r.Max
}

// writesOnAtB waits until each machine at b has written n stamps since it came up there.
func (s *shop) writesOnAtB(n uint64) {
	s.t.Helper()
	for _, name := range shopMachines {
		from := s.found(name).Max
		s.b.until(name+" writes on", func(context.Context) bool { return s.stamped(name) >= from+n })
	}
}

// drilled is a drill under load, which leaves nothing.
func (s *shop) drilled() {
	s.t.Helper()
	s.mark("drill")
	before := s.virsh(s.to, "list", "--all", "--name")
	s.ordered("test", "name:drill")
	if after := s.virsh(s.to, "list", "--all", "--name"); before != "" || after != before {
		s.t.Errorf("domains before the drill %q, after it %q", before, after)
	}
	if left, _ := filepath.Glob(s.to.Path("s/d-*")); len(left) != 0 {
		s.t.Errorf("the drill left %v", left)
	}
}

// Every verb over three machines of libvirt that write all the time: a drill, a move by
// runbook, the way home by the same file, a disaster that is rolled back, one that is committed, the old
// site following the new one, and the way home by command. What each verb reports as lost
// is what the guests' stamps say.
func TestEveryVerbOverMachinesOfLibvirt(t *testing.T) {
	s := newShop(t)
	s.b.launch()
	s.a.launch()
	s.all(s.a, control.StateSynced)
	for _, c := range s.consoles {
		if _, err := c.WaitStamped(t.Context(), 20); err != nil {
			t.Fatal(err)
		}
	}

	s.drilled()
	s.ordered("planned", "latest")
	s.runsAt("b")
	for i, name := range shopMachines {
		s.nothingLost("planned", name, s.consoles[name].Stamped(), s.found(name))
		if xml := s.virsh(s.to, "dumpxml", name); !strings.Contains(xml, macAt(1, i)) {
			t.Errorf("%s has another card:\n%s", name, xml)
		}
	}
	s.writesOnAtB(15)
	s.ordered("failback", "latest")
	for _, name := range shopMachines {
		s.nothingLost("failback", name, s.stamped(name), s.atHome(name))
	}
	s.runsAt("a")
	s.all(s.a, control.StateSynced)
	s.all(s.b, control.StateReceiving)

	s.rolledBack()
	s.committed()
	s.evidence()
}

// rolledBack is a disaster while much is on its way, with a loss, and back.
func (s *shop) rolledBack() {
	s.t.Helper()
	s.mark("before")
	highest, short := s.quietedShort(15)
	lost := s.disaster("name:before")
	for name, l := range lost {
		s.t.Logf("unplanned: of %s %d records never arrived, told were %d", name, short[name], l.NeverArrived.Records)
		if l.NeverArrived.Records == 0 || l.NeverArrived.Records > short[name] {
			s.t.Errorf("unplanned: of %s %d records never arrived, told is %+v", name, short[name], l)
		}
	}
	s.ordered("unplanned", "name:before")
	from := map[string]uint64{}
	for _, name := range shopMachines {
		v := s.found(name)
		from[name] = v.Max
		s.t.Logf("unplanned: %s had %d stamps and has %d: lost %d, reported %d", name, highest[name], v.Max, highest[name]-v.Max, lost[name].Writes)
		// What never arrived is told in records, and one that is no write may be among them.
		other := lost[name].Writes - (highest[name] - v.Max)
		if !v.Whole(v.Max) || other > 1 || lost[name].Writes < 15 {
			s.t.Errorf("unplanned: %s: %+v, the source had %d, told was a loss of %d writes", name, v, highest[name], lost[name].Writes)
		}
	}
	s.writesOnAtB(10)
	given := map[string]*control.Decision{}
	s.verb(s.b, "rollback", func(name string) any {
		given[name] = &control.Decision{}
		return given[name]
	})
	for _, name := range shopMachines {
		d := given[name]
		had := s.stampsAt(name, fmt.Sprintf("#%d.%d", d.Branch.Epoch, d.Branch.Last))
		s.t.Logf("rollback: %s had %d stamps there and keeps %d: lost %d, reported %d", name, had, from[name], had-from[name], d.Loss.Writes)
		if had-from[name] != d.Loss.Writes || d.Loss.Writes < 10 {
			s.t.Errorf("rollback: %s had stamps up to %d, from %d on, told was %+v", name, had, from[name], d.Loss)
		}
	}
	s.a.launch()
	for _, name := range shopMachines {
		s.a.until("its limit is lifted", func(ctx context.Context) bool {
			_, err := s.a.api.Limit(ctx, control.LimitRequest{Group: name, Schedule: true})
			return err == nil
		})
		s.virsh(s.from, "start", name)
	}
	for _, name := range shopMachines {
		if v := s.atHome(name); !v.Whole(highest[name]) || v.Max != highest[name] {
			s.t.Errorf("rollback: %s has %+v, want %d stamps", name, v, highest[name])
		}
	}
	s.runsAt("a")
	s.all(s.a, control.StateSynced)
	s.all(s.b, control.StateReceiving)
}

// committed is a disaster without a loss that becomes the rule, and the way home.
func (s *shop) committed() {
	s.t.Helper()
	highest := s.quieted(15)
	lost := s.disaster("latest")
	s.ordered("unplanned", "latest")
	for _, name := range shopMachines {
		v := s.found(name)
		s.t.Logf("unplanned: %s had %d stamps and has %d: lost %d, reported %d", name, highest[name], v.Max, highest[name]-v.Max, lost[name].Writes)
		if v.Max != highest[name] || lost[name].Writes != 0 {
			s.t.Errorf("unplanned: %s: %+v, the source had %d, told was a loss of %d writes", name, v, highest[name], lost[name].Writes)
		}
	}
	s.verb(s.b, "commit", func(string) any { return &control.Decision{} })
	s.a.launch()
	s.all(s.a, control.StateHalted)
	s.verb(s.b, "reprotect", func(string) any { return &control.Decision{} })
	s.all(s.a, control.StateReceiving)
	s.writesOnAtB(15)
	s.verb(s.b, "planned", func(string) any { return &control.HandedOver{} }, "--shutdown")
	for _, name := range shopMachines {
		s.nothingLost("failback by command", name, s.stamped(name), s.atHome(name))
	}
	s.runsAt("a")
	s.all(s.a, control.StateSynced)
	s.all(s.b, control.StateReceiving)
}

// evidence holds that every verb has left a report at the sites that it was done at.
func (s *shop) evidence() {
	s.t.Helper()
	for site, want := range map[*daemon]map[string]int{
		s.a: {"handover": 3 * len(shopMachines), "run": 1},
		s.b: {"handover": 3 * len(shopMachines), "failover": 2 * len(shopMachines), "decision": 3 * len(shopMachines), "run": 3, "drill": 1},
	} {
		for kind, n := range want {
			site.until(fmt.Sprintf("%d reports of kind %s", n, kind), func(ctx context.Context) bool {
				rs, err := site.api.Reports(ctx)
				got := 0
				for _, r := range rs {
					if r.Kind == kind && r.Held {
						got++
					}
				}
				return err == nil && got == n
			})
		}
	}
}
