package libvirt

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/novacron/afterimage/cbt/cbttest"
	"github.com/novacron/afterimage/testbed/libvirtd"
)

// What libvirt permits beside a block copy, and why a copy's break costs a whole read
// without passthrough. Checkpoints, which are bitmaps, are made and deleted while a copy
// runs, and tell the delta after it. But the delta is read by a backup job, which is
// refused beside a copy, as is a copy beside it: nothing could be captured meanwhile, and
// what the guest writes between the two is in neither. And a copy always begins with
// everything: so the delta would be read on top, and save nothing. A libvirt that
// behaves otherwise fails here.
func TestBackupsAndCopiesExcludeEachOther(t *testing.T) {
	t.Parallel()
	d := libvirtd.Start(t)
	startDomain(t, d, d.Domain("web", d.Image(t, "a.qcow2", 4<<20)))
	write := func(name, text string) string {
		t.Helper()
		p := d.Path(name)
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return p
	}
	refused := func(why string, args ...string) {
		t.Helper()
		out, err := exec.Command("virsh", append([]string{"-c", d.URI}, args...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), why) {
			t.Errorf("virsh %v: %v %s; want it refused for %q", args, err, out, why)
		}
	}
	checkpoint := func(name string) {
		t.Helper()
		virsh(t, d, "checkpoint-create-as", "web", name, "--diskspec", "vda,checkpoint=bitmap")
	}
	copyTo := d.Path("copy")
	makeRaw(t, d, copyTo, 4<<20)
	begin := []string{"blockcopy", "web", "vda", "--dest", copyTo, "--format", "raw", "--reuse-external", "--transient-job", "--synchronous-writes"}
	ready := func() bool { return strings.Contains(virsh(t, d, "dumpxml", "web"), "ready='yes'") }
	socket := d.Path("pull")
	pull := write("pull.xml", "<domainbackup mode='pull'><incremental>one</incremental><server transport='unix' socket='"+socket+"'/><disks><disk name='vda' backup='yes' type='file'><scratch file='"+d.Path("scratch")+"'/></disk></disks></domainbackup>")

	virsh(t, d, begin...)
	cbttest.Eventually(t, patience, "the copy is ready", ready)
	checkpoint("one")
	checkpoint("two")
	virsh(t, d, "checkpoint-delete", "web", "two")
	refused("blockjob", "backup-begin", "web", pull)
	virsh(t, d, "blockjob", "web", "vda", "--abort")
	virsh(t, d, "qemu-monitor-command", "web", "--hmp", `qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "write -P 7 1M 64k"`)
	virsh(t, d, "backup-begin", "web", pull)
	out, err := exec.Command("qemu-img", "map", "--output=json", "--image-opts",
		"driver=nbd,server.type=unix,server.path="+socket+",export=vda,x-dirty-bitmap=qemu:dirty-bitmap:backup-vda").CombinedOutput()
	if err != nil || !strings.Contains(string(out), `"start": 1048576, "length": 65536`) {
		t.Errorf("the delta after the copy: %v %s", err, out)
	}
	refused("", begin...)
	virsh(t, d, "domjobabort", "web")
	makeRaw(t, d, copyTo, 4<<20)
	virsh(t, d, begin...)
	cbttest.Eventually(t, patience, "the next copy is ready", ready)
	image, err := os.ReadFile(copyTo)
	if err != nil || image[1<<20] != 7 {
		t.Errorf("the next copy has not sent the whole disk: %v", err)
	}
	virsh(t, d, "blockjob", "web", "vda", "--abort")
}
