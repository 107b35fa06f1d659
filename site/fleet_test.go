package site

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/qemu"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

// A machine is told of by its disk that is furthest from points.
func TestGuestIsToldByItsWorstDisk(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	perWrite := cbt.VolumeStatus{State: cbt.StateSynced, Mode: cbt.ModePerWrite, ModeSince: at(5), Detail: "of an earlier break"}
	full := cbt.VolumeStatus{State: cbt.StateSyncing, Mode: cbt.ModeFull, ModeSince: at(3), ModeWhy: "no bitmap"}
	none := cbt.VolumeStatus{State: cbt.StateBroken, Mode: cbt.ModeNone, ModeSince: at(2), Detail: "no socket"}
	for name, tc := range map[string]struct {
		disks []cbt.VolumeStatus
		want  control.Guest
	}{
		"none yet": {nil, control.Guest{Name: "m", Mode: "none"}},
		"all well": {[]cbt.VolumeStatus{perWrite, {State: cbt.StateSynced, Mode: cbt.ModePerWrite, ModeSince: at(9)}},
			control.Guest{Name: "m", Volumes: 2, Mode: "per-write", State: "synced", Since: at(9), Effect: cbt.ModePerWrite.Effect()}},
		"one is read": {[]cbt.VolumeStatus{perWrite, full},
			control.Guest{Name: "m", Volumes: 2, Mode: "full", State: "syncing", Since: at(3), Why: "no bitmap", Effect: cbt.ModeFull.Effect()}},
		"one is gone": {[]cbt.VolumeStatus{none, full, perWrite},
			control.Guest{Name: "m", Volumes: 3, Mode: "none", State: "broken", Since: at(2), Why: "no socket", Effect: cbt.ModeNone.Effect()}},
	} {
		if d := cmp.Diff(tc.want, guestTold("m", tc.disks)); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// scriptedFreezer answers as it is told.
type scriptedFreezer struct {
	frozen, thawed int
	err            error
	thaws          *int
}

func (f scriptedFreezer) Freeze(context.Context) (int, error) { return f.frozen, f.err }
func (f scriptedFreezer) Thaw(context.Context) (int, error)   { *f.thaws++; return f.thawed, nil }

// Guests that are frozen together are thawed together: one that refuses leaves none of
// the others frozen, and one that thawed early spoils the mark.
func TestSeveralGuestsAreFrozenTogether(t *testing.T) {
	refused := qemu.ErrAgentRefused
	for name, tc := range map[string]struct {
		first, second scriptedFreezer
		thaws         int
		marked        bool
		early         bool
	}{
		"both":                {scriptedFreezer{frozen: 1, thawed: 1}, scriptedFreezer{frozen: 2, thawed: 2}, 2, true, false},
		"the first refuses":   {scriptedFreezer{err: refused}, scriptedFreezer{frozen: 1, thawed: 1}, 0, false, false},
		"the second refuses":  {scriptedFreezer{frozen: 1, thawed: 1}, scriptedFreezer{err: refused}, 2, false, false},
		"the second has none": {scriptedFreezer{frozen: 1, thawed: 1}, scriptedFreezer{}, 2, false, false},
		"one thawed early":    {scriptedFreezer{frozen: 1, thawed: 1}, scriptedFreezer{frozen: 1}, 2, true, true},
	} {
		thaws, marked := 0, false
		tc.first.thaws, tc.second.thaws = &thaws, &thaws
		nothing := func(context.Context) error { return nil }
		q := quiescence{freezer: freezers{tc.first, tc.second}, before: nothing, after: nothing, remember: func(bool) error { return nil }, frozen: time.Minute}
		err := q.around(t.Context(), func(context.Context) error { marked = true; return nil })
		if thaws != tc.thaws || marked != tc.marked || errors.Is(err, errThawedEarly) != tc.early || (err == nil) != (tc.marked && !tc.early) {
			t.Errorf("%s: %d thaws, marked %v, %v", name, thaws, marked, err)
		}
	}
}

// Disks that nobody names are called by their targets, behind their machine where there
// are several, and are found by that again.
func TestDisksOfSeveralMachinesHaveNamesOfTheirOwn(t *testing.T) {
	g := config.Group{Volumes: []config.Volume{{Name: "vda"}, {Name: "two-vdb"}}}
	for _, tc := range []struct{ guest, target, want string }{
		{"", "vdb", "vdb"}, {"", "vda", "disk-vda"},
		{"one", "vda", "one-vda"}, {"two", "vda", "two-vda"}, {"two", "vdb", "disk-two-vdb"},
	} {
		name := volumeName(g, tc.guest, tc.target)
		if name != tc.want || targetOf(g, tc.guest, name) != tc.target {
			t.Errorf("%s of %q is called %s, which is %q", tc.target, tc.guest, name, targetOf(g, tc.guest, name))
		}
	}
	for guest, name := range map[string]string{"one": "two-vda", "db": "db-2-vda"} {
		if got := targetOf(g, guest, name); got != "" {
			t.Errorf("%s, a disk of another machine, is taken for %s of %s", name, got, guest)
		}
	}
}

func TestDoctorLooksAtEachMachine(t *testing.T) {
	c, err := config.Parse("a.yml", []byte(`site: a
data: `+t.TempDir()+`
groups:
  - name: g
    role: primary
    capture: {mode: bitmap}
    machines: [{name: one, qemu: {qmp: /nowhere/1}}, {name: two, qemu: {qmp: /nowhere/2}}]
    volumes: [{name: a, size: 1MiB, machine: one, qemu: {node: d}}, {name: b, size: 1MiB, machine: two, qemu: {node: d}}]
`))
	if err != nil {
		t.Fatal(err)
	}
	found, err := Examine(t.Context(), c, "g")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range found {
		if strings.HasPrefix(f.Subject, "default/g") && (f.Level == FindingProblem || f.Subject == "default/g") {
			got = append(got, f.Subject+" "+f.Level+" "+strings.Join(strings.Fields(f.What)[:3], " "))
		}
	}
	want := []string{"default/g/one problem no QMP socket:", "default/g/two problem no QMP socket:", "default/g ok 2 machines are"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// Of several machines one that cannot be frozen spoils the mark before any other is.
func TestMachineThatCannotBeFrozenIsTold(t *testing.T) {
	g := config.Group{Machines: []config.Captured{
		{Name: "one", QEMU: &config.QEMU{QMP: "/q"}, Agent: "/nowhere/agent"}, {Name: "two", QEMU: &config.QEMU{QMP: "/r"}}}}
	if _, err := (&life{group: &group{cfg: g}}).freezer().Freeze(t.Context()); err == nil || !strings.Contains(err.Error(), "two") {
		t.Errorf("%v", err)
	}
	g.Machines[0].Agent = ""
	if f := (&life{group: &group{cfg: g}}).freezer(); f != nil {
		t.Errorf("a freezer of nothing: %v", f)
	}
}
