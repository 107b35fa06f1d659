package site

import (
	"context"
	"fmt"
	"slices"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// A group that comes home is written over its domain's disks, whole. What they are is
// remembered from when the domain ran here (driveKey): while the group was away somebody
// may have given the definition a disk of another machine. Only a person's word, which
// names the path, makes such a one the domain's.

// homeDisks are the domain's disks by the ids of the volumes at the head, which can be
// brought there, and are known to be its own.
func (l *life) homeDisks(ctx context.Context) (map[string]recovery.Drive, error) {
	disks, err := l.definedDisks(ctx)
	if err != nil {
		return nil, err
	}
	if err := l.elsewhere(disks); err != nil {
		return nil, fault.Wrap(fault.HomeElsewhere, "write to the disks of "+l.cfg.Libvirt.Domain, err).
			Advise("Put the definition right at site %s, or say there that this disk may be overwritten: afterimage group home %s --disk VOLUME=PATH", l.site.cfg.Site, l.cfg.Name)
	}
	return disks, nil
}

// HomeDisks implements control.API.
func (s *Site) HomeDisks(ctx context.Context, q control.HomeRequest) (control.Home, error) {
	what := "look where " + q.Group + " comes home to"
	out := control.Home{Disks: []control.HomeDisk{}}
	g, err := s.group(q.Group)
	if err != nil {
		return out, err
	}
	if !s.running() {
		return out, fault.New(fault.NeedsDaemon, what, "the daemon asks libvirtd about the domain")
	}
	if g.cfg.Libvirt == nil {
		return out, fault.New(fault.Usage, what, "no single domain is captured as this group here")
	}
	l, release, err := g.awaitNext(ctx)
	if err != nil {
		return out, err
	}
	defer release()
	if l.roleNow().Role.Captures() && !l.comesHome() {
		return out, fault.New(fault.RoleForbids, what, "the group is %s here: it is at home, or its machine runs from the history", l.roleNow().Stage()).Advise("A domain that runs is captured with the disks that it has.")
	}
	disks, err := l.definedDisks(ctx)
	if err != nil {
		return out, explain(what, err)
	}
	out.Group, out.Domain = l.cfg.Ref(), l.cfg.Libvirt.Domain
	said := map[string]recovery.Drive{} // by key of the site log
	volumes, err := headVolumes(l.j)
	if err != nil {
		return out, explain(what, err)
	}
	for name := range q.Disks {
		if !slices.ContainsFunc(volumes, func(v cbt.Volume) bool { return v.Name == name }) {
			return out, fault.New(fault.VolumeUnknown, what, "it has no volume %q", name)
		}
	}
	for _, v := range volumes {
		var was recovery.Drive
		if _, err := l.j.Recall(driveKey(v.ID), &was); err != nil {
			return out, explain(what, err)
		}
		now := disks[v.ID.String()]
		d := control.HomeDisk{Volume: v.Name, Ran: was.Path, RanFormat: was.Format, Named: now.Path, NamedFormat: now.Format, Refused: was != now}
		switch path, ok := q.Disks[v.Name]; {
		case ok && path != now.Path:
			return out, fault.New(fault.Usage, what, "volume %s: %s was said, and the domain's definition names %s", v.Name, path, now.Path).Advise("Give the domain that disk with virsh edit first.")
		case ok:
			said[driveKey(v.ID)], d.Said, d.Refused = now, !q.DryRun, false
		}
		out.Disks = append(out.Disks, d)
	}
	if q.DryRun {
		return out, nil
	}
	for key, d := range said {
		if err := l.j.Remember(key, d); err != nil {
			return out, explain(what, fmt.Errorf("remember a disk of the domain: %w", err))
		}
		s.o.Log.Warn("a disk is the domain's from now on, and may be overwritten when it comes home", "group", l.cfg.Ref(), "domain", l.cfg.Libvirt.Domain, "image", d.Path, "operator", q.Operator)
	}
	return out, nil
}

// awaitNext is await for what puts right why a group fails: one that has failed is waited
// for until it is opened again.
func (g *group) awaitNext(ctx context.Context) (*life, func(), error) {
	ctx, cancel := context.WithTimeout(ctx, openingLimit+lastRetry)
	defer cancel()
	for {
		g.mu.Lock()
		turn := g.turn
		g.mu.Unlock()
		l, release, err := g.use()
		if err == nil {
			return l, release, nil
		}
		select {
		case <-turn:
		case <-ctx.Done():
			return nil, nil, err
		}
	}
}
