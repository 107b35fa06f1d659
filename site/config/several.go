package config

import (
	"fmt"
	"slices"
	"strings"
)

// Each is the machine and those besides it, in the order in which they start; none of
// no machine.
func (m *Machine) Each() []*Machine {
	if m == nil {
		return nil
	}
	out := []*Machine{m}
	for i := range m.Besides {
		out = append(out, &m.Besides[i])
	}
	return out
}

// Called is the names of all machines that start together.
func (m *Machine) Called() string {
	var names []string
	for _, x := range m.Each() {
		names = append(names, x.Name)
	}
	return strings.Join(names, ", ")
}

// Checked reports whether one of the machines tells that it is up.
func (m *Machine) Checked() bool {
	return slices.ContainsFunc(m.Each(), func(x *Machine) bool { return x.Health != nil })
}

// maxMachines bounds the machines of one group.
const maxMachines = 64

// started judges the machines that a failover starts together.
func (s *shape) started(path string, g Group) {
	all := g.Machine.Each()
	if len(all) > maxMachines {
		s.wrong(path+".besides", fmt.Sprintf("%d machines in one group, %d are possible", len(all), maxMachines), "make several groups of them")
	}
	names, volumes, domains := uniques{}, uniques{}, uniques{}
	for i, m := range all {
		at := path
		if i > 0 {
			at = fmt.Sprintf("%s.besides[%d]", path, i-1)
			if m.Besides != nil {
				s.wrong(at+".besides", "a machine besides another one has none besides itself", "list all of them below the first")
			}
			s.alike(at, all[0], m)
		}
		s.machine(at, g, m)
		names.add(s, at+".name", "machine", m.Name)
		if len(all) == 1 {
			continue
		}
		if m.Libvirt != nil {
			domains.add(s, at+".libvirt.domain", "domain", m.Libvirt.Domain)
		}
		for k, d := range m.Disks {
			volumes.add(s, fmt.Sprintf("%s.disks[%d].volume", at, k), "disk", d.Volume)
		}
		for _, c := range g.Machines {
			if c.QEMU != nil && c.Name == m.Name && i > 0 {
				s.wrong(at+".name", fmt.Sprintf("a machine that is captured is called %q as well", m.Name), "give one of them another name: the history describes both")
			}
		}
	}
}

// alike is that machines which share the group's disks are reached by one program: the
// disks are served in one place.
func (s *shape) alike(at string, first, m *Machine) {
	a, b := first.Libvirt, m.Libvirt
	switch {
	case (a == nil) != (b == nil):
		s.wrong(at+".libvirt", fmt.Sprintf("machine %q and %q are not both run by libvirtd", m.Name, first.Name), "run all machines of a group by libvirt:, or all by binary:")
	case a != nil && (a.URI != b.URI || a.Sockets != b.Sockets || a.User != b.User):
		s.wrong(at+".libvirt", fmt.Sprintf("machine %q is run by another libvirtd than %q", m.Name, first.Name), "uri:, sockets: and user: are the same for all machines of a group")
	case a != nil && (a.Domain == "" || b.Domain == ""):
		s.absent(at+".libvirt.domain", "which domain of the history each of the machines is")
	}
}

// fencesAll is that every machine that a failover starts here is proven off there: a
// fence that sees one of them says nothing about the others.
func (s *shape) fencesAll(path string, g Group) {
	n := max(len(g.Machine.Each()), len(g.Machines))
	if n < 2 {
		return
	}
	if k := len(g.Fence.Each); k > 0 && k < n {
		s.wrong(path+".each", fmt.Sprintf("%d machines are one group, and %d of them are fenced", n, k), "each: of fence: names every machine of the group")
	}
	if len(g.Fence.Each) == 0 && !g.Fence.OfHost() {
		s.wrong(path, "a fence of one machine does not prove several off", "name every machine: each: [{machine: db, …}, {machine: web, …}], or see their host by of: host")
	}
}

// OfHost reports that all channels of f are of the host.
func (f *Fence) OfHost() bool {
	if f.Libvirt != nil || f.Ping != nil && f.Ping.Of != OfHost {
		return false
	}
	return !slices.ContainsFunc(f.Programs, func(p FenceProgram) bool { return p.Of != OfHost })
}
