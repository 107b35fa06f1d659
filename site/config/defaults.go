package config

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Defaults of keys that may be left out.
const (
	DefaultTenant      = "default"
	DefaultStallBudget = Duration(500 * time.Millisecond)
	DefaultReady       = Duration(30 * time.Second)
	DefaultBinary      = "qemu-system-x86_64"
)

// complete fills in what was left out and makes paths absolute.
func (c *Config) complete(file string) {
	dir, err := filepath.Abs(filepath.Dir(file))
	if err != nil {
		dir = filepath.Dir(file)
	}
	absolute := func(p *string) {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	orElse := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	absolute(&c.Data)
	if c.Data != "" {
		orElse(&c.Key, filepath.Join(c.Data, "site.key"))
		orElse(&c.Control, filepath.Join(c.Data, "control.sock"))
		orElse(&c.NBD, filepath.Join(c.Data, "nbd.sock"))
	}
	absolute(&c.Key)
	absolute(&c.Control)
	absolute(&c.NBD)
	if c.Witness != nil {
		c.Witness.complete(dir)
	}
	for i := range c.Peers {
		c.Peers[i].completeHold()
	}
	for i := range c.Keys {
		c.Keys[i].complete(dir)
	}
	for i := range c.Groups {
		g := &c.Groups[i]
		g.completeHistory()
		g.completeObjectives()
		orElse(&g.Tenant, DefaultTenant)
		if g.Role == "" {
			g.Role = Replica
		}
		if g.Compress == "" {
			g.Compress = CompressAuto
		}
		if g.Sync == "" {
			g.Sync = SyncProcess
		}
		if g.StallBudget == 0 {
			g.StallBudget = DefaultStallBudget
		}
		for _, v := range g.Volumes {
			if v.Embedded != nil {
				absolute(&v.Embedded.Image)
			}
		}
		if g.QEMU != nil {
			g.QEMU.complete(dir)
		}
		if g.Libvirt != nil {
			g.Libvirt.complete(c, dir)
		}
		for k := range g.Machines {
			g.Machines[k].complete(c, dir)
		}
		if g.Capture != nil {
			g.Capture.complete()
		}
		if g.Quiesce != nil {
			g.Quiesce.complete(dir)
		}
		if g.Detect == nil {
			g.Detect = new(Detect)
		}
		g.Detect.complete()
		if g.Fence != nil {
			g.Fence.complete(dir, g.Name)
		}
		for k, m := range g.Machine.Each() {
			if k == 0 {
				orElse(&m.Name, g.Name)
			}
			if m.Libvirt != nil {
				m.Libvirt.complete(c, dir)
			} else {
				orElse(&m.Binary, DefaultBinary)
			}
			if m.Ready == 0 {
				m.Ready = DefaultReady
			}
		}
	}
}

// secret finds values that machine arguments carry openly: QEMU's
// "-object secret,data=…" and any password=… or key=… pair.
var secret = regexp.MustCompile(`(?i)\b(password|passwd|data|secret|token|key)=[^,\s]+`)

// Masked is a copy of c that may be shown: secrets in machine arguments are
// replaced by "***".
func (c *Config) Masked() *Config {
	m := *c
	m.Keys = slices.Clone(c.Keys)
	for i, k := range m.Keys {
		m.Keys[i].Command = slices.Clone(k.Command)
		for n, a := range k.Command {
			m.Keys[i].Command[n] = mask(a)
		}
	}
	m.Groups = slices.Clone(c.Groups)
	for i := range m.Groups {
		machine := m.Groups[i].Machine
		if machine == nil {
			continue
		}
		shown := *machine
		shown.Besides = slices.Clone(machine.Besides)
		for _, x := range shown.Each() {
			x.Args = slices.Clone(x.Args)
			for k, a := range x.Args {
				x.Args[k] = mask(a)
			}
		}
		m.Groups[i].Machine = &shown
	}
	return &m
}

func mask(arg string) string {
	return secret.ReplaceAllStringFunc(arg, func(pair string) string {
		key, _, _ := strings.Cut(pair, "=")
		return key + "=***"
	})
}
