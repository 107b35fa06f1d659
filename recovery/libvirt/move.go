package libvirt

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// move plugs the network cards of a machine that comes to another site where its
// networks are called otherwise. Removable media that are not there do not keep it from
// starting.
func move(devices *element, e Edit) []splice {
	var ss []splice
	for _, d := range devices.children {
		if source := d.child("source"); d.name == "disk" && (d.attr("device") == "cdrom" || d.attr("device") == "floppy") && source != nil && source.attr("file") != "" {
			ss = append(ss, splice{source.from, source.inner, source.startTag([2]string{"startupPolicy", "optional"})})
		}
		if d.name != "interface" {
			continue
		}
		to, moves := Network{}, false
		if source := d.child("source"); source != nil {
			for _, at := range []string{"network", "bridge", "dev"} {
				if n, ok := e.Networks[source.attr(at)]; ok && source.attr(at) != "" {
					to, moves = n, true
				}
			}
		}
		mac := d.child("mac")
		other, renamed := "", false
		if mac != nil {
			other, renamed = e.MACs[strings.ToLower(mac.attr("address"))]
		}
		switch {
		case moves:
			more := to.source()
			if renamed {
				more += fmt.Sprintf("<mac address='%s'/>", escape(other))
			}
			kept := seen()
			if renamed {
				kept = slices.DeleteFunc(kept, func(s string) bool { return s == "mac" })
			}
			ss = append(ss, plug(d, to.kind(), more, append(kept, "link", "bandwidth", "filterref", "driver", "guest", "coalesce"))...)
		case renamed:
			ss = append(ss, mac.replace(fmt.Sprintf("<mac address='%s'/>", escape(other))))
		}
	}
	return ss
}

func (n Network) kind() string {
	if n.Bridge != "" {
		return "bridge"
	}
	return "network"
}

func (n Network) source() string {
	return fmt.Sprintf("<source %s='%s'/>", n.kind(), escape(n.Network+n.Bridge))
}

// seen is what a guest sees of a card.
func seen() []string {
	return []string{"mac", "model", "address", "alias", "boot", "rom", "acpi", "mtu"}
}

// ports are the devices that QEMU joins to something of the host (a chardev).
var ports = []string{"serial", "parallel", "console", "channel", "redirdev", "smartcard"}

// consoles writes the first serial port to a file where that is asked for, and takes
// the place that libvirt made up for a channel's socket out: it is that of another
// machine's number.
func consoles(text []byte, devices *element, e Edit) []splice {
	var ss []splice
	first := true
	for _, d := range devices.children {
		switch {
		case d.name == "channel" && d.attr("type") == "unix" && madeUp(d):
			ss = append(ss, d.child("source").remove())
		case (d.name == "serial" || d.name == "console") && e.Console != "" && serialZero(d):
			if d.name == "console" && !first {
				ss = append(ss, d.remove()) // libvirt makes it again as the serial port's double
				continue
			}
			first = false
			ss = append(ss, d.replace(fmt.Sprintf("<%s type='file'><source path='%s' append='on'/>%s</%s>", d.name, escape(e.Console), d.inside(text, "target", "address"), d.name)))
		case e.Isolate && slices.Contains(ports, d.name):
			ss = append(ss, apart(text, d)...)
		}
	}
	return ss
}

// serialZero reports whether d is the machine's first serial port, or its console
// there.
func serialZero(d *element) bool {
	t := d.child("target")
	if t == nil {
		return true
	}
	kind := t.attr("type")
	return (t.attr("port") == "" || t.attr("port") == "0") && (d.name == "serial" || kind == "" || kind == "serial")
}

// madeUp reports whether libvirt chose the path of a channel's socket: it lies in a
// directory domain-NUMBER-NAME (libvirt, qemuDomainChrDefDropDefaultPath).
func madeUp(d *element) bool {
	s := d.child("source")
	return s != nil && strings.HasPrefix(path.Base(path.Dir(s.attr("path"))), "domain-")
}

// inside is the text of the named children.
func (e *element) inside(text []byte, names ...string) string {
	var b strings.Builder
	for _, c := range e.children {
		if slices.Contains(names, c.name) {
			b.Write(text[c.from:c.to])
		}
	}
	return b.String()
}
