package libvirt

import (
	"fmt"
	"slices"
)

// outside are devices through which a guest would reach more of its host than its
// disks, its console and its cards: a drill of a machine with one is refused, for what
// it does must not outlive it.
var outside = []string{"hostdev", "filesystem", "shmem", "lease", "nvdimm"}

// isolate takes from a machine what reaches out of it: cards are unplugged or in the
// private network, ports end here, removable media are out, a screen is at a port that
// is free, and the firmware's variables are not those of the machine itself.
func isolate(text []byte, root, devices *element, e Edit) ([]splice, error) {
	refused := func(what string) ([]splice, error) {
		return nil, fmt.Errorf("rewrite definition: %w: a drill would reach out of it through its %s", ErrDefinition, what)
	}
	for _, c := range root.children {
		if c.name == "qemu:commandline" && len(c.children) > 0 {
			return refused(c.name)
		}
	}
	var ss []splice
	for _, d := range devices.children {
		switch {
		case slices.Contains(outside, d.name):
			return refused(d.name)
		case d.name == "interface" && e.Private != "":
			ss = append(ss, plug(d, "network", Network{Network: e.Private}.source(), seen())...)
		case d.name == "interface":
			ss = append(ss, unplug(d)...)
		case d.name == "disk" && (d.attr("device") == "cdrom" || d.attr("device") == "floppy"):
			for _, c := range d.children {
				if c.name == "source" || c.name == "backingStore" {
					ss = append(ss, c.remove())
				}
			}
		case d.name == "graphics":
			ss = append(ss, d.replace(fmt.Sprintf("<graphics type='%s' autoport='yes' listen='127.0.0.1'/>", escape(d.attr("type")))))
		}
	}
	if vars := variables(root); vars != nil && e.NVRAM == "" {
		ss = append(ss, splice{vars.from, vars.to, ""})
	}
	return ss, nil
}

// apart ends a port here; an agent's channel stays one, at a socket of its own.
func apart(text []byte, d *element) []splice {
	switch kind := d.attr("type"); {
	case kind == "pty" || kind == "null" || kind == "vc" || kind == "stdio" || kind == "spicevmc":
		return nil
	case d.name == "redirdev" || d.name == "smartcard":
		return []splice{d.remove()}
	case d.name == "channel":
		return []splice{d.replace("<channel type='unix'>" + d.inside(text, "target", "address", "alias") + "</channel>")}
	}
	return []splice{d.replace(fmt.Sprintf("<%s type='pty'>%s</%s>", d.name, d.inside(text, "target", "address"), d.name))}
}
