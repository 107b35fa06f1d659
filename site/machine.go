package site

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/recovery/domain"
	"github.com/novacron/afterimage/recovery/libvirt"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/fault"
)

// machineFor is the configured machine, with those besides it, as recovery starts it.
func (s *Site) machineFor(g *group, c *config.Machine) recovery.Machine {
	m := s.oneFor(g, c, s.besideOf(g, c))
	for i := range c.Besides {
		x := &c.Besides[i]
		m.Besides = append(m.Besides, recovery.Companion{Machine: s.oneFor(g, x, s.besideOf(g, x)), Health: healthOf(x)})
	}
	return m
}

// besideOf is the besideID of one of the group's machines; "" for the one that has what
// is the group's own: the first, until a machine was started there. From then on that is
// its place, and another one's is beside it, whichever the configuration names first.
func (s *Site) besideOf(g *group, c *config.Machine) string {
	all := g.cfg.Machine.Each()
	resident, err := recovery.Resident(s.machineDir(machineID(g)))
	known := err == nil && resident != "" && slices.ContainsFunc(all, func(x *config.Machine) bool { return x.Name == resident })
	if !known { // whoever has moved in is told by who is started there
		resident = all[0].Name
	}
	if c.Name == resident {
		return ""
	}
	return besideID(g, c)
}

// machineDir is a machine's own directory.
func (s *Site) machineDir(id string) string { return filepath.Join(s.cfg.Data, "m", id) }

// oneFor is one machine; beside is its besideID where it is besides another one.
func (s *Site) oneFor(g *group, c *config.Machine, beside string) recovery.Machine {
	id := machineID(g)
	if beside != "" {
		id = beside
	}
	m := recovery.Machine{Name: c.Name, Binary: c.Binary, Args: c.Args, Vars: map[string]string{"nbd": s.cfg.NBD}, Ready: time.Duration(c.Ready), Dir: s.machineDir(id)}
	for _, d := range c.Disks {
		m.Disks = append(m.Disks, recovery.MachineDisk{Volume: d.Volume, ID: d.ID})
	}
	if c.Libvirt != nil {
		m.Host = s.runnerFor(g, c, beside)
	}
	return m
}

func machineID(g *group) string { return named("machine", g.cfg.Tenant, g.cfg.Name).Short() }

// besideID names what is a machine's own which is besides another one.
func besideID(g *group, c *config.Machine) string {
	return named("machine", g.cfg.Tenant, g.cfg.Name, c.Name).Short()
}

// healthOf is how c tells that it is up.
func healthOf(c *config.Machine) recovery.Health {
	h := c.Health
	if h == nil {
		return recovery.Health{}
	}
	return recovery.Health{Prefix: h.Prefix, Agent: h.By == config.ByAgent, Timeout: time.Duration(h.Timeout)}
}

// runnerFor has libvirtd run the machine, by the definition that is newest when it is
// started: that of the point that the group was promoted from.
func (s *Site) runnerFor(g *group, c *config.Machine, beside string) *domain.Runner {
	r := &domain.Runner{URI: c.Libvirt.URI, Name: c.Name, Targets: map[string]string{}, Networks: map[string]libvirt.Network{}, MACs: map[string]string{},
		Log: filepath.Join(machineSockets(g, ""), beside, "console.log"), DrillLog: filepath.Join(machineSockets(g, drillPrefix), beside, "console.log"), Private: c.Libvirt.Isolated,
		Definition: func(ctx context.Context) (string, error) { return s.definitionNow(ctx, g, c) },
		NVRAM:      func(ctx context.Context) ([]byte, error) { return s.nvramNow(ctx, g, c) }}
	if owner, err := qemuUser(&config.Libvirt{URI: c.Libvirt.URI, User: c.Libvirt.User}); err == nil { // else its sockets say so
		r.Owner = owner
	}
	r.Socket = filepath.Join(machineSockets(g, ""), "nbd")
	for _, d := range c.Disks {
		r.Targets[d.Volume] = d.ID
	}
	for _, n := range c.Libvirt.Networks {
		r.Networks[n.From] = libvirt.Network{Network: n.To, Bridge: n.Bridge}
	}
	for _, a := range c.Libvirt.MACs {
		r.MACs[strings.ToLower(a.From)] = a.To
	}
	return r
}

// definitionNow is the domain's definition at the head of what the group is here.
func (s *Site) definitionNow(ctx context.Context, g *group, c *config.Machine) (string, error) {
	l, release, err := s.open(ctx, g)
	if err != nil {
		return "", err
	}
	defer release()
	h := l.j.Head()
	return l.definitionAt(journal.Point{Position: h.Position}, c)
}

// definitionAt is a domain's definition at a point: what the tap recorded of it.
func (l *life) definitionAt(p journal.Point, c *config.Machine) (string, error) {
	what := "read the machine's definition of " + l.cfg.Ref()
	all, err := l.j.Machines(p)
	if err != nil {
		return "", err
	}
	want, found := c.Libvirt.Domain, ""
	var names []string
	for name, text := range all {
		if !bytes.HasPrefix(bytes.TrimSpace(text), []byte("<")) || want != "" && name != want {
			continue // a plain QEMU's is no domain
		}
		names, found = append(names, name), string(text)
	}
	switch len(names) {
	case 1:
		return found, nil
	case 0:
		return "", fault.New(fault.MachineTrouble, what, "the history has no definition of it at %v", p.Position).
			Advise("Definitions are recorded where the group is captured through libvirt:. Capture it so, or describe the machine by binary: and args:.")
	}
	return "", fault.New(fault.MachineTrouble, what, "the history has several: %s", strings.Join(names, ", ")).Advise("Name one: machine: {libvirt: {domain: NAME}}")
}

// nvramNow is what the domain's firmware remembers at the head of what the group is
// here; nil where the history does not say.
func (s *Site) nvramNow(ctx context.Context, g *group, c *config.Machine) ([]byte, error) {
	l, release, err := s.open(ctx, g)
	if err != nil {
		return nil, err
	}
	defer release()
	all, err := l.j.Machines(journal.Point{Position: l.j.Head().Position})
	if err != nil {
		return nil, err
	}
	want := c.Libvirt.Domain
	var found []byte
	for name, vars := range all {
		if of, ok := strings.CutSuffix(name, nvramSuffix); ok && (want == "" || of == want) {
			found = vars // of several definitionAt has refused to choose
		}
	}
	return found, nil
}

// drillPrefix begins the directories of drills among those of machines.
const drillPrefix = "d-"

// machineSockets is the directory that the QEMU of the group's machine may enter, and
// nobody else but us.
func machineSockets(g *group, prefix string) string {
	return filepath.Join(g.cfg.Machine.Libvirt.Sockets, prefix+machineID(g))
}

// hosted reports whether libvirtd runs the group's machine.
func (g *group) hosted() bool { return g.cfg.Machine != nil && g.cfg.Machine.Libvirt != nil }

// socketFor makes the directory of a machine's sockets and names the one that its
// disks are served at.
func socketFor(g *group, prefix string) (path string, owner int, err error) {
	c := g.cfg.Machine.Libvirt
	if owner, err = qemuUser(&config.Libvirt{URI: c.URI, User: c.User}); err != nil {
		return "", 0, err
	}
	dir, err := enterable(c.Sockets, prefix+machineID(g), owner)
	for _, x := range g.cfg.Machine.Each() { // its console and its firmware's variables
		if len(g.cfg.Machine.Besides) == 0 {
			break
		}
		if err == nil {
			_, err = enterable(dir, besideID(g, x), owner)
		}
	}
	return filepath.Join(dir, "nbd"), owner, err
}

// listenFor listens where the QEMU that libvirtd runs reaches its group's disks.
func listenFor(g *group) (net.Listener, error) {
	path, owner, err := socketFor(g, "")
	if err != nil {
		return nil, err
	}
	l, err := nbd.ListenUnix(path, 0o600)
	if err != nil {
		return nil, fault.Wrap(fault.ListenTrouble, "listen at "+path, err)
	}
	if owner != 0 {
		err = os.Chown(path, owner, -1)
	}
	if err != nil {
		return nil, errors.Join(fault.Wrap(fault.ListenTrouble, "listen at "+path, err), l.Close())
	}
	return l, nil
}

// serverFor serves the disks of one group.
func (s *Site) serverFor(g *group) *nbd.Server {
	log := s.o.Log.With("part", "nbd", "group", g.cfg.Ref())
	ours := func(name string) bool { return strings.HasPrefix(name, g.exportName("")) }
	return nbd.NewServer(nbd.ServerOptions{Log: log, Events: s.requestEvents(log),
		Lookup: func(ctx context.Context, name string) (*nbd.Export, error) {
			if !ours(name) {
				return nil, fmt.Errorf("%w: %q", nbd.ErrUnknownExport, name)
			}
			return s.lookupExport(ctx, name)
		},
		List: func() []string {
			var names []string
			for _, name := range s.listExports() {
				if ours(name) {
					names = append(names, name)
				}
			}
			return names
		}})
}

// diskSocket is where the group's machine reaches its disks.
func (s *Site) diskSocket(g *group) string {
	if g.hosted() {
		return filepath.Join(machineSockets(g, ""), "nbd")
	}
	return s.cfg.NBD
}
