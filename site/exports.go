package site

import (
	"context"
	"fmt"
	"net/url"

	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/site/config"
)

// exportName is what a disk of l is called at the site's NBD socket:
// GROUP/VOLUME, and TENANT/GROUP/VOLUME for another tenant than the default one.
func (g *group) exportName(volume string) string {
	if g.cfg.Tenant == config.DefaultTenant {
		return g.cfg.Name + "/" + volume
	}
	return g.cfg.Ref() + "/" + volume
}

// eachExport calls f for every disk that is served read-write now.
func (s *Site) eachExport(f func(name string, l *life, d *disk) bool) {
	for _, g := range s.groups {
		g.mu.Lock()
		l := g.life
		g.mu.Unlock()
		if l == nil {
			continue
		}
		r := l.reigning()
		if r == nil {
			continue
		}
		for _, d := range r.disks {
			if d.device != nil && !f(g.exportName(d.volume.Name), l, d) {
				return
			}
		}
	}
}

func (s *Site) findExport(name string) (*life, *disk) {
	var owner *life
	var found *disk
	s.eachExport(func(n string, l *life, d *disk) bool {
		if n == name {
			owner, found = l, d
		}
		return found == nil
	})
	return owner, found
}

// lookupExport opens a disk for a client.
func (s *Site) lookupExport(_ context.Context, name string) (*nbd.Export, error) {
	l, d := s.findExport(name)
	if d == nil {
		return nil, fmt.Errorf("%w: %q", nbd.ErrUnknownExport, name)
	}
	return &nbd.Export{Name: name, Description: "afterimage " + l.cfg.Ref() + " " + d.volume.Name, Size: d.volume.Size, MultiConn: true,
		Device: &exported{site: s, name: name, size: d.volume.Size}}, nil
}

func (s *Site) listExports() []string {
	var names []string
	s.eachExport(func(n string, _ *life, _ *disk) bool { names = append(names, n); return true })
	return names
}

// nbdURI follows NBD's uri.md.
func nbdURI(network, address, export string) string {
	path := (&url.URL{Path: "/" + export}).EscapedPath()
	if network == "unix" {
		return "nbd+unix://" + path + "?socket=" + url.QueryEscape(address)
	}
	return "nbd://" + address + path
}
