package libvirtd

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// Image makes an empty qcow2 image of size bytes in Dir and returns its path.
func (d *Daemon) Image(t testing.TB, name string, size int64) string {
	t.Helper()
	p := d.Path(name)
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", p, fmt.Sprint(size)).CombinedOutput(); err != nil {
		t.Fatalf("make image: %v\n%s", err, out)
	}
	d.Own(t, p)
	return p
}

// Guest is the definition of a machine that boots a kernel and talks to a unix socket
// that somebody listens on; its qcow2 images are vda, vdb, …
func (d *Daemon) Guest(name, kernel, initrd, commandLine, console string, images ...string) string {
	x := d.Domain(name, images...)
	x = strings.Replace(x, "<memory unit='MiB'>32<", "<memory unit='MiB'>256<", 1)
	x = strings.Replace(x, "hvm</type></os>", fmt.Sprintf("hvm</type><kernel>%s</kernel><initrd>%s</initrd><cmdline>%s</cmdline></os><cpu mode='maximum'/>", kernel, initrd, commandLine), 1)
	from, to := strings.Index(x, "<serial"), strings.Index(x, "</serial>")
	return x[:from] + fmt.Sprintf("<serial type='unix'><source mode='connect' path='%s'><reconnect enabled='yes' timeout='1'/></source><target port='0'/>", console) + x[to:]
}

// Domain is the definition of a small machine with the given qcow2 images as
// virtio disks vda, vdb, …; it has no operating system to boot and no network
// but a user-mode one.
func (d *Daemon) Domain(name string, images ...string) string {
	var disks strings.Builder
	for i, p := range images {
		fmt.Fprintf(&disks, `
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap'/>
      <source file='%s'/>
      <target dev='vd%c' bus='virtio'/>
    </disk>`, p, 'a'+rune(i))
	}
	return fmt.Sprintf(`<domain type='qemu'>
  <name>%s</name>
  <memory unit='MiB'>32</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <features><acpi/><apic/></features>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>%s
    <interface type='user'><mac address='52:54:00:aa:bb:cc'/><model type='virtio'/></interface>
    <serial type='file'><source path='%s'/></serial>
  </devices>
</domain>`, name, disks.String(), d.Path(name+".console"))
}
