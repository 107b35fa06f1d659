package libvirt

import (
	"fmt"
	"slices"
	"strings"
)

// Export is where a disk's content is served.
type Export struct {
	Socket string // a unix socket that QEMU may connect to
	Name   string
}

// Edit is what Rewrite changes. The zero Edit needs a machine without disks.
type Edit struct {
	Name     string             // "": as defined
	UUID     string             // "": as defined
	Disks    map[string]Export  // by target: vda, sda, …; one for each disk
	Networks map[string]Network // by the network, bridge or device that a card is in
	MACs     map[string]string  // by the address that a card has, in lower case
	NVRAM    string             // a file that holds the firmware's variables; "": as defined
	Console  string             // a file that the first serial port is written to; "": as defined
	// Isolate makes it a drill's: its cards are unplugged, or in Private, and it
	// reaches nothing else of the host (isolate.go).
	Isolate bool
	Private string // a network of libvirt's that leads nowhere
}

// Network is what a card is plugged into: a network of libvirt's, or a bridge.
type Network struct {
	Network string
	Bridge  string
}

// reconnectSeconds is how long a machine waits for our server to come back, where libvirt
// passes it on: 9.0 reads it and does not. There the machine stops, and is resumed.
const reconnectSeconds = 24 * 3600

// Rewrite makes the definition of the machine to be run here out of one from the
// journal. All that e does not speak of keeps its bytes. Disks are those of
// device disk and lun; CD-ROMs and floppies may be missing here.
// Source: libvirt, docs/formatdomain.rst.
func Rewrite(definition string, e Edit) (string, error) {
	text := []byte(definition)
	root, err := parse(text)
	if err != nil {
		return "", fmt.Errorf("rewrite definition: %w", err)
	}
	name := root.child("name")
	if root.name != "domain" || name == nil {
		return "", fmt.Errorf("rewrite definition: %w: no <domain> with a <name>", ErrDefinition)
	}
	var ss []splice
	if e.Name != "" {
		ss = append(ss, name.replace("<name>"+escape(e.Name)+"</name>"))
	}
	if e.UUID != "" {
		uuid := "<uuid>" + escape(e.UUID) + "</uuid>"
		if old := root.child("uuid"); old != nil {
			ss = append(ss, old.replace(uuid))
		} else {
			ss = append(ss, splice{name.to, name.to, name.whitespace + uuid})
		}
	}
	if vars := variables(root); vars != nil && e.NVRAM != "" {
		ss = append(ss, vars.replace("<nvram>"+escape(e.NVRAM)+"</nvram>"))
	}
	devices := root.child("devices")
	if devices == nil {
		devices = &element{}
	}
	disks, err := rewriteDisks(devices, e.Disks)
	if err != nil {
		return "", err
	}
	ss = append(ss, disks...)
	if e.Isolate {
		apart, err := isolate(text, root, devices, e)
		if err != nil {
			return "", err
		}
		ss = append(ss, apart...)
	} else {
		ss = append(ss, move(devices, e)...)
	}
	ss = append(ss, consoles(text, devices, e)...)
	return apply(text, ss), nil
}

// variables is where a definition says what its firmware's variables lie in; nil: nowhere.
func variables(root *element) *element {
	if os := root.child("os"); os != nil {
		return os.child("nvram")
	}
	return nil
}

func rewriteDisks(devices *element, exports map[string]Export) ([]splice, error) {
	var ss []splice
	var bad DisksError
	used := make(map[string]bool)
	for _, d := range devices.children {
		if d.name != "disk" || !slices.Contains([]string{"", "disk", "lun"}, d.attr("device")) {
			continue
		}
		var target string
		if t := d.child("target"); t != nil {
			target = t.attr("dev")
		}
		x, ok := exports[target]
		if !ok || target == "" || used[target] {
			bad.Missing = append(bad.Missing, target)
			continue
		}
		used[target] = true
		ss = append(ss, serve(d, x)...)
	}
	for target := range exports {
		if !used[target] {
			bad.Unused = append(bad.Unused, target)
		}
	}
	if len(bad.Missing)+len(bad.Unused) > 0 {
		slices.Sort(bad.Unused)
		return nil, &bad
	}
	return ss, nil
}

// serve puts export x in the place of disk d's source, and takes away what
// belonged to the old one: its format, its chain, its secrets.
func serve(d *element, x Export) []splice {
	// A lun is a SCSI passthrough of a device of the old host.
	ss := []splice{{d.from, d.inner, d.startTag([2]string{"type", "network"}, [2]string{"device", "disk"}, [2]string{"snapshot", ""})}}
	space := d.child("target").whitespace
	source := fmt.Sprintf("<source protocol='nbd' name='%s'>%s  <host transport='unix' socket='%s'/>%s  <reconnect delay='%d'/>%s</source>",
		escape(x.Name), space, escape(x.Socket), space, reconnectSeconds, space)
	driver := [][2]string{{"name", "qemu"}, {"type", "raw"}, {"io", ""}, {"error_policy", "stop"}, {"rerror_policy", "stop"}}
	var hasSource, hasDriver bool
	for _, c := range d.children {
		switch c.name {
		case "source":
			ss, hasSource = append(ss, c.replace(source)), true
		case "driver":
			tag := c.startTag(driver...)
			ss, hasDriver = append(ss, splice{c.from, c.inner, tag}), true
			if cache := c.child("metadata_cache"); cache != nil { // of qcow2
				ss = append(ss, cache.remove())
			}
		case "backingStore", "mirror", "auth", "encryption", "transient", "shareable":
			ss = append(ss, c.remove())
		}
	}
	var fresh strings.Builder
	if !hasDriver {
		fresh.WriteString("<driver name='qemu' type='raw' error_policy='stop' rerror_policy='stop'/>" + space)
	}
	if !hasSource {
		fresh.WriteString(source + space)
	}
	t := d.child("target")
	return append(ss, splice{t.from, t.from, fresh.String()})
}

// unplug makes card n a user-mode one with its link down. What ties it to the
// host goes; what the guest sees of it (address, model, MAC, boot order) stays.
func unplug(n *element) []splice {
	return plug(n, "user", "<link state='down'/>", seen())
}

// plug makes card n one of another type with more inside; of what it has inside only
// what is named in keep stays.
func plug(n *element, kind, more string, keep []string) []splice {
	ss := []splice{{n.from, n.inner, n.startTag([2]string{"type", kind}, [2]string{"managed", ""}, [2]string{"trustGuestRxFilters", ""})}}
	for _, c := range n.children {
		if !slices.Contains(keep, c.name) {
			ss = append(ss, c.remove())
		}
	}
	if n.empty() {
		ss[0].text = strings.TrimSuffix(ss[0].text, "/>") + ">" + more + "</interface>"
	} else {
		ss[0].text += more
	}
	return ss
}
