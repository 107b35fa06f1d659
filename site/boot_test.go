package site

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/libvirtd"
	"github.com/novacron/afterimage/testbed/port"
	"github.com/novacron/afterimage/testbed/scale"
)

// bootWorld is two sites; a's domain is defined, off, and starts with its host.
type bootWorld struct {
	*domainWorld
	a, b *config.Config
}

func newBootWorld(t *testing.T) *bootWorld {
	t.Helper()
	scale.Tools(t, "virsh")
	d := libvirtd.Start(t)
	w := &bootWorld{domainWorld: &domainWorld{world: newWorld(t), d: d}}
	xml := filepath.Join(w.dir, "domain.xml")
	if err := os.WriteFile(xml, []byte(d.Domain("web", d.Image(t, "a.qcow2", 1<<20))), 0o600); err != nil {
		t.Fatal(err)
	}
	w.virsh("define", xml)
	w.virsh("autostart", "web")
	pin := func(name string) string {
		p, err := Pin(w.configure(name, ""))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	user := ""
	if os.Geteuid() == 0 {
		user = ", user: nobody"
	}
	listen := port.Address(t)
	w.b = w.configure("b", fmt.Sprintf("listen: %s\npeers: [{name: a, pin: %q}]\ngroups:\n- {name: web, peers: [a]}\n", listen, pin("a")))
	w.a = w.configure("a", fmt.Sprintf(`listen: %s
peers: [{name: b, pin: %q, address: "%s"}]
groups:
- name: web
  role: primary
  boot: ask
  peers: [b]
  libvirt: {domain: web, uri: "%s", passthrough: forbidden, sockets: "%s"%s}
  volumes: [{name: root, size: 1MiB, libvirt: {target: vda}}]
`, port.Address(t), pin("b"), listen, d.URI, d.Path("s"), user))
	return w
}

// boot runs a on a host that booted under that name.
func (w *bootWorld) boot(name string) *running {
	w.t.Helper()
	return w.runWith(w.a, Options{Executable: w.idle(), HostBoot: name})
}

func (w *bootWorld) state() string { return strings.TrimSpace(w.virsh("domstate", "web")) }

func (w *bootWorld) awaitWaiting(r *running) string {
	w.t.Helper()
	text := ""
	await(w.t, "the machine waits", func() bool {
		for _, n := range r.groupLine("web").Notices {
			if strings.Contains(n.Text, "is not started") && n.Level == control.Alarm {
				text = n.Text
			}
		}
		return text != ""
	})
	return text
}

// Promise 11, on a real libvirtd: autostart is ours once the group is protected; after
// a boot of the host the machine starts only when a peer has told that it may, once a
// boot; one that somebody stopped stays off; after a failover it stays off for good.
func TestBootAsks(t *testing.T) {
	t.Parallel()
	w := newBootWorld(t)
	a := w.boot("first")
	if text := w.awaitWaiting(a); !strings.Contains(text, "no peer has told") {
		t.Errorf("waits for: %s", text)
	}
	if out := w.virsh("dominfo", "web"); !strings.Contains(out, "Autostart:      disable") || w.state() != "shut off" {
		t.Fatalf("autostart is libvirt's still, or it runs:\n%s", out)
	}
	b := w.run(w.b)
	await(t, "the machine runs", func() bool { return w.state() == "running" })
	a.awaitState("web", control.StateSynced)
	awaitLevel(a, b, "web")
	await(t, "nothing is said any more", func() bool { return len(a.groupLine("web").Notices) == 0 })
	a.stop()
	w.virsh("destroy", "web") // by somebody, who meant it
	a = w.boot("first")
	awaitLevel(a, b, "web")
	done(t, a)
	if w.state() != "shut off" {
		t.Error("a machine that was stopped is started again within the same boot")
	}
	awaitLevel(a, b, "web")
	a.stop()
	await(t, "b has lost a", func() bool {
		return len(b.groupLine("web").Lags) == 0 || b.groupLine("web").Lags[0].State != "streaming"
	})
	if _, err := b.Failover(context.Background(), control.FailoverRequest{Group: "web", At: "latest", Force: true, NoMachine: true}, func(control.Progress) {}); err != nil {
		t.Fatal(err)
	}
	a = w.boot("second")
	await(t, "a has met b", func() bool {
		g := a.groupLine("web")
		return g.State == control.StateHalted || g.Role == "replica"
	})
	if a.groupLine("web").Role != "replica" {
		w.awaitWaiting(a)
	}
	if s := w.state(); s != "shut off" {
		t.Errorf("a second machine: %s", s)
	}
}

// done waits until startAsked has had its look: in this test it returned for good.
func done(t *testing.T, r *running) {
	t.Helper()
	g, err := r.Site.group("web")
	if err != nil {
		t.Fatal(err)
	}
	l, release, err := g.await(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	await(t, "boot was looked at", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.bootDone
	})
}

func TestDoctorWarnsOfAutostart(t *testing.T) {
	t.Parallel()
	w := newBootWorld(t)
	w.a.Groups[0].Boot = ""
	if got := examined(t, w.a); !strings.Contains(got, "asks nobody: after a failover to a peer it would run twice | boot: ask") {
		t.Errorf("not said:\n%s", got)
	}
}
