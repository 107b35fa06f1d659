package libvirt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	rpc "github.com/digitalocean/go-libvirt"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/cbttest"
	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/cbt/qemu"
	"github.com/novacron/afterimage/cbt/qmp"
	"github.com/novacron/afterimage/testbed/libvirtd"
)

func dialMonitor(t testing.TB, d *libvirtd.Daemon, name string) *Monitor {
	t.Helper()
	m, err := DialMonitor(cbttest.Context(t, patience), d.URI, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func TestMonitorHearsAndEndsWithItsDomain(t *testing.T) {
	t.Parallel()
	d := libvirtd.Start(t)
	xml := d.Domain("web", d.Image(t, "a.qcow2", 1<<20))
	startDomain(t, d, xml)
	ctx := cbttest.Context(t, patience)
	m := dialMonitor(t, d, "web")
	all, small := m.Events(64), m.Events(1)
	img := d.Image(t, "job.img", 1<<20)
	err := m.Execute(ctx, "blockdev-create", map[string]any{
		"job-id": "make", "options": map[string]any{"driver": "file", "filename": img, "size": 4096},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for status := "created"; status != "concluded"; {
		ev, err := all.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var data struct{ ID, Status string }
		if err := json.Unmarshal(ev.Data, &data); ev.Name != "JOB_STATUS_CHANGE" || err != nil || data.ID != "make" || time.Since(ev.Time).Abs() > time.Minute {
			t.Fatalf("event %s at %v: %s", ev.Name, ev.Time, ev.Data)
		}
		status = data.Status
	}
	if ev, err := small.Next(ctx); err != nil || ev.Name != "JOB_STATUS_CHANGE" {
		t.Errorf("first event of the full queue: %+v, %v", ev, err)
	}
	if _, err := small.Next(ctx); !errors.Is(err, qmp.ErrOverflow) {
		t.Errorf("a full queue: %v", err)
	}
	if err := m.ExecuteOOB(ctx, "yank", nil, nil); !errors.Is(err, qmp.ErrNoOOB) {
		t.Errorf("out of band: %v", err)
	}
	// The domain stops and another QEMU takes its name at once.
	virsh(t, d, "destroy", "web")
	startDomain(t, d, xml)
	select {
	case <-m.Done():
	case <-ctx.Done():
		t.Fatal("the monitor outlives its domain")
	}
	if err := m.Execute(ctx, "stop", nil, nil); !errors.Is(err, ErrNotRunning) || qmp.IsRefused(err) {
		t.Errorf("command after the domain's end: %v", err)
	}
	for {
		if _, err := all.Next(ctx); err != nil {
			if !errors.Is(err, ErrNotRunning) {
				t.Errorf("queue after the end: %v", err)
			}
			break
		}
	}
	late := m.Events(1)
	if _, err := late.Next(ctx); err == nil {
		t.Error("a queue made after the end does not end")
	}
	m = dialMonitor(t, d, "web")
	d.Kill()
	select {
	case <-m.Done():
	case <-ctx.Done():
		t.Fatal("the monitor outlives libvirtd")
	}
	if err := m.Err(); !errors.Is(err, ErrConnection) {
		t.Errorf("after libvirtd's end: %v", err)
	}
}

// The disks are raw and shareable, so that the suite's guest can be an export of
// the very node that the machine's device holds.
const sharedDisk = `<disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='writeback'/><source file='%s'/><target dev='%s' bus='virtio'/><shareable/>
    </disk>`

func TestTapThroughLibvirtConforms(t *testing.T) {
	t.Parallel()
	d := libvirtd.Start(t)
	n := 0
	cbttest.TestTracker(t, func(t *testing.T) cbttest.World {
		n++
		return startWorld(t, d, fmt.Sprintf("m%d", n), false)
	})
}

// The same by libvirt's own block copies: no command reaches the monitor.
func TestTapByBlockCopyConforms(t *testing.T) {
	t.Parallel()
	d := libvirtd.Start(t)
	n := 0
	cbttest.TestTracker(t, func(t *testing.T) cbttest.World {
		n++
		return startWorld(t, d, fmt.Sprintf("c%d", n), true)
	})
}

// startWorld is a domain; copies taps it without the monitor.
func startWorld(t *testing.T, d *libvirtd.Daemon, name string, copies bool) cbttest.World {
	specs := []cbttest.DiskSpec{{Name: "vda", Bytes: 40 << 20}, {Name: "vdb", Bytes: 8<<20 + 512}}
	var devices strings.Builder
	var vs []cbt.Volume
	for _, s := range specs {
		p := d.Path(name + s.Name)
		makeRaw(t, d, p, s.Bytes)
		fmt.Fprintf(&devices, sharedDisk, p, s.Name)
		vs = append(vs, s.Volume())
	}
	startDomain(t, d, strings.Replace(d.Domain(name), "</emulator>", "</emulator>"+devices.String(), 1), "--paused")
	m := dialMonitor(t, d, name)
	ctx := cbttest.Context(t, patience)
	disks, err := m.Disks(ctx)
	if err != nil || len(disks) != len(specs) {
		t.Fatalf("disks %+v, %v", disks, err)
	}
	socket := d.Path(name + ".nbd")
	do := func(command string, args map[string]any) {
		t.Helper()
		if err := m.Execute(ctx, command, args, nil); err != nil {
			t.Fatal(err)
		}
	}
	do("nbd-server-start", map[string]any{"addr": map[string]any{"type": "unix", "data": map[string]any{"path": socket}}})
	var taps []qemu.Disk
	for i, k := range disks {
		do("block-export-add", map[string]any{"type": "nbd", "id": k.Target, "node-name": k.Node, "name": k.Target, "writable": true})
		node := k.Node
		if copies {
			node = k.Target
		}
		taps = append(taps, qemu.Disk{Volume: vs[i], Node: node})
	}
	guest := func(i int) *nbd.Client {
		c, err := nbd.Dial(cbttest.Context(t, patience), "unix", socket, nbd.DialOptions{Export: specs[i].Name})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	return cbttest.World{
		Volumes: vs, Guest: guest, Whole: copies,
		Image: func(i int) []byte { return readAll(t, guest(i)) },
		Tracker: func(sink cbt.Sink, memory cbt.Memory, life cbt.Incarnation, budget time.Duration) cbt.Tracker {
			o := qemu.Options{
				Dir: d.Dir, ReadServer: socket, SocketMode: 0o666, Sink: sink, Memory: memory, Incarnation: life,
				StallBudget: budget, Retry: 50 * time.Millisecond, Disks: taps,
				Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
			}
			if copies {
				o.Copies = func(ctx context.Context) (qemu.Copier, error) { return DialCopies(ctx, d.URI, name) }
			} else {
				o.Dial = func(ctx context.Context) (qemu.Monitor, error) { return DialMonitor(ctx, d.URI, name) }
			}
			tr, err := qemu.New(o)
			if err != nil {
				t.Fatal(err)
			}
			return tr
		},
	}
}

func makeRaw(t *testing.T, d *libvirtd.Daemon, p string, size int64) {
	t.Helper()
	f, err := os.Create(p)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	d.Own(t, p)
}

func readAll(t *testing.T, c *nbd.Client) []byte {
	t.Helper()
	p := make([]byte, c.Info().Size)
	for at := 0; at < len(p); at += 1 << 20 {
		if err := c.ReadAt(cbttest.Context(t, patience), p[at:min(at+1<<20, len(p))], int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// A monitor of a domain that does not run is given up at once, time and again while one
// waits for it: libvirtd must outlive that.
func TestGivingUpAMonitorLeavesLibvirtdAlive(t *testing.T) {
	t.Parallel()
	d := libvirtd.Start(t)
	ctx := cbttest.Context(t, patience)
	c, err := Connect(ctx, d.URI)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	xml := d.Domain("off", d.Image(t, "off", 1<<20))
	if err := c.Call(ctx, "define", func(l *rpc.Libvirt) error { _, err := l.DomainDefineXML(xml); return err }); err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		if _, err := DialMonitor(ctx, d.URI, "off"); !errors.Is(err, ErrNotRunning) {
			t.Fatalf("dial %d: %v", i, err)
		}
	}
	if err := c.Err(); err != nil {
		t.Errorf("libvirtd is gone: %v", err)
	}
}
