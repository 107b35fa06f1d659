package main

import (
	"strings"
	"testing"
)

// Where disks go is said once for each, and said at all.
func TestAMoveIsToldWhereTheDisksGo(t *testing.T) {
	for in, want := range map[string]string{
		"group move web":                                   "say where the disks go",
		"group move web --device /dev/vg0/root":            "want VOLUME=DEVICE",
		"group move web --device =/dev/vg0/root":           "want VOLUME=DEVICE",
		"group move web --device root=":                    "want VOLUME=DEVICE",
		"group move web --device root=/a --device root=/b": "once for a volume",
	} {
		if r := (stage{api: &fake{}}).run(t, strings.Fields(in)...); r.exit != 2 || !strings.Contains(r.stderr, want) {
			t.Errorf("%s: exit %d, %s", in, r.exit, r.stderr)
		}
	}
}

// That a disk may be overwritten is said by its path and then confirmed; looking says nothing.
func TestADomainsDiskIsSaidOnPurpose(t *testing.T) {
	for in, want := range map[string]string{
		"group home web --disk root":                     "want VOLUME=PATH",
		"group home web --disk root=/a --disk root=/b":   "once for a volume",
		"group home web --disk root=/srv/new/root.qcow2": "--yes is not given",
		"group home web --disk root=/a --force --yes":    "force",
	} {
		f := &fake{}
		if r := (stage{api: f}).run(t, strings.Fields(in)...); r.exit != 2 || !strings.Contains(r.stderr, want) || len(f.home.Disks) > 0 && !f.home.DryRun {
			t.Errorf("%s: exit %d, %s, %+v", in, r.exit, r.stderr, f.home)
		}
	}
	f := &fake{}
	if r := (stage{api: f}).run(t, "group", "home", "web"); r.exit != 0 || !f.home.DryRun {
		t.Errorf("a look: exit %d, %+v", r.exit, f.home)
	}
	if r := (stage{api: f}).run(t, "group", "home", "web", "--disk", "root=/srv/x", "--yes"); r.exit != 0 || f.home.DryRun || f.home.Disks["root"] != "/srv/x" {
		t.Errorf("said: exit %d, %+v", r.exit, f.home)
	}
}
