package site

import (
	"fmt"
	"strings"
	"testing"

	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/libvirtd"
)

// A domain is migrated to another host's libvirtd and comes back, in each way in which it
// can be captured: where libvirt refuses that, under a pause. While it is away the status
// says so and no points are made; what the guest wrote there is in the points once it is
// back, read whole, and the last point before is what it was.
func TestDomainIsMigratedAwayAndBack(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		passthrough config.Passthrough
		capture     string
		state       string
		refused     bool
	}{
		{config.PassthroughAllowed, "per-write", control.StateSynced, false},
		{config.PassthroughForbidden, "per-write", control.StateSynced, true},
		{config.PassthroughAllowed, "bitmap, every: 100ms", control.StateCycles, false},
	} {
		t.Run(strings.Fields(c.capture)[0]+" "+string(c.passthrough), func(t *testing.T) {
			w := newDomainWorldBy(t, c.passthrough, c.capture)
			there := libvirtd.Start(t)
			w.guestWrites(0, 0x11, 0)
			r := w.start()
			r.awaitState("web", c.state)
			w.guestWrites(0, 0x22, 64<<10)
			r.awaitKnown(c.state)
			before := r.points("web")
			last := before.Spans[len(before.Spans)-1].Last
			migrate := func(from, to *libvirtd.Daemon) error {
				out, err := virshOf(from, "migrate", "--live", "--unsafe", "web", to.URI, "unix://"+w.d.Path("migration"))
				t.Logf("%v %s", err, strings.TrimSpace(out))
				return err
			}
			resume := func() {}
			if c.refused {
				if migrate(w.d, there) == nil {
					t.Fatal("libvirt migrates a domain that it copies")
				}
				if !strings.Contains(r.detail("web").Others, "group pause") {
					t.Errorf("nothing tells what to do: %q", r.detail("web").Others)
				}
				resume = r.aside("move it")
			}
			await(t, "it is migrated", func() bool { return migrate(w.d, there) == nil }) // a cycle's backup may be under way
			resume()
			await(t, "the status tells where it has gone", func() bool {
				g := r.detail("web")
				return g.State == control.StateGap && len(g.Notices) > 0 && strings.Contains(g.Notices[0].Text, "migrated away")
			})
			r.stop() // who starts in between has not heard of it
			r = w.start()
			await(t, "the status still tells", func() bool {
				g := r.detail("web")
				return g.State == control.StateGap && len(g.Notices) > 0 && strings.Contains(g.Notices[0].Text, "migrated away")
			})
			away := w.d
			w.d = there
			w.guestWrites(0, 0x33, 128<<10)
			w.guestWrites(1, 0x44, 0)
			w.d = away
			await(t, "it is migrated back", func() bool { return migrate(there, w.d) == nil })
			await(t, "it is captured again", func() bool {
				g := r.detail("web")
				return g.State == c.state && len(g.Notices) == 0
			})
			for _, v := range r.detail("web").Volumes {
				switch {
				case r.stalls("web") > 0:
					t.Logf("%s: a busy machine made the tap let go as well", v.Name)
				case v.Resync == nil || !v.Resync.Full || v.Resync.Journaled > 64<<10:
					t.Errorf("%s: %+v", v.Name, v.Resync)
				}
			}
			w.guestWrites(1, 0x55, 1<<20)
			r.awaitKnown(c.state)
			w.newestIsDisks(r)
			root, data := w.restored(r, fmt.Sprintf("#%d.%d", last.Epoch, last.Seq))
			if !filled(root, 0x11, 0) || !filled(root, 0x22, 64<<10) || filled(root, 0x33, 128<<10) || filled(data, 0x44, 0) {
				t.Error("the last point before is not what the guest had written by then")
			}
		})
	}
}
