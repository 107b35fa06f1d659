package config

import "fmt"

// Boot says who starts a protected domain when its host has booted.
type Boot string

// Values of Boot.
const (
	// BootLibvirt leaves it to libvirtd, which asks nobody: a host that comes back after
	// a failover then runs a second machine.
	BootLibvirt Boot = "libvirt"
	// BootAsk takes the domain's autostart over: libvirt's flag is cleared and this site
	// starts the domain once a peer, or the witness, has told that it may.
	BootAsk Boot = "ask"
)

// UnmarshalText accepts the values.
func (b *Boot) UnmarshalText(text []byte) error {
	switch v := Boot(text); v {
	case BootLibvirt, BootAsk:
		*b = v
		return nil
	}
	return fmt.Errorf("boot %q is not understood: want ask or libvirt", text)
}

func (s *shape) boot(path string, g Group) {
	switch {
	case g.Boot != BootAsk || g.Libvirt != nil:
	case len(g.Machines) > 0:
		s.wrong(path+".boot", fmt.Sprintf("group %q has several machines: their start is left to libvirtd", g.Name), "take boot: out, or give the domain that may not run twice a group of its own")
	default:
		s.wrong(path+".boot", fmt.Sprintf("group %q has no domain that could be started", g.Name), "add libvirt: {domain: NAME}, or take boot: out")
	}
}
