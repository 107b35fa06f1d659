package config

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/novacron/afterimage/site/fault"
)

// Captured is one of several machines of this host whose disks are one group's: all
// their writes have one order, and a point is of all of them. A volume says by machine:
// whose disk it is.
type Captured struct {
	Name    string   `yaml:"name"`
	QEMU    *QEMU    `yaml:"qemu,omitempty"`
	Libvirt *Libvirt `yaml:"libvirt,omitempty"`
	// Agent is what quiesce: {agent: …} is to a group with one machine.
	Agent string `yaml:"agent,omitempty"`
}

// Tap is one machine whose disks a group captures.
type Tap struct {
	Guest string // its name; empty where the group has one, named by its own qemu: or libvirt:
	// Group is the group as it would be with this machine alone: its QEMU or Libvirt, and
	// its volumes.
	Group
}

// Taps is the machines whose disks the group captures.
func (g Group) Taps() []Tap {
	if g.QEMU != nil || g.Libvirt != nil {
		return []Tap{{Group: g}}
	}
	var out []Tap
	for _, m := range g.Machines {
		t := Tap{Guest: m.Name, Group: g}
		t.Machines, t.QEMU, t.Libvirt, t.Volumes = nil, m.QEMU, m.Libvirt, nil
		if g.Quiesce != nil || m.Agent != "" {
			q := Quiesce{}
			if g.Quiesce != nil {
				q = *g.Quiesce
			}
			q.Agent = m.Agent
			t.Quiesce = &q
		}
		for _, v := range g.Volumes {
			if v.Machine == m.Name {
				t.Volumes = append(t.Volumes, v)
			}
		}
		out = append(out, t)
	}
	return out
}

// capturesAll reports whether all disks of a domain are the group's, named or not.
func (g Group) capturesAll() bool {
	return slices.ContainsFunc(g.Taps(), func(t Tap) bool { return t.Libvirt != nil && t.Libvirt.Disks == DisksAll })
}

func (m *Captured) complete(c *Config, dir string) {
	if m.QEMU != nil {
		m.QEMU.complete(dir)
	}
	if m.Libvirt != nil {
		m.Libvirt.complete(c, dir)
	}
	if m.Agent != "" && !filepath.IsAbs(m.Agent) {
		m.Agent = filepath.Join(dir, m.Agent)
	}
}

func (q *QEMU) complete(dir string) {
	for _, p := range []*string{&q.QMP, &q.Watchdog, &q.NBD} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
}

func (s *shape) qemu(path string, q *QEMU) {
	if q.QMP == "" {
		s.absent(path+".qmp", "the QMP socket of the machine")
	}
	s.socket(path+".qmp", q.QMP)
	s.socket(path+".watchdog_qmp", q.Watchdog)
	s.socket(path+".nbd", q.NBD)
}

// machines judges the machines of a group that has several.
func (s *shape) machines(path string, g Group) {
	if len(g.Machines) == 0 {
		return
	}
	if g.QEMU != nil || g.Libvirt != nil {
		s.wrong(path+".machines", fmt.Sprintf("group %q names a machine beside machines:", g.Name), "move its qemu: or libvirt: into machines:, under a name")
		return
	}
	if g.Quiesce != nil && g.Quiesce.Agent != "" {
		s.wrong(path+".quiesce.agent", fmt.Sprintf("group %q has several machines", g.Name), "give each of machines: its own agent:")
	}
	names, domains := uniques{}, uniques{}
	for i, m := range g.Machines {
		at := fmt.Sprintf("%s.machines[%d]", path, i)
		s.name(at+".name", m.Name, "a name within the group, which volumes: refer to")
		names.add(s, at+".name", "machine", m.Name)
		if g.Machine != nil && g.Machine.Name == m.Name && m.QEMU != nil {
			s.wrong(at+".name", fmt.Sprintf("machine: of the group, which a failover starts, is called %q as well", m.Name), "give one of them another name: the history describes both")
		}
		switch {
		case m.QEMU != nil && m.Libvirt != nil:
			s.wrong(at, fmt.Sprintf("machine %q is tapped through qemu: and through libvirt:", m.Name), "keep one of them")
		case m.QEMU != nil:
			s.qemu(at+".qemu", m.QEMU)
		case m.Libvirt != nil:
			domains.add(s, at+".libvirt.domain", "domain", m.Libvirt.URI+" "+m.Libvirt.Domain)
			s.domain(at+".libvirt", Group{Name: g.Name, Libvirt: m.Libvirt})
		default:
			s.absent(at+".qemu", "a machine is one of qemu: {qmp: SOCKET} and libvirt: {domain: NAME}")
		}
		if m.Agent != "" && m.QEMU == nil {
			s.wrong(at+".agent", "only a machine of qemu: has an agent's socket", "remove agent:; a domain's agent is reached through libvirt")
		}
		has := m.Libvirt != nil && m.Libvirt.Disks == DisksAll
		for _, v := range g.Volumes {
			has = has || v.Machine == m.Name
		}
		if !has && m.Name != "" && g.Role == Primary {
			s.report(fault.ConfigReference, s.at(at), at, fmt.Sprintf("no volume is of machine %q", m.Name), fmt.Sprintf("add machine: %s to a volume, or take the machine out", m.Name))
		}
	}
}

// machineOf is the machine whose disk v is, as a group of its own; ok is false, and a
// problem reported, where there is none.
func (s *shape) machineOf(path string, g Group, v Volume) (t Tap, ok bool) {
	if len(g.Machines) == 0 {
		if v.Machine != "" {
			s.report(fault.ConfigReference, s.at(path+".machine"), path, fmt.Sprintf("machine %q is not defined", v.Machine), "the group has no machines:")
		}
		return Tap{Group: g}, v.Machine == ""
	}
	if g.QEMU != nil || g.Libvirt != nil {
		return Tap{}, false // reported already
	}
	var names []string
	for _, t := range g.Taps() {
		if t.Guest == v.Machine {
			return t, true
		}
		if t.Guest != "" && !slices.Contains(names, t.Guest) {
			names = append(names, t.Guest)
		}
	}
	known := strings.Join(names, ", ")
	switch {
	case v.Machine != "":
		s.report(fault.ConfigReference, s.at(path+".machine"), path, fmt.Sprintf("machine %q is not defined", v.Machine), "machines: defines "+known)
	case v.QEMU != nil || v.Libvirt != nil:
		s.absent(path+".machine", "which of machines: has this disk: "+known)
	default:
		return Tap{Group: g}, true
	}
	return Tap{}, false
}
