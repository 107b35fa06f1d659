package site

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"time"

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

// comingLimit is how long a client may wait for a disk whose group is being
// opened, less than its handshake may take.
const comingLimit = 8 * time.Second

// lookupExport opens a disk for a client. A machine that lost us comes back as
// soon as we listen: while the disk's group is being opened it waits.
func (s *Site) lookupExport(ctx context.Context, name string) (*nbd.Export, error) {
	ctx, cancel := context.WithTimeout(ctx, comingLimit)
	defer cancel()
	changed := s.reignSignal()
	l, d := s.findExport(name)
	for d == nil && s.coming(name) || l != nil && l.isRewinding() {
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %q: its group is not open", nbd.ErrUnknownExport, name)
		}
		changed = s.reignSignal()
		l, d = s.findExport(name)
	}
	if d == nil {
		return nil, fmt.Errorf("%w: %q", nbd.ErrUnknownExport, name)
	}
	return &nbd.Export{Name: name, Description: "afterimage " + l.cfg.Ref() + " " + d.volume.Name, Size: d.volume.Size, MultiConn: true,
		Device: &exported{site: s, name: name, size: d.volume.Size, rewinds: l.rewinds.Load()}}, nil
}

// coming reports whether name is a disk of a group that captures here, or may, and
// has not begun to.
func (s *Site) coming(name string) bool {
	for _, g := range s.groups {
		if !strings.HasPrefix(name, g.exportName("")) {
			continue
		}
		g.mu.Lock()
		l := g.life
		g.mu.Unlock()
		if l == nil || l.roleNow().Role.Captures() && l.reigning() == nil {
			return true
		}
	}
	return false
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
