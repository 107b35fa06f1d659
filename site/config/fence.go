package config

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/novacron/afterimage/recovery/fence"
)

// Fence is how a failover to this site proves that the machine is off at the old one.
// What one channel switched off has to be seen off through another, so name two.
type Fence struct {
	// Libvirt is the old host's libvirtd: its domain is destroyed. A remote one is
	// reached through a tunnel to its socket (qemu:///system?socket=PATH).
	Libvirt *FenceLibvirt `yaml:"libvirt,omitempty"`
	// Programs are fence agents, asked in this order, after libvirt.
	Programs []FenceProgram `yaml:"programs,omitempty"`
	// Ping is an address that is silent once the machine is off; it counts only if it
	// answered before.
	Ping *FencePing `yaml:"ping,omitempty"`
	// Each is the fence of every machine of a group that has several, by its name there:
	// all are proven off, or none is. What stands beside it sees their host.
	Each    []Fence `yaml:"each,omitempty"`
	Machine string  `yaml:"machine,omitempty"` // within each
}

// FenceLibvirt names a domain of another host.
type FenceLibvirt struct {
	URI     string   `yaml:"uri"`
	Domain  string   `yaml:"domain,omitempty"` // default the group's name
	Timeout Duration `yaml:"timeout,omitempty"`
}

// FenceProgram is a program that follows the convention of ClusterLabs' fence-agents.
type FenceProgram struct {
	Path    string   `yaml:"path"`
	Plug    string   `yaml:"plug,omitempty"`    // none: the device has one
	Control string   `yaml:"control,omitempty"` // a plug that is on, by which lies are found out
	Of      FenceOf  `yaml:"of,omitempty"`      // machine (default) or host
	Options []string `yaml:"options,omitempty"` // key=value, given on stdin
	Secrets string   `yaml:"secrets,omitempty"` // file with more of them, which nobody else may read
	Timeout Duration `yaml:"timeout,omitempty"` // for each action
}

// FencePing is an address that is asked by ICMP.
type FencePing struct {
	Address string   `yaml:"address"`
	Of      FenceOf  `yaml:"of,omitempty"`
	For     Duration `yaml:"for,omitempty"` // of silence
}

// FenceOf says what a channel sees.
type FenceOf string

// Values of FenceOf.
const (
	OfMachine FenceOf = "machine"
	OfHost    FenceOf = "host" // one that runs does not mean that the machine does
)

// UnmarshalText accepts the values.
func (o *FenceOf) UnmarshalText(text []byte) error {
	switch v := FenceOf(text); v {
	case OfMachine, OfHost:
		*o = v
		return nil
	}
	return fmt.Errorf("of %q is not understood: want machine or host", text)
}

func (f *Fence) complete(dir, group string) {
	for i := range f.Each {
		f.Each[i].complete(dir, f.Each[i].Machine)
	}
	if f.Libvirt != nil && f.Libvirt.Domain == "" {
		f.Libvirt.Domain = group
	}
	for i := range f.Programs {
		p := &f.Programs[i]
		if p.Of == "" {
			p.Of = OfMachine
		}
		if p.Secrets != "" && !filepath.IsAbs(p.Secrets) {
			p.Secrets = filepath.Join(dir, p.Secrets)
		}
	}
	if f.Ping != nil && f.Ping.Of == "" {
		f.Ping.Of = OfMachine
	}
}

func (s *shape) fence(path string, f *Fence) {
	if f.Machine != "" {
		s.wrong(path+".machine", "the fence of a group names a machine", "move it into each: of fence:")
	}
	s.eachFence(path, f)
	s.channels(path, f, len(f.Each) == 0)
}

// eachFence judges the fences of the machines of one group.
func (s *shape) eachFence(path string, f *Fence) {
	if len(f.Each) == 0 {
		return
	}
	if !f.OfHost() {
		s.wrong(path, "what stands beside each: is of no machine", "move it into each:, to the machine that it sees, or say of: host")
	}
	names, plugs := uniques{}, uniques{}
	for i := range f.Each {
		e, at := &f.Each[i], fmt.Sprintf("%s.each[%d]", path, i)
		s.name(at+".machine", e.Machine, "what the machine is called in machines: of the other site")
		names.add(s, at+".machine", "machine", e.Machine)
		if e.Each != nil {
			s.wrong(at+".each", "the fence of a machine has none within itself", "list all machines below one each:")
		}
		s.channels(at, e, len(f.Programs) == 0)
		if e.Libvirt != nil { // one that is seen off twice leaves another one out
			plugs.add(s, at+".libvirt.domain", "domain", e.Libvirt.URI+" "+e.Libvirt.Domain)
		}
		for k, p := range e.Programs {
			if p.Of != OfHost {
				plugs.add(s, fmt.Sprintf("%s.programs[%d]", at, k), "fence", strings.Join(append([]string{p.Path, p.Plug, p.Secrets}, p.Options...), " "))
			}
		}
		if e.Ping != nil && e.Ping.Of != OfHost {
			plugs.add(s, at+".ping.address", "address", e.Ping.Address)
		}
	}
}

// channels judges the channels to one machine; switches says that one of them has to be
// able to switch it off.
func (s *shape) channels(path string, f *Fence, switches bool) {
	if switches && f.Libvirt == nil && len(f.Programs) == 0 {
		s.absent(path+".programs", "what switches the machine off: programs: [{path: /usr/sbin/fence_ipmilan, …}] or libvirt: {uri: …}")
	}
	if f.Libvirt != nil && f.Libvirt.URI == "" {
		s.absent(path+".libvirt.uri", "the old host's libvirtd, such as qemu:///system?socket=/run/afterimage/berlin.sock")
	}
	names := uniques{}
	for i, p := range f.Programs {
		at := fmt.Sprintf("%s.programs[%d]", path, i)
		names.add(s, at+".path", "fence", p.Path+" "+p.Plug)
		switch {
		case p.Path == "":
			s.absent(at+".path", "the program, from / on")
		case !filepath.IsAbs(p.Path):
			s.wrong(at+".path", fmt.Sprintf("%q is not an absolute path", p.Path), "name the program from / on: no shell and no PATH are asked")
		}
		if p.Control != "" && p.Control == p.Plug {
			s.wrong(at+".control", "the control plug is the plug itself", "name one that is not switched and always on")
		}
		for k, o := range p.Options {
			if err := fence.CheckOption(o); err != nil {
				s.wrong(fmt.Sprintf("%s.options[%d]", at, k), err.Error(), "write key=value, such as ip=192.0.2.9")
			} else if mask(o) != o {
				s.wrong(fmt.Sprintf("%s.options[%d]", at, k), "a secret does not belong into this file", "write the line into a file that nobody else may read, and name it as secrets:")
			}
		}
	}
	if f.Ping != nil && f.Ping.Address == "" {
		s.absent(path+".ping.address", "the machine's address")
	}
}
