package libvirt

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/novacron/afterimage/cbt/cbttest"
	"github.com/novacron/afterimage/testbed/libvirtd"
)

// The server to which libvirt copies a disk is killed: the copy ends, the domain runs on
// with its own disk and without an error, and a checkpoint from before the copy tells by a
// backup what was written since, before the death and after it, and nothing else.
func TestDeathOfACopysTargetLeavesTheDomain(t *testing.T) {
	t.Parallel()
	d := libvirtd.Start(t)
	startDomain(t, d, d.Domain("web", d.Image(t, "a.qcow2", 4<<20)))
	target, socket := d.Path("target"), d.Path("nbd")
	makeRaw(t, d, target, 4<<20)
	server := exec.Command(cbttest.Tool(t, "qemu-nbd"), "-t", "-f", "raw", "-x", "vda", "-k", socket, target)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Wait() }()
	defer func() { _ = server.Process.Kill() }()
	cbttest.Eventually(t, patience, "the target is served", func() bool {
		_, err := os.Stat(socket)
		return err == nil && os.Chmod(socket, 0o777) == nil
	})
	write := func(fill, mib int) {
		t.Helper()
		out := virsh(t, d, "qemu-monitor-command", "web", "--hmp", fmt.Sprintf(`qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "write -P %d %dM 64k"`, fill, mib))
		if strings.TrimSpace(out) != "" {
			t.Errorf("write of the guest: %s", out)
		}
	}
	write(1, 0)
	virsh(t, d, "checkpoint-create-as", "web", "one", "--diskspec", "vda,checkpoint=bitmap")
	to := d.Path("to.xml")
	text := fmt.Sprintf("<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='nbd' name='vda'><host transport='unix' socket='%s'/></source></disk>", socket)
	if err := os.WriteFile(to, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	virsh(t, d, "blockcopy", "web", "vda", "--xml", to, "--reuse-external", "--transient-job", "--synchronous-writes")
	cbttest.Eventually(t, patience, "the copy is ready", func() bool { return strings.Contains(virsh(t, d, "dumpxml", "web"), "ready='yes'") })
	write(2, 1)
	if err := server.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	write(3, 2)
	cbttest.Eventually(t, patience, "the copy has ended", func() bool { return !strings.Contains(virsh(t, d, "dumpxml", "web"), "<mirror") })
	write(4, 3)
	if out := virsh(t, d, "domstate", "web", "--reason"); !strings.HasPrefix(out, "running") {
		t.Errorf("the domain is %s", out)
	}
	if out := strings.TrimSpace(virsh(t, d, "domblkerror", "web")); out != "No errors found" {
		t.Errorf("its disks: %s", out)
	}
	pulled := d.Path("pull")
	backup := d.Path("pull.xml")
	text = fmt.Sprintf("<domainbackup mode='pull'><incremental>one</incremental><server transport='unix' socket='%s'/><disks><disk name='vda' backup='yes' type='file'><scratch file='%s'/></disk></disks></domainbackup>", pulled, d.Path("scratch"))
	if err := os.WriteFile(backup, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	virsh(t, d, "backup-begin", "web", backup)
	out, err := exec.Command("qemu-img", "map", "--output=json", "--image-opts",
		"driver=nbd,server.type=unix,server.path="+pulled+",export=vda,x-dirty-bitmap=qemu:dirty-bitmap:backup-vda").CombinedOutput()
	for _, mib := range []int{1, 2, 3} {
		if want := fmt.Sprintf(`"start": %d, "length": 65536`, mib<<20); err != nil || !strings.Contains(string(out), want) {
			t.Errorf("no %s in the delta: %v %s", want, err, out)
		}
	}
	if strings.Count(string(out), `"length": 65536`) != 3 {
		t.Errorf("more than was written: %s", out)
	}
	virsh(t, d, "domjobabort", "web")
}
