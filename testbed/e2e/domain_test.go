package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/guest"
	"github.com/novacron/afterimage/testbed/libvirtd"
	"github.com/novacron/afterimage/testbed/link"
	"github.com/novacron/afterimage/testbed/port"
	"github.com/novacron/afterimage/testbed/scale"
	"github.com/novacron/afterimage/testbed/stamp"
)

// guestPatience is for what a guest does that a machine may emulate.
const guestPatience = 3 * time.Minute

// domainSlots is how many stamps a disk of the guest holds.
const domainSlots = 512

// protected is a site that protects a running domain of libvirt's: a guest with two
// disks that writes stamp K to the second only once the first has answered it.
type protected struct {
	*daemon
	libvirt *libvirtd.Daemon
	console *guest.Console
	stalls  *stalls
	images  map[string]string // of each disk, by its volume's name
	xml     string
	first   uint64 // stamp of the newest load
	third   uint64 // the first stamp that the disk vdc has of its own; 0: none yet
	state   string // of the group while it is protected as it should be

	peer *daemon // gets what is recorded; nil: there is none
	link *link.Link
}

// volumes are the disks in the order in which the guest stamps them; the last is the one
// that is plugged.
var volumes = []string{"root", "data", "vdc"}

// newProtected boots the guest and configures the site; capture is what follows the
// key of that name, peer gets what is recorded, if it is not nil.
func newProtected(t *testing.T, capture string, peer *daemon) *protected {
	t.Helper()
	if scale.Race {
		t.Skip("a guest that is emulated is not watched by the race detector")
	}
	scale.Tools(t, "virsh", "qemu-img")
	ctx, cancel := context.WithTimeout(t.Context(), guestPatience)
	defer cancel()
	image, err := guest.Build(ctx)
	if err != nil {
		scale.Missing(t, fmt.Sprintf("no guest: %v", err))
	}
	d := libvirtd.Start(t)
	x := &protected{daemon: newDaemon(t, "a"), libvirt: d, peer: peer, state: control.StateSynced}
	if strings.Contains(capture, "bitmap") {
		x.state = control.StateCycles
	}
	kernel, initrd := d.Path("kernel"), d.Path("initrd")
	for from, to := range map[string]string{image.Kernel: kernel, image.Initrd: initrd} {
		b, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(to, b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	x.images = map[string]string{"root": d.Image(t, "a.qcow2", 16<<20), "data": d.Image(t, "b.qcow2", 8<<20)}
	socket := d.Path("console.sock")
	if x.console, err = guest.ListenConsole(socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.console.Close() })
	if err := os.Chmod(socket, 0o777); err != nil {
		t.Fatal(err)
	}
	x.xml = d.Path("guest.xml")
	definition := d.Guest("web", kernel, initrd, guest.KernelLine+" quiet loglevel=1", socket, x.images["root"], x.images["data"])
	if err := os.WriteFile(x.xml, []byte(definition), 0o644); err != nil {
		t.Fatal(err)
	}
	user := ""
	if os.Geteuid() == 0 {
		user = ", user: nobody"
	}
	peers, to := "", ""
	if peer != nil {
		listen := netip.MustParseAddrPort(port.Address(t))
		x.link = runLink(t, listen, 1)
		peer.configure(fmt.Sprintf("site: b\ndata: %s\nlisten: %s\npeers:\n  - {name: a, pin: %q}\ngroups:\n  - name: g\n    role: replica\n    peers: [a]\n",
			peer.dir, listen, x.pin()))
		peers, to = fmt.Sprintf("peers:\n  - {name: b, address: %q, pin: %q}\n", x.link.Addr().String(), peer.pin()), "    peers: [b]\n"
	}
	x.configure(fmt.Sprintf(`site: a
data: %s
%sgroups:
  - name: g
    role: primary
%s    libvirt: {domain: web, disks: all, uri: "%s", sockets: "%s"%s}
    capture: %s
    volumes: [{name: root, size: 16MiB, libvirt: {target: vda}}, {name: data, size: 8MiB, libvirt: {target: vdb}}]
`, x.dir, peers, to, d.URI, d.Path("s"), user, capture))
	x.stalls = &stalls{}
	go x.stalls.watch(t.Context(), x.console)
	x.boot()
	return x
}

// boot creates the domain and waits until the guest is up.
func (x *protected) boot() {
	x.t.Helper()
	x.virsh("create", x.xml)
	x.wait("ready")
}

func (x *protected) virsh(args ...string) string {
	x.t.Helper()
	out, err := exec.Command("virsh", append([]string{"-c", x.libvirt.URI}, args...)...).CombinedOutput()
	if err != nil {
		x.t.Fatalf("virsh %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func (x *protected) wait(prefix string) {
	x.t.Helper()
	ctx, cancel := context.WithTimeout(x.t.Context(), guestPatience)
	defer cancel()
	if _, err := x.console.Wait(ctx, prefix); err != nil {
		x.t.Fatal(err)
	}
}

// load makes the guest write, until quiet: from behind the highest stamp that both
// disks have, for a guest that was killed may have reached only one with the next.
func (x *protected) load() {
	x.t.Helper()
	ctx, cancel := context.WithTimeout(x.t.Context(), guestPatience)
	defer cancel()
	line, err := x.console.Ask(ctx, fmt.Sprintf("verify slots=%d", domainSlots), "verified")
	var k uint64
	if err == nil {
		_, err = fmt.Sscanf(line, "verified max=%d", &k)
	}
	if err == nil {
		x.first = k + 1
		err = x.console.Send(ctx, fmt.Sprintf("stamp slots=%d first=%d", domainSlots, x.first))
	}
	if err == nil {
		_, err = x.console.WaitStamped(ctx, k+1)
	}
	if err != nil {
		x.t.Fatal(err)
	}
}

// quiet ends the load.
func (x *protected) quiet() {
	x.t.Helper()
	if err := x.console.Send(x.t.Context(), "pause"); err != nil {
		x.t.Fatal(err)
	}
	x.wait("paused")
}

// stamps waits for n more of them.
func (x *protected) stamps(n uint64) {
	x.t.Helper()
	ctx, cancel := context.WithTimeout(x.t.Context(), guestPatience)
	defer cancel()
	if _, err := x.console.WaitStamped(ctx, x.console.Stamped()+n); err != nil {
		x.t.Fatal(err)
	}
}

// stalls measures how long a guest was between two stamps at most.
type stalls struct {
	mu      sync.Mutex // guards longest
	longest time.Duration
}

func (s *stalls) watch(ctx context.Context, c *guest.Console) {
	last := time.Now()
	for k := uint64(1); ; k++ {
		at, err := c.WaitStamped(ctx, k)
		if err != nil {
			return
		}
		k = at
		s.mu.Lock()
		s.longest = max(s.longest, time.Since(last))
		s.mu.Unlock()
		last = time.Now()
	}
}

// begin forgets what was measured, but for d.
func (s *stalls) begin(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.longest = d
}

// take is the longest since it was taken last.
func (s *stalls) take() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.longest
	s.longest = 0
	return d
}

// judgeStamps holds a point to what the guest does: every stamp up to the highest, on
// each disk, and no disk ahead of the one before it, nor more than one behind. The
// disk that was plugged counts once it has stamps of its own; what it got before is of
// no order.
func (x *protected) judgeStamps(images map[string][]byte) (highest uint64, err error) {
	var max []uint64
	for i, name := range volumes {
		image, covered := images[name]
		if !covered && i < 2 {
			return 0, fmt.Errorf("%s is missing", name)
		} else if !covered {
			continue
		}
		r, err := stamp.Scan(bytes.NewReader(image), uint32(i), domainSlots)
		if err != nil {
			return 0, err
		}
		if i == 2 && (x.third == 0 || r.Max < x.third) && r.Torn == 0 && r.Foreign == 0 && max[0] <= x.third {
			continue
		}
		if !r.Whole(r.Max) {
			return 0, fmt.Errorf("%s: %v", name, r)
		}
		if max = append(max, r.Max); i > 0 && (max[i] > max[i-1] || max[0] > max[i]+1) {
			return 0, fmt.Errorf("the disks are at stamps %v", max)
		}
	}
	return max[0], nil
}

// points reads n random points of the newest span that is open, or of the one before
// it, and judges each; stamps may only rise with the points.
func (x *protected) judgePoints(rng *rand.Rand, which control.Span, n int) {
	x.t.Helper()
	j := judgement{protected: x}
	for range n {
		j.point(which.First.Epoch, which.First.Seq+rng.Uint64N(which.Last.Seq-which.First.Seq+1))
	}
}

// judgement is that of several points of one lineage.
type judgement struct {
	*protected
	seen []struct{ seq, stamp uint64 }
}

// point reads one of them and judges it.
func (j *judgement) point(epoch, seq uint64) {
	j.t.Helper()
	images, _, err := j.beginnings(fmt.Sprintf("#%d.%d", epoch, seq), domainSlots*stamp.Size)
	if err != nil {
		j.t.Fatal(err)
	}
	k, err := j.judgeStamps(images)
	if err != nil {
		j.t.Fatalf("point #%d.%d: %v", epoch, seq, err)
	}
	for _, o := range j.seen {
		if o.seq < seq && o.stamp > k || o.seq > seq && o.stamp < k {
			j.t.Fatalf("point #%d holds stamp %d, and #%d stamp %d", seq, k, o.seq, o.stamp)
		}
	}
	j.seen = append(j.seen, struct{ seq, stamp uint64 }{seq, k})
}

// spans are the newest one and the one before it.
func (x *protected) spans() (before, now control.Span) {
	x.t.Helper()
	ps, err := x.api.Points(x.t.Context(), control.PointsQuery{Group: "g"})
	if err != nil {
		x.t.Fatal(err)
	}
	if len(ps.Spans) < 2 {
		x.t.Fatalf("spans of points: %+v", ps.Spans)
	}
	return ps.Spans[len(ps.Spans)-2], ps.Spans[len(ps.Spans)-1]
}

// newestIsDisk holds the newest point to the disks, while the guest is quiet: each of
// its writes was durable before the next.
func (x *protected) newestIsDisk(after string) {
	x.t.Helper()
	got, p, err := x.view("latest")
	if err != nil {
		x.t.Fatal(err)
	}
	for name, image := range x.images {
		raw := x.path(name + ".raw")
		if out, err := exec.Command("qemu-img", "convert", "-U", "-O", "raw", image, raw).CombinedOutput(); err != nil {
			x.t.Fatalf("qemu-img: %v\n%s", err, out)
		}
		disk, err := os.ReadFile(raw)
		if err != nil {
			x.t.Fatal(err)
		}
		if at := firstDifference(disk, got[name]); at >= 0 {
			x.t.Fatalf("after %s: the newest point, #%d.%d, differs from disk %s at byte %d", after, p.Epoch, p.Seq, name, at)
		}
	}
}

// qemuPid is the process of the domain.
func (x *protected) qemuPid() int {
	x.t.Helper()
	files, _ := filepath.Glob(x.libvirt.Path("run/libvirt/qemu/run/web.pid"))
	if len(files) != 1 {
		x.t.Fatalf("pid files: %v", files)
	}
	var pid int
	b, err := os.ReadFile(files[0])
	if err == nil {
		_, err = fmt.Sscan(string(b), &pid)
	}
	if err != nil {
		x.t.Fatal(err)
	}
	return pid
}
