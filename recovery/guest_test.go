package recovery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/embedded"
	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/testbed/guest"
	"github.com/novacron/afterimage/testbed/scale"
	"github.com/novacron/afterimage/testbed/stamp"
)

const guestSlots = 1024

// exports serves a volume on a socket, and can go away and come back.
type exports struct {
	t      *testing.T
	socket string
	volume cbt.Volume
	device nbd.Device
	stop   context.CancelFunc
	ended  chan error
}

func (x *exports) start() {
	x.t.Helper()
	l, err := nbd.ListenUnix(x.socket, 0)
	must(x.t, err)
	ctx, stop := context.WithCancel(context.Background())
	x.stop, x.ended = stop, make(chan error, 1)
	server := nbd.NewServer(nbd.ServerOptions{Lookup: func(_ context.Context, name string) (*nbd.Export, error) {
		if name != "g/"+x.volume.Name {
			return nil, nbd.ErrUnknownExport
		}
		return &nbd.Export{Name: name, Size: x.volume.Size, Device: x.device}, nil
	}})
	go func() { x.ended <- server.Serve(ctx, l) }()
}

func (x *exports) end() {
	x.stop()
	<-x.ended
}

func (x *exports) uri() string {
	return "nbd+unix:///g/" + x.volume.Name + "?socket=" + url.QueryEscape(x.socket)
}

// imageReader reads a volume of a view for stamp.Scan.
type imageReader struct {
	ctx  context.Context
	view Image
	vol  cbt.VolumeID
}

func (r imageReader) ReadAt(p []byte, off int64) (int, error) {
	return len(p), r.view.ReadAt(r.ctx, r.vol, p, off)
}

var _ io.ReaderAt = imageReader{}

// stamped is a journal that holds stamps 1 to kept, a mark, and later ones.
func stamped(t *testing.T, j *running, v cbt.Volume, kept, later uint64) {
	w := begin(t, j, "source")
	synced(t, w, v)
	for k := uint64(1); k <= kept+later; k++ {
		write(t, w, v, stamp.Offset(k, guestSlots), stamp.Stamp{Number: k}.Block())
		if k == kept {
			_, err := w.Mark(testContext(t), journal.Mark{Name: "before-attack"})
			must(t, err)
		}
	}
	must(t, w.WaitDurable(testContext(t)))
}

func guestMachine(t *testing.T, dir, orders string) Machine {
	t.Helper()
	c, err := guest.Complete(testContext(t), guest.Config{})
	if errors.Is(err, guest.ErrNoKernel) {
		scale.Missing(t, err.Error())
	}
	must(t, err)
	cpu := "max"
	if c.Accel == guest.KVM {
		cpu = "host"
	}
	return Machine{
		Name: "web", Binary: "qemu-system-x86_64", Dir: filepath.Join(dir, "m"), Disks: []MachineDisk{{"root", "disk0"}},
		Args: []string{
			"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "pc", "-accel", string(c.Accel), "-cpu", cpu, "-m", "256",
			"-kernel", c.Image.Kernel, "-initrd", c.Image.Initrd, "-append", guest.KernelLine + ` quiet loglevel=1 afterimage="` + orders + `"`,
			"-serial", "file:{serial}", "-device", "virtio-blk-pci,drive=disk0,serial=root",
		},
	}
}

// The main job at the surviving site: a real guest boots from the point, finds every
// stamp up to it and none torn, writes on into the new epoch, sits out a restart of
// what serves its disk, and is found again by another life of ours.
func TestFailoverBootsGuest(t *testing.T) {
	scale.Guest(t)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	const kept, later, more = 700, 60, 150
	dir := shortDir(t)
	j := open(t, t.TempDir(), newIdentity())
	defer j.close(t)
	v := volume("root", 8<<20)
	stamped(t, j, v, kept, later)
	point := resolve(t, j.Journal, "name:before-attack")
	since, err := j.Since(ctx, point.Position)
	must(t, err)
	m := guestMachine(t, dir, fmt.Sprintf("verify upto=%d slots=%d;stamp slots=%d rate=50 count=%d;wait", kept, guestSlots, guestSlots, more))
	plan := NewPlan(Inputs{
		Group: "g", Site: "here", Identity: j.Identity(), At: "name:before-attack", Point: point, Head: j.Head(), Lineage: j.Lineage(), Since: since,
		Volumes: []cbt.Volume{v}, Machine: m.Name, Health: true, Now: time.Now(),
	})
	if plan.Loss.GivenUp.Writes != later || plan.Loss.GivenUp.Bytes != later*stamp.Size {
		t.Errorf("the plan gives up %+v, want %d writes", plan.Loss.GivenUp, later)
	}
	x := &exports{t: t, socket: filepath.Join(dir, "nbd"), volume: v}
	f := Failover{
		Plan: plan, Operator: "op", Force: true, History: j.Journal, Machine: &m, Health: Health{Prefix: "verified ", Timeout: 2 * time.Minute},
		Serve: func(ctx context.Context, w *journal.Writer) (map[string]string, error) {
			x.device = embedded.NewJournaled(v, w)
			record(t, w, cbt.Event{Kind: cbt.EventSynced, Volume: v.ID})
			x.start()
			return map[string]string{"root": x.uri()}, nil
		},
	}
	if _, err := (Failover{Plan: plan, History: j.Journal}).Run(ctx); !errors.Is(err, ErrUnfenced) {
		t.Fatalf("failover of an unfenced source without force: %v", err)
	}
	out, err := f.Run(ctx)
	must(t, err)
	t.Cleanup(func() { x.end() })
	r := out.Machine
	t.Cleanup(func() {
		_ = r.Kill(context.Background())
		_ = r.Close()
	})
	for _, s := range out.Steps {
		t.Logf("%-8s %6.3f s  %s", s.Name, s.Seconds, s.Detail)
	}
	t.Logf("RTO %.3f s", out.RTOSeconds)
	found, err := guest.ParseVerified(out.Steps[len(out.Steps)-1].Detail)
	must(t, err)
	if !found.Whole(kept) || found.Max != kept {
		t.Errorf("the guest finds %+v, want %d stamps", found, kept)
	}
	checkSession(t, r.PID)

	// What serves the disk goes and comes back.
	_, err = r.Healthy(ctx, Health{Prefix: fmt.Sprintf("stamped %d", kept+20)})
	must(t, err)
	x.end()
	x.start()
	_, err = r.Healthy(ctx, Health{Prefix: fmt.Sprintf("waited last=%d", kept+more)})
	must(t, err)
	rep, err := stamp.Scan(imageReader{ctx, view(t, j.Journal, "latest"), v.ID}, 0, guestSlots)
	must(t, err)
	if !rep.Whole(kept+more) || rep.Max != kept+more {
		t.Errorf("the new epoch holds %v, want %d", rep, kept+more)
	}
	findAgain(t, ctx, m, r, map[string]string{"root": x.uri()})
	rep, err = stamp.Scan(imageReader{ctx, view(t, j.Journal, "#1."+point.Seq.String()), v.ID}, 0, guestSlots)
	must(t, err)
	if rep.Max != kept {
		t.Errorf("the point holds %v after all that", rep)
	}
}

// checkSession: the machine must not go with us.
func checkSession(t *testing.T, pid int) {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must(t, err)
	_, rest, _ := strings.Cut(string(stat), ") ")
	if fields := strings.Fields(rest); fields[3] != fmt.Sprint(pid) {
		t.Errorf("session %s, want its own, %d", fields[3], pid)
	}
}

// findAgain is another life of ours: it adopts what runs and starts nothing.
func findAgain(t *testing.T, ctx context.Context, m Machine, r *Running, uris map[string]string) {
	t.Helper()
	again, err := m.Ensure(ctx, uris)
	must(t, err)
	defer again.Close()
	if !again.Adopted || again.PID != r.PID || again.UUID != r.UUID {
		t.Errorf("found %+v, want process %d", again, r.PID)
	}
	// Even one that looked before the first had its lock starts no second.
	second, err := m.withDefaults().start(ctx, uris)
	must(t, err)
	defer second.Close()
	if second.PID != r.PID || !second.Adopted {
		t.Errorf("a second one was started: %+v", second)
	}
	other := m
	other.Name = "other"
	if _, err := other.Attach(ctx); !errors.Is(err, ErrWrongMachine) {
		t.Errorf("another machine is adopted: %v", err)
	}
	must(t, again.Kill(ctx))
	must(t, r.Wait(ctx))
	if _, err := m.Attach(ctx); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a machine that was killed: %v", err)
	}
}
