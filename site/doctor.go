package site

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/cbt/libvirt"
	"github.com/novacron/afterimage/site/config"
)

// Finding is one thing that Examine looked at.
type Finding struct {
	Subject string `json:"subject"` // host, or a group
	Level   string `json:"level"`   // see the levels
	What    string `json:"what"`
	Fix     string `json:"fix,omitempty"` // what to do; none where all is well
}

// Levels of a Finding.
const (
	FindingOK      = "ok"
	FindingWarning = "warning" // it works, with less than could be had
	FindingProblem = "problem" // it cannot be protected
)

// Needs of a host.
const (
	leastFree      = 1 << 30         // bytes beside a journal
	wantedUDP      = 7_500_000       // bytes of a socket's buffer; quic-go, UDP-Buffer-Sizes
	neededLibvirt  = 8_000_000       // virDomainBlockCopy with synchronous writes
	neededQEMU     = 4_002_000       // bitmaps in a transaction
	examineBounded = 5 * time.Second // for each libvirtd
)

// Examine checks a host and what is to be protected there. It asks no daemon,
// changes nothing, touches no machine's monitor, and throws no fence's switch.
func Examine(ctx context.Context, c *config.Config, only string) ([]Finding, error) {
	e := &examination{}
	if only != "" {
		if _, err := c.Group(only); err != nil {
			return nil, err
		}
	}
	e.host(c)
	e.witness(ctx, c.Witness)
	for _, g := range c.Groups {
		if only != "" && g.Ref() != only && g.Name != only {
			continue
		}
		for _, t := range g.Taps() {
			e.machine(ctx, g, t)
			e.autostart(ctx, t)
		}
		e.subject = g.Ref()
		e.together(g)
		e.fences(ctx, g)
	}
	return e.found, ctx.Err()
}

// examination gathers findings about one subject after the other.
type examination struct {
	subject string
	found   []Finding
}

func (e *examination) say(level, fix, format string, a ...any) {
	e.found = append(e.found, Finding{Subject: e.subject, Level: level, What: fmt.Sprintf(format, a...), Fix: fix})
}

func (e *examination) host(c *config.Config) {
	e.subject = "host"
	e.space(c.Data)
	if len(c.Peers) > 0 {
		for _, name := range []string{"rmem_max", "wmem_max"} {
			e.buffer(name)
		}
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err == nil && limit.Cur < 64<<20 && os.Geteuid() != 0 {
		e.say(FindingWarning, "LimitMEMLOCK=infinity in the unit of the daemon", "the watchdog may lock %s of memory only, and may be swapped out when it is needed", bytesText(int64(limit.Cur)))
	}
}

// space looks at the file system of the first directory of path that exists.
func (e *examination) space(path string) {
	for dir := path; ; dir = filepath.Dir(dir) {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		switch {
		case errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir):
			continue
		case err != nil:
			e.say(FindingProblem, "give the daemon's user access to it", "data: %s: %v", dir, err)
		case int64(st.Bavail)*st.Bsize < leastFree:
			e.say(FindingProblem, "make room, or move data: to a larger file system", "data: %s has %s free; a full journal means a gap", path, bytesText(int64(st.Bavail)*st.Bsize))
		default:
			e.say(FindingOK, "", "data: %s has %s free", path, bytesText(int64(st.Bavail)*st.Bsize))
		}
		return
	}
}

func (e *examination) buffer(name string) {
	text, err := os.ReadFile("/proc/sys/net/core/" + name)
	if err != nil {
		return // not told in this container
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err == nil && n < wantedUDP {
		e.say(FindingWarning, fmt.Sprintf("sysctl -w net.core.%s=%d", name, wantedUDP), "UDP buffers are limited to %d bytes (net.core.%s): fast links drop packets", n, name)
	} else if err == nil {
		e.say(FindingOK, "", "UDP buffers may have %d bytes (net.core.%s)", n, name)
	}
}

// machine looks at one machine of a group.
func (e *examination) machine(ctx context.Context, g config.Group, t config.Tap) {
	e.subject = g.Ref()
	if t.Guest != "" {
		e.subject += "/" + t.Guest
	}
	switch {
	case t.Libvirt != nil:
		ctx, cancel := context.WithTimeout(ctx, examineBounded)
		defer cancel()
		in, err := libvirt.Inspect(ctx, t.Libvirt.URI, t.Libvirt.Domain)
		e.domain(g, t, in, err)
		e.sockets(t.Libvirt)
	case t.QEMU != nil:
		e.qmp(t.Group)
	}
}

// together says what it means that several machines are one group.
func (e *examination) together(g config.Group) {
	n := len(g.Taps())
	switch {
	case n < 2:
	case g.Cycle() > 0:
		e.say(FindingOK, "", "%d machines are one group: for each cycle they stand still together, for up to 50 ms, or there is no point", n)
	default:
		e.say(FindingOK, "", "%d machines are one group: their writes have one order, and there are points while all are synced", n)
	}
}

// domain judges what was found of a domain.
func (e *examination) domain(whole config.Group, t config.Tap, in libvirt.Inspection, err error) {
	g, d := t.Group, t.Libvirt
	switch {
	case errors.Is(err, libvirt.ErrConnection):
		e.say(FindingProblem, "start libvirtd, and run the daemon as root or a member of the group libvirt", "libvirt does not answer at %s: %v", d.URI, err)
		return
	case errors.Is(err, libvirt.ErrNoDomain):
		e.say(FindingProblem, "virsh -c "+d.URI+" list --all shows the names", "there is no domain %s", d.Domain)
		return
	case err != nil:
		e.say(FindingProblem, "read the cause", "look at %s: %v", d.Domain, err)
		return
	}
	for _, v := range []struct {
		name         string
		have, needed libvirt.Version
	}{{"libvirt", in.LibvirtVersion, neededLibvirt}, {"QEMU", in.QEMUVersion, neededQEMU}} {
		if v.have < v.needed {
			e.say(FindingProblem, "update "+v.name, "%s is %s; %s is the oldest that can be tapped", v.name, v.have, v.needed)
		} else {
			e.say(FindingOK, "", "%s is %s", v.name, v.have)
		}
	}
	if in.State == libvirt.StateOff || in.State == libvirt.StateCrashed {
		e.say(FindingProblem, "virsh -c "+d.URI+" start "+d.Domain, "%s is %s: only a running domain is captured", d.Domain, in.State)
	} else {
		e.say(FindingOK, "", "%s is %s", d.Domain, in.State)
	}
	for _, v := range g.Volumes {
		if v.Libvirt != nil {
			e.disk(g, v, in.Disks)
		}
	}
	for _, k := range in.Disks {
		taken := slices.ContainsFunc(g.Volumes, func(v config.Volume) bool { return v.Libvirt != nil && v.Libvirt.Target == k.Target })
		switch {
		case !k.Writable || taken:
		case d.Disks == config.DisksAll:
			v := config.Volume{Name: volumeName(whole, t.Guest, k.Target), Size: config.Bytes(k.Size), Libvirt: &config.DomainDisk{Target: k.Target}}
			e.disk(g, v, in.Disks)
		default:
			e.say(FindingWarning, fmt.Sprintf("add to volumes: {name: %s, size: %d, libvirt: {target: %s}}", k.Target, k.Size, k.Target), "disk %s (%s) is written to and is not protected", k.Target, k.Source)
		}
	}
	e.way(whole, t)
	switch {
	case in.Agent:
		e.say(FindingOK, "", "the guest agent answers")
	case in.AgentChannel:
		e.say(FindingWarning, "install and start qemu-guest-agent in the guest", "no guest agent answers: points are crash-consistent")
	default:
		e.say(FindingWarning, "add to the definition <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>, and install qemu-guest-agent in the guest", "the domain has no channel for a guest agent: points are crash-consistent")
	}
	for _, model := range in.Confined {
		fix := "semanage fcontext -a -t svirt_image_t '" + d.Sockets + "(/.*)?' && restorecon -R " + d.Sockets
		if model == "apparmor" {
			fix = fmt.Sprintf("echo '%q rw,' >> /etc/apparmor.d/local/abstractions/libvirt-qemu, then restart the domain", d.Sockets+"/**")
		}
		e.say(FindingWarning, fix, "%s confines QEMU: it must be let into %s", model, d.Sockets)
	}
}

func (e *examination) disk(g config.Group, v config.Volume, disks []libvirt.InspectedDisk) {
	i := slices.IndexFunc(disks, func(k libvirt.InspectedDisk) bool { return k.Target == v.Libvirt.Target })
	if i < 0 {
		var targets []string
		for _, k := range disks {
			targets = append(targets, k.Target)
		}
		e.say(FindingProblem, "its disks are "+strings.Join(targets, ", "), "%s: %s has no disk %s", v.Name, g.Libvirt.Domain, v.Libvirt.Target)
		return
	}
	k := disks[i]
	switch {
	case !k.Writable:
		e.say(FindingProblem, "remove the volume", "%s: disk %s is read-only", v.Name, k.Target)
	case k.Job != "" && !strings.HasPrefix(k.JobSocket, g.Libvirt.Sockets+"/"):
		e.say(FindingProblem, fmt.Sprintf("wait for it, or end it: virsh blockjob %s %s --abort", g.Libvirt.Domain, k.Target), "%s: a block job of somebody else's runs on %s: %s", v.Name, k.Target, k.Job)
	case k.Size != 0 && k.Size != int64(v.Size):
		e.say(FindingWarning, fmt.Sprintf("size: %d", k.Size), "%s: %s has %d bytes, the configuration says %d; the disk's own size is taken", v.Name, k.Target, k.Size, int64(v.Size))
	default:
		e.say(FindingOK, "", "%s: %s is a writable %s disk of %s; after a restart of the machine it is read whole and compared", v.Name, k.Target, k.Format, bytesText(k.Size))
	}
}

// sockets looks whether others may pass through to the directory of sockets.
func (e *examination) sockets(d *config.Libvirt) {
	for dir := d.Sockets; dir != "/"; dir = filepath.Dir(dir) {
		st, err := os.Stat(dir)
		if err != nil {
			continue // we make it
		}
		if st.Mode().Perm()&0o001 == 0 && d.URI == config.SystemURI {
			e.say(FindingProblem, "chmod o+x "+dir+", or name another directory in sockets:", "QEMU cannot pass through %s to the capture socket", dir)
			return
		}
	}
	if _, err := qemuUser(d); err != nil {
		e.say(FindingProblem, "name QEMU's user in user:", "%v", err)
	}
}

func (e *examination) qmp(g config.Group) {
	st, err := os.Stat(g.QEMU.QMP)
	switch {
	case err != nil:
		e.say(FindingProblem, "start QEMU with -qmp unix:"+g.QEMU.QMP+",server=on,wait=off", "no QMP socket: %v", err)
	case st.Mode()&fs.ModeSocket == 0:
		e.say(FindingProblem, "name QEMU's QMP socket in qmp:", "%s is no socket", g.QEMU.QMP)
	default:
		e.say(FindingOK, "", "QMP socket %s is there", g.QEMU.QMP)
	}
	if g.QEMU.Watchdog == "" {
		e.say(FindingWarning, "start QEMU with a second -qmp socket and name it in watchdog_qmp:", "no watchdog: nothing frees the guest if this daemon stands still")
	}
}
