package recovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ends of a drill's network cards: a hub inside the machine's own QEMU, so that its
// cards reach each other and nobody else (QEMU, "-netdev hubport").
const hub = "hubport,hubid=0"

// outside are options through which a guest would reach more than its disks, its
// console and its network cards; a drill refuses them, for what it does must not
// outlive it.
var outside = []string{"drive", "blockdev", "hda", "hdb", "hdc", "hdd", "sd", "pflash", "mtdblock", "fsdev", "virtfs", "net", "redir", "usbdevice"}

// Isolated is the machine for a drill: in dir, under a name of its own, with every
// network card on a hub that leads nowhere. A definition whose guest could change
// something beside the disks in Disks is ErrMachine.
func (m Machine) Isolated(dir string) (Machine, error) {
	if len(m.Besides) > 0 {
		return m.isolateAll(dir)
	}
	bad := func(format string, args ...any) (Machine, error) {
		return Machine{}, fmt.Errorf("%w: machine %q cannot be isolated: %s", ErrMachine, m.Name, fmt.Sprintf(format, args...))
	}
	out := m
	out.Name, out.Dir, out.Args = "drill-"+m.Name, dir, slices.Clone(m.Args)
	if m.Host != nil {
		out.Host = m.Host.Isolated(out.Name)
		return out, nil
	}
	cards := slices.Contains(m.Args, "-nodefaults")
	for i, a := range m.Args {
		name := strings.TrimLeft(a, "-")
		if name == a {
			continue
		}
		value := ""
		if i+1 < len(m.Args) {
			value = m.Args[i+1]
		}
		switch {
		case name == "netdev":
			id := option(value, "id")
			if id == "" {
				return bad("-netdev %s has no id", value)
			}
			out.Args[i+1], cards = hub+",id="+id, true
		case name == "nic":
			out.Args[i+1], cards = nicOnHub(value), true
		case slices.Contains(outside, name) && !strings.Contains(value, "{disk:") && option(value, "readonly") != "on":
			return bad("-%s %s reaches outside of it", name, value)
		case name == "device" && (strings.HasPrefix(value, "vfio-") || strings.HasPrefix(value, "usb-host")):
			return bad("-device %s is a device of this host", value)
		case name == "name" || name == "uuid":
			out.Args[i], out.Args[i+1] = "-msg", "timestamp=off" // one of its own is given by Argv
		}
	}
	if !cards {
		out.Args = append(out.Args, "-nic", "none") // else QEMU adds one that reaches the host's network
	}
	return out, nil
}

// option is one of QEMU's KEY=VALUE,… texts.
func option(text, key string) string {
	for part := range strings.SplitSeq(text, ",") {
		if k, v, ok := strings.Cut(part, "="); ok && k == key {
			return v
		}
	}
	return ""
}

// nicOnHub keeps what a guest sees of a card.
func nicOnHub(value string) string {
	if kind, _, _ := strings.Cut(value, ","); kind == "none" {
		return value
	}
	out := hub
	for _, key := range []string{"id", "model", "mac"} {
		if v := option(value, key); v != "" {
			out += "," + key + "=" + v
		}
	}
	return out
}

// End ends whatever process holds the machine's lock, at once, and waits until it is
// gone; it asks it nothing, so it works on one that answers no more. A machine that
// does not run is none.
func (m Machine) End(ctx context.Context) error {
	if len(m.Besides) > 0 {
		return m.backward(func(one Machine) error { return one.End(ctx) })
	}
	if m.Host != nil {
		uuid, err := m.hosted()
		if errors.Is(err, ErrNotRunning) {
			return nil
		}
		if err == nil {
			err = m.Host.End(ctx, uuid)
		}
		if err != nil {
			return fmt.Errorf("end machine %s: %w", m.Name, err)
		}
		return nil
	}
	_, pidfd, err := owner(m.withDefaults().pidFile())
	if errors.Is(err, ErrNotRunning) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("end machine %s: %w", m.Name, err)
	}
	err = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		err = nil
	}
	if err == nil {
		err = waitGone(ctx, pidfd)
	}
	if err = errors.Join(err, unix.Close(pidfd)); err != nil {
		return fmt.Errorf("end machine %s: %w", m.Name, err)
	}
	return nil
}
