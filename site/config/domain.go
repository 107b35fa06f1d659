package config

import (
	"fmt"
	"path/filepath"
	"strings"
)

// MachineLibvirt makes the machine a domain of libvirtd's, defined from the history:
// with the definition as it was at the point, its disks replaced by what this site
// serves. A disk's id is its target (vda, sda, …) there.
type MachineLibvirt struct {
	URI string `yaml:"uri,omitempty"` // default qemu:///system
	// Domain is the domain's name in the history; default the only one that is there.
	Domain string `yaml:"domain,omitempty"`
	// Networks and MACs say what is called otherwise at this site.
	Networks []NetworkMap `yaml:"networks,omitempty"`
	MACs     []MACMap     `yaml:"macs,omitempty"`
	// Isolated is a network of libvirt's without a way out, for drills. None: their
	// cards are unplugged.
	Isolated string `yaml:"isolated,omitempty"`
	// Sockets is a directory that QEMU may enter; default /run/afterimage/SITE for
	// qemu:///system, DATA/r for qemu:///session.
	Sockets string `yaml:"sockets,omitempty"`
	// User is whom QEMU runs as, as under libvirt:.
	User string `yaml:"user,omitempty"`
}

// NetworkMap is what a card of network, bridge or device From is plugged into here.
type NetworkMap struct {
	From   string `yaml:"from"`
	To     string `yaml:"to,omitempty"`     // a network of libvirt's
	Bridge string `yaml:"bridge,omitempty"` // or a bridge of this host
}

// MACMap is a card's address here.
type MACMap struct {
	From string `yaml:"from"`
	To   string `yaml:"to"`
}

func (l *MachineLibvirt) complete(c *Config, dir string) {
	if l.URI == "" {
		l.URI = SystemURI
	}
	switch {
	case l.Sockets == "" && l.URI == SystemURI:
		l.Sockets = filepath.Join(socketsParent, c.Site)
	case l.Sockets == "" && c.Data != "":
		l.Sockets = filepath.Join(c.Data, "r")
	case l.Sockets != "" && !filepath.IsAbs(l.Sockets):
		l.Sockets = filepath.Join(dir, l.Sockets)
	}
}

// longestMachineSocket is what a machine puts behind Sockets: its directory, the
// socket's name and that of the directory in which it is made.
const longestMachineSocket = len("/d-12345678/.nbd1234567890/s")

func (s *shape) machineDomain(path string, m *Machine) {
	if m.Binary != "" {
		s.wrong(path+".binary", "a domain of libvirt's names its program itself", "its definition comes from the history; take binary: out")
	}
	if m.Args != nil {
		s.wrong(path+".args", "a domain of libvirt's has no arguments", "its definition comes from the history; take args: out")
	}
	if n := len(m.Libvirt.Sockets) + longestMachineSocket; n > maxSocketPath {
		s.wrong(path+".libvirt.sockets", fmt.Sprintf("sockets below %s would have paths of %d bytes, %d are possible", m.Libvirt.Sockets, n, maxSocketPath), "name a shorter directory, such as "+socketsParent)
	}
	froms := uniques{}
	for i, n := range m.Libvirt.Networks {
		at := fmt.Sprintf("%s.libvirt.networks[%d]", path, i)
		froms.add(s, at+".from", "network", n.From)
		switch {
		case n.From == "":
			s.absent(at+".from", "what the network is called in the definition")
		case (n.To == "") == (n.Bridge == ""):
			s.wrong(at, fmt.Sprintf("network %q goes to one of to: and bridge:", n.From), "to: names a network of libvirt's, bridge: a bridge of this host")
		}
	}
	for i, a := range m.Libvirt.MACs {
		at := fmt.Sprintf("%s.libvirt.macs[%d]", path, i)
		froms.add(s, at+".from", "address", strings.ToLower(a.From))
		if a.From == "" || a.To == "" {
			s.absent(at+".to", "both addresses, such as {from: \"52:54:00:00:00:01\", to: \"52:54:00:00:00:02\"}")
		}
	}
}
