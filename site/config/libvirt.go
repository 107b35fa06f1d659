package config

import (
	"fmt"
	"path/filepath"

	"github.com/novacron/afterimage/site/fault"
)

// Libvirt is a running domain whose disks are tapped as it is: its definition is
// not changed and it is not restarted.
type Libvirt struct {
	Domain string `yaml:"domain"`        // name or UUID
	URI    string `yaml:"uri,omitempty"` // default qemu:///system
	// Disks says which of its disks are the group's: those that volumes: names, or all
	// that are written to, also those that are plugged later. One that volumes: does
	// not name is called by its target then.
	Disks DomainDisks `yaml:"disks,omitempty"`
	// Passthrough says whether commands may be passed to QEMU's monitor, which
	// taints the domain. Forbidden: libvirt's own block copies are used, and every
	// break costs a read of the whole disk, compared with the journal.
	Passthrough Passthrough `yaml:"passthrough,omitempty"`
	// Sockets is a directory that QEMU may enter; default /run/afterimage/SITE for
	// qemu:///system, DATA/t for qemu:///session.
	Sockets string `yaml:"sockets,omitempty"`
	// User is whom QEMU runs as, by name or number; default libvirt-qemu or qemu
	// for qemu:///system, this process's own user for qemu:///session.
	User string `yaml:"user,omitempty"`
}

// DomainDisk is a disk of the tapped domain.
type DomainDisk struct {
	Target string `yaml:"target"` // vda, sda, …, as the definition has it
}

// DomainDisks says which disks of a domain are captured.
type DomainDisks string

// Values of DomainDisks.
const (
	DisksNamed DomainDisks = "named"
	DisksAll   DomainDisks = "all"
)

// UnmarshalText accepts the values.
func (d *DomainDisks) UnmarshalText(text []byte) error {
	switch v := DomainDisks(text); v {
	case DisksNamed, DisksAll:
		*d = v
		return nil
	}
	return fmt.Errorf("disks %q is not understood: want %s or %s", text, DisksNamed, DisksAll)
}

// Passthrough says whether QEMU's monitor may be used beside libvirt.
type Passthrough string

// Values of Passthrough.
const (
	PassthroughAllowed   Passthrough = "allowed"
	PassthroughForbidden Passthrough = "forbidden"
)

// UnmarshalText accepts the values.
func (p *Passthrough) UnmarshalText(text []byte) error {
	switch v := Passthrough(text); v {
	case PassthroughAllowed, PassthroughForbidden:
		*p = v
		return nil
	}
	return fmt.Errorf("passthrough %q is not understood: want allowed or forbidden", text)
}

// URIs of libvirtd that have defaults of their own.
const (
	SystemURI     = "qemu:///system"
	socketsParent = "/run/afterimage"
)

func (l *Libvirt) complete(c *Config, dir string) {
	if l.URI == "" {
		l.URI = SystemURI
	}
	if l.Disks == "" {
		l.Disks = DisksNamed
	}
	if l.Passthrough == "" {
		l.Passthrough = PassthroughAllowed
	}
	switch {
	case l.Sockets == "" && l.URI == SystemURI:
		l.Sockets = filepath.Join(socketsParent, c.Site)
	case l.Sockets == "" && c.Data != "":
		l.Sockets = filepath.Join(c.Data, "t")
	case l.Sockets != "" && !filepath.IsAbs(l.Sockets):
		l.Sockets = filepath.Join(dir, l.Sockets)
	}
}

// longestTap is what a tracker puts behind Sockets: the volume's directory, a
// socket's name and that of the directory in which it is made.
const longestTap = len("/12345678/capture-12345678/.nbd1234567890/")

func (s *shape) domain(path string, g Group) {
	if g.Libvirt.Domain == "" {
		s.absent(path+".domain", "the domain's name, as virsh list shows it")
	}
	if g.QEMU != nil {
		s.wrong(path, fmt.Sprintf("group %q is tapped through qemu: and through libvirt:", g.Name), "keep one of them")
	}
	if n := len(g.Libvirt.Sockets) + longestTap; n > maxSocketPath {
		s.wrong(path+".sockets", fmt.Sprintf("sockets below %s would have paths of %d bytes, %d are possible", g.Libvirt.Sockets, n, maxSocketPath), "name a shorter directory, such as "+socketsParent)
	}
}

func (s *shape) domainDisk(path string, g Group, v Volume) {
	switch {
	case v.Libvirt.Target == "":
		s.absent(path+".libvirt.target", "the disk's target in the domain's definition, such as vda")
	case g.Libvirt == nil && v.Machine != "":
		s.report(fault.ConfigReference, s.at(path+".libvirt"), path, fmt.Sprintf("volume %q is a domain's, but machine %q is none", v.Name, v.Machine), "a disk of qemu: is qemu: {node: NAME}")
	case g.Libvirt == nil:
		s.report(fault.ConfigReference, s.at(path+".libvirt"), path, fmt.Sprintf("volume %q is a domain's, but the group names none", v.Name), "add to the group: libvirt: {domain: NAME}")
	}
}
