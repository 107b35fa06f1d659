package site

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

// names are those of the volumes that a point covers.
func (w *domainWorld) names(r *running, at string) []string {
	w.t.Helper()
	to := filepath.Join(w.t.TempDir(), "out")
	if _, err := r.Restore(context.Background(), control.RestoreRequest{Group: "web", At: at, To: to + "/", Format: control.FormatSparse}, func(control.Progress) {}); err != nil {
		w.t.Fatal(err)
	}
	files, err := os.ReadDir(to)
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, f := range files {
		out = append(out, strings.TrimSuffix(f.Name(), ".raw"))
	}
	slices.Sort(out)
	return out
}

// All disks of a domain are its group's, by their targets; one that is plugged joins,
// no gap of the others; and so it stays over a restart.
func TestAllDisksOfADomain(t *testing.T) {
	t.Parallel()
	for mode, state := range map[string]string{"per-write": control.StateSynced, "bitmap, every: 100ms": control.StateCycles} {
		t.Run(strings.Fields(mode)[0], func(t *testing.T) {
			w := newDomainWorldBy(t, config.PassthroughAllowed, mode)
			w.c.Groups[0].Libvirt.Disks = config.DisksAll
			w.c.Groups[0].Volumes = w.c.Groups[0].Volumes[:1]
			w.guestWrites(1, 0x11, 0)
			r := w.start()
			r.awaitState("web", state)
			if s := r.points("web").Kept[0]; !slices.Equal(s.Volumes, []string{"root", "vdb"}) {
				t.Errorf("the first points cover %v", s.Volumes)
			}
			w.virsh("attach-disk", "web", w.d.Image(t, "c.qcow2", 2<<20), "vdc", "--driver", "qemu", "--subdriver", "qcow2", "--live")
			await(t, "the plugged disk is covered", func() bool { return slices.Equal(w.names(r, "latest"), []string{"root", "vdb", "vdc"}) })
			w.guestWrites(2, 0x22, 0)
			w.guestWrites(0, 0x33, 0)
			for _, g := range r.points("web").Gaps {
				if g.Cause != string(cbt.CauseCycle) && g.Cause != string(cbt.CauseStall) {
					t.Errorf("a disk that joined made a gap: %+v", g)
				}
			}
			var changes []string
			for _, c := range r.points("web").Changes {
				changes = append(changes, c.What+" "+c.Volume+c.Machine)
			}
			if want := []string{"added root", "added vdb", "defined web", "defined web", "joins vdc"}; !slices.Equal(changes, want) {
				t.Errorf("changes: %q, want %q", changes, want)
			}
			r.stop()
			r = w.start()
			r.awaitState("web", state)
			if got := w.names(r, "latest"); !slices.Equal(got, []string{"root", "vdb", "vdc"}) {
				t.Errorf("after a restart a point covers %v", got)
			}
			for _, v := range r.detail("web").Volumes {
				if v.Resync != nil && v.Resync.Full {
					t.Errorf("after a restart %s was read whole: %s", v.Name, v.Resync.Why)
				}
			}
			r.stop()
		})
	}
}

func (r *running) points(group string) control.Points {
	r.t.Helper()
	p, err := r.Points(context.Background(), control.PointsQuery{Group: group})
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

// stalls counts the writes that outlasted their budget, on a machine that is busy.
func (r *running) stalls(group string) (n int) {
	r.t.Helper()
	for _, g := range r.points(group).Gaps {
		if g.Cause == string(cbt.CauseStall) {
			n++
		}
	}
	return n
}

// A tracker that was made just when a disk came or went is brought to what is captured:
// it may neither miss one, which nothing would tell of, nor follow one that has left.
func TestTrackerFollowsWhatIsCaptured(t *testing.T) {
	t.Parallel()
	w := newDomainWorld(t, config.PassthroughAllowed)
	r := w.start()
	r.awaitState("web", control.StateSynced)
	l, release, err := r.open(context.Background(), r.groups[0])
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	p := l.reigning().plugs[0]
	follows := func(want ...string) func() bool {
		return func() bool {
			var got []string
			for _, v := range p.reign.tracker.Status() {
				got = append(got, v.Volume.Name)
			}
			slices.Sort(got)
			return slices.Equal(got, want)
		}
	}
	p.looking.Lock()
	looks := sync.OnceFunc(p.looking.Unlock)
	defer looks()
	data := p.tapped()[1]
	nothing := func(context.Context) error { return nil }
	if err := p.reign.tracker.unplug(context.Background(), data.Volume.ID, nothing); err != nil || !follows("root")() {
		t.Fatalf("the tracker was not robbed of a disk: %v", err)
	}
	if err := p.agree(context.Background()); err != nil || !follows("data", "root")() {
		t.Errorf("a missing disk: %v", err)
	}
	p.remove("vdb")
	if err := p.agree(context.Background()); err != nil || !follows("root")() {
		t.Errorf("a disk too many: %v", err)
	}
	looks()
	await(t, "the next look brings the disk back", follows("data", "root"))
	r.awaitState("web", control.StateSynced)
}
