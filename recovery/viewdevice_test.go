package recovery

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/testbed/scale"
)

// serveOne serves a disk as "disk" and says where.
func serveOne(t testing.TB, d nbd.Device, size int64, readOnly bool) string {
	t.Helper()
	socket := filepath.Join(shortDir(t), "s")
	l, err := nbd.ListenUnix(socket, 0)
	must(t, err)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	server := nbd.NewServer(nbd.ServerOptions{Lookup: func(context.Context, string) (*nbd.Export, error) {
		return &nbd.Export{Name: "disk", Size: size, ReadOnly: readOnly, MultiConn: readOnly, Device: d}, nil
	}})
	go func() { ended <- server.Serve(ctx, l) }()
	t.Cleanup(func() { stop(); must(t, <-ended) })
	return "nbd+unix:///disk?socket=" + socket
}

func tool(t *testing.T, name string, args ...string) error {
	t.Helper()
	out, err := exec.CommandContext(testContext(t), name, args...).CombinedOutput()
	if err != nil {
		t.Logf("%s %v: %v: %s", name, args, err, out)
	}
	return err
}

// QEMU's own tools see the point through both disks, may write to the scratch one
// only, and what they write there harms neither the point nor the other disk.
func TestQEMUJudgesViewAndScratch(t *testing.T) {
	scale.Tools(t, "qemu-img", "qemu-io")
	vw, v, content := restorable(t)
	view := ViewDevice(vw, v.ID)
	s, err := NewScratch(view, v.Size, t.TempDir())
	must(t, err)
	defer s.Close()
	below, above := serveOne(t, view, v.Size, true), serveOne(t, s, v.Size, false)
	raw := filepath.Join(t.TempDir(), "content.raw")
	must(t, os.WriteFile(raw, content, 0o600))
	must(t, tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", raw, below))
	must(t, tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", raw, above))
	if tool(t, "qemu-io", "-f", "raw", "-c", "write -P 7 0 4k", below) == nil {
		t.Error("a view takes a write")
	}
	must(t, tool(t, "qemu-io", "-f", "raw", "-c", "write -P 7 1000448 70k", "-c", "write -z 9000448 1M", "-c", "discard 16M 1M", "-c", "flush", above))
	changed := bytes.Clone(content)
	copy(changed[1000448:], bytes.Repeat([]byte{7}, 70<<10))
	clear(changed[9000448 : 9000448+1<<20])
	clear(changed[16<<20 : 17<<20])
	must(t, os.WriteFile(raw, changed, 0o600))
	must(t, tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", raw, above))
	must(t, os.WriteFile(raw, content, 0o600))
	must(t, tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", raw, below))
}

func TestViewDeviceRefusesChanges(t *testing.T) {
	vw, v, _ := restorable(t)
	d := ViewDevice(vw, v.ID)
	ctx, e := testContext(t), cbt.Extent{Length: 512}
	for _, err := range []error{d.WriteAt(ctx, make([]byte, 512), 0, false), d.Zero(ctx, e, false, false), d.Trim(ctx, e, false)} {
		if !errors.Is(err, nbd.EPERM) {
			t.Errorf("a change: %v", err)
		}
	}
	must(t, d.Flush(ctx))
}
