package site

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/novacron/afterimage/cbt/libvirt"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

// What others do to a domain, in whatever way it is tapped: what libvirt or QEMU refuses
// changes nothing; after everything else there are points again by themselves, the ones
// before ended with a cause, and the newest is what the disks hold.
func TestOthersHandleADomain(t *testing.T) {
	t.Parallel()
	for _, passthrough := range []config.Passthrough{config.PassthroughAllowed, config.PassthroughForbidden} {
		t.Run(string(passthrough), func(t *testing.T) { testOthersHandleADomain(t, passthrough) })
	}
}

func testOthersHandleADomain(t *testing.T, passthrough config.Passthrough) {
	w := newDomainWorld(t, passthrough)
	w.virsh("destroy", "web")
	text, err := os.ReadFile(filepath.Join(w.dir, "domain.xml"))
	if err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(w.dir, "defined.xml")
	of := []byte("<uuid>5a9d3a64-44b7-4c0c-a8b8-0e4c1c4d7b12</uuid><memory")
	if err := os.WriteFile(p, bytes.Replace(text, []byte("<memory"), of, 1), 0o600); err != nil {
		t.Fatal(err)
	}
	w.virsh("define", p)
	w.virsh("start", "web")
	r := w.start()
	r.awaitState("web", control.StateSynced)
	name := "web"
	saved := w.d.Path("saved")
	backup := filepath.Join(w.dir, "backup.xml")
	if err := os.WriteFile(backup, []byte("<domainbackup mode='push'><disks><disk name='vda' backup='yes' type='file'><target file='"+w.d.Path("backup.qcow2")+"'/></disk><disk name='vdb' backup='no'/></disks></domainbackup>"), 0o600); err != nil {
		t.Fatal(err)
	}
	copies := passthrough == config.PassthroughForbidden
	for _, c := range []struct {
		what    string
		do      [][]string
		refused bool   // while it is tapped
		aside   bool   // then it is done while the group is paused
		cause   string // why the points end
	}{
		{what: "suspended and resumed", do: [][]string{{"suspend", "web"}, {"resume", "web"}}},
		{what: "external snapshot", do: [][]string{{"snapshot-create-as", "web", "s", "--disk-only", "--no-metadata", "--atomic"}}, refused: true},
		{what: "foreign backup job", do: [][]string{{"backup-begin", "web", backup}}, refused: true, aside: true, cause: "detached"},
		{what: "saved and restored", do: [][]string{{"save", "web", saved}, {"restore", saved}}, refused: copies, aside: copies, cause: "tap-ended"},
		{what: "destroyed and started", do: [][]string{{"destroy", "web"}, {"start", "web"}}, cause: "tap-ended"},
		{what: "renamed", do: [][]string{{"destroy", "web"}, {"domrename", "web", "new"}, {"start", "new"}}, cause: "tap-ended"},
	} {
		was, stalled := r.points("web").Spans, r.stalls("web")
		perform := func() (err error) {
			for _, args := range c.do {
				var out string
				if out, err = w.tryVirsh(args...); err != nil {
					t.Logf("%s: virsh %v: %s", c.what, args, strings.TrimSpace(out))
					return err
				}
			}
			return nil
		}
		// A backup beside a mirror is refused by QEMU alone; libvirtd 9.0 may crash when
		// it undoes what it had begun by then.
		if c.what != "foreign backup job" || copies {
			if err := perform(); (err != nil) != c.refused {
				t.Fatalf("%s: %v, want it refused: %v", c.what, err, c.refused)
			}
		}
		if c.aside {
			if _, err := r.Pause(context.Background(), control.PauseRequest{Group: "web", Seconds: 3600, Reason: c.what}); err != nil {
				t.Fatal(err)
			}
			if err := perform(); err != nil {
				t.Fatalf("%s: while the group is paused: %v", c.what, err)
			}
			if _, err := r.Resume(context.Background(), control.ResumeRequest{Group: "web"}); err != nil {
				t.Fatal(err)
			}
			c.cause = "detached"
		}
		if c.what == "renamed" {
			name = "new"
		}
		if c.cause != "" {
			await(t, c.what+": there are points again", func() bool {
				now := r.points("web").Spans
				return len(now) > len(was) && now[len(now)-1].Open
			})
		}
		r.awaitState("web", control.StateSynced)
		if now := r.points("web").Spans; r.stalls("web") > stalled {
			t.Logf("%s: a busy machine made the tap let go as well", c.what)
		} else if c.cause == "" && len(now) != len(was) {
			t.Errorf("%s: the points ended: %+v", c.what, now)
		} else if c.cause != "" && now[len(was)-1].Ended != c.cause {
			t.Errorf("%s: the points ended by %q, want %q", c.what, now[len(was)-1].Ended, c.cause)
		}
		w.guestWritesOf(name, 0, byte(len(c.what)), 64<<10)
		root, data := w.restored(r, "latest")
		for i, got := range map[string][]byte{"a.qcow2": root, "b.qcow2": data} {
			raw := filepath.Join(w.dir, "raw")
			if out, err := exec.Command("qemu-img", "convert", "-U", "-O", "raw", w.d.Path(i), raw).CombinedOutput(); err != nil {
				t.Fatalf("qemu-img: %v\n%s", err, out)
			}
			want, err := os.ReadFile(raw)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(want, got) {
				t.Errorf("%s: the newest point differs from %s", c.what, i)
			}
		}
	}
	// Its agent is asked by whatever name it has now: this one has none that answers.
	l, release, err := r.open(context.Background(), r.groups[0])
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if _, err := l.freezer().Freeze(context.Background()); err == nil || errors.Is(err, libvirt.ErrNoDomain) {
		t.Errorf("freeze the renamed domain: %v", err)
	}
	// Nor is it off because nothing has its old name.
	notOff := func(why string) {
		t.Helper()
		if how, err := l.seenOff(t.Context()); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("it is off: %q, %v, want %q", how, err, why)
		}
	}
	notOff("domain new is running")
	w.virsh("destroy", "new")
	w.virsh("autostart", "new")
	notOff("virsh autostart --disable new")
	w.virsh("autostart", "--disable", "new")
	await(t, "it is off, and its taps have heard", func() bool {
		how, err := l.seenOff(t.Context())
		return err == nil && strings.Contains(how, "domain new is shut off")
	})
}
