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
