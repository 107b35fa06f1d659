package site

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

// examined is the findings as lines, without those that are well.
func examined(t *testing.T, c *config.Config) string {
	t.Helper()
	return findings(t, c, false)
}

// findings is them with those that are well, if all are asked for.
func findings(t *testing.T, c *config.Config, all bool) string {
	t.Helper()
	found, err := Examine(context.Background(), c, "web")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, f := range found {
		if f.Subject != "host" && (f.Level != FindingOK || all) {
			fmt.Fprintf(&b, "%s: %s | %s\n", f.Level, f.What, f.Fix)
		}
		if (f.Level == FindingOK) != (f.Fix == "") {
			t.Errorf("a finding without a fix, or one that needs none: %+v", f)
		}
	}
	return b.String()
}

func TestDoctorExaminesADomain(t *testing.T) {
	t.Parallel()
	w := newDomainWorld(t, config.PassthroughForbidden)
	has := func(c *config.Config, lines ...string) {
		t.Helper()
		got := examined(t, c)
		for _, l := range lines {
			if !strings.Contains(got, l) {
				t.Errorf("no %q in:\n%s", l, got)
			}
		}
	}
	if got := examined(t, w.c); strings.Contains(got, FindingProblem) || strings.Count(got, "\n") != 1 {
		t.Errorf("only the agent's channel is missing:\n%s", got)
	}
	variant := func(old, new string) *config.Config {
		text, err := w.c.YAML()
		if err != nil {
			t.Fatal(err)
		}
		c, err := config.Parse(filepath.Join(w.dir, "v.yml"), []byte(strings.ReplaceAll(string(text), old, new)))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	has(variant("target: vdb", "target: vdx"), "problem: data: web has no disk vdx | its disks are vda, vdb", "warning: disk vdb")
	has(variant("size: 8MiB", "size: 9MiB"), "| size: 8388608")
	has(variant("domain: web", "domain: nobody"), "problem: there is no domain nobody")
	has(variant("passthrough: forbidden", "passthrough: allowed"), "tainted")
	for line, way := range map[string]*config.Config{
		"ok: while it is tapped libvirt refuses migration": w.c,
		"ok: while it is tapped QEMU refuses snapshots":    variant("passthrough: forbidden", "passthrough: allowed"),
	} {
		if got := findings(t, way, true); !strings.Contains(got, line) || !strings.Contains(got, "group pause default/web --for 1h --reason") {
			t.Errorf("no %q in:\n%s", line, got)
		}
	}
	// Our own copy is none of somebody else's; theirs is named.
	r := w.start()
	r.awaitState("web", control.StateSynced)
	if got := examined(t, w.c); strings.Contains(got, FindingProblem) {
		t.Errorf("while it is tapped:\n%s", got)
	}
	r.stop()
	w.virsh("blockcopy", "web", "vda", w.d.Path("theirs.qcow2"), "--transient-job")
	has(w.c, "problem: root: a block job of somebody else's runs on vda: copy | wait for it, or end it: virsh blockjob web vda --abort")
	w.virsh("destroy", "web")
	has(w.c, "problem: there is no domain web") // it is transient
	w.d.Kill()
	has(w.c, "problem: libvirt does not answer")
}

func TestDoctorAdvisesNothingThatTheConfigurationRefuses(t *testing.T) {
	t.Parallel()
	domain := config.Tap{Group: config.Group{Libvirt: &config.Libvirt{Domain: "web", Passthrough: config.PassthroughAllowed}}}
	for mode, wanted := range map[config.CaptureMode]string{config.CapturePerWrite: "passthrough: forbidden avoids it", config.CaptureBitmap: "none for bitmap cycles"} {
		e := &examination{}
		e.way(config.Group{Name: "web", Capture: &config.Capture{Mode: mode, Every: config.Duration(time.Minute)}}, domain)
		if len(e.found) != 2 || e.found[0].Level != FindingWarning || !strings.HasPrefix(e.found[0].Fix, wanted) {
			t.Errorf("mode %s: %+v", mode, e.found)
		}
	}
}

func TestSizesAreForPeople(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 100 << 30: "100GiB", 59344916480: "55.3GiB", 1<<20 + 1: "1.0MiB", 1<<40 - 1: "1.0TiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d is %s, want %s", n, got, want)
		}
	}
}

func TestDoctorExaminesAHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.configure("a", "groups:\n- name: web\n  role: primary\n  qemu: {qmp: {dir}/q}\n  volumes: [{name: root, size: 1MiB, qemu: {node: n}}]\n")
	if got := examined(t, c); !strings.Contains(got, "problem: no QMP socket") || !strings.Contains(got, "warning: no watchdog") {
		t.Errorf("without a machine:\n%s", got)
	}
	if err := os.WriteFile(filepath.Join(w.dir, "q"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := examined(t, c); !strings.Contains(got, "is no socket") {
		t.Errorf("with a file for a socket:\n%s", got)
	}
	found, err := Examine(context.Background(), c, "")
	if err != nil || len(found) == 0 || found[0].Subject != "host" || !strings.Contains(found[0].What, "free") {
		t.Errorf("%+v, %v", found, err)
	}
	if _, err := Examine(context.Background(), c, "other"); err == nil {
		t.Error("a group that is not there was examined")
	}
}
