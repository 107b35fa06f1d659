package site

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/novacron/afterimage/cbt"
	tap "github.com/novacron/afterimage/cbt/libvirt"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/recovery/fence"
	"github.com/novacron/afterimage/recovery/libvirt"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// A site that cannot reach its peers may still be reached by a person, who has it stand
// down: its machine is seen off, the role is given up, durably, and only then it signs
// that its history ends where it does. What it signed can be carried to another site by
// any way, and is one channel of the fence there (package fence), never a proof alone.
// From then on this site follows whoever reigns; it begins an epoch only if a person
// fails over to it again, and who hears of that believes the statement no more.

// standDownPlan says what standing down means now.
func (l *life) standDownPlan(ctx context.Context, d *control.Decision, r recovery.Reign) error {
	what := "stand down from " + d.Group
	stood := r.Stage() == recovery.StageReplica && !r.Stood.IsZero()
	if !stood && r.Can(recovery.ActStandDown) != nil {
		return fault.New(fault.RoleForbids, what, "the group is %s here: there is nothing to give up", r.Stage())
	}
	head := l.j.Head()
	if head.Position.IsZero() {
		return fault.New(fault.RoleForbids, what, "nothing was ever written here")
	}
	how, err := l.seenOff(ctx)
	if err != nil {
		d.Refused = append(d.Refused, err.Error())
	}
	if stood {
		d.Steps = []string{fmt.Sprintf("sign: it stood down %s; what it said is signed again", r.Stood.Format(timeLayout))}
		return nil
	}
	d.Steps = []string{
		"machine: " + how,
		"give up: no write is taken here any more; the role is given up, durably, to nobody",
		fmt.Sprintf("sign: this site has stopped the group at about record #%d.%d and will not start it", head.Number, head.Seq),
		"follow: this site is a replica of whoever is failed over to",
	}
	d.Warnings = []string{"nobody protects the group until a failover elsewhere; what peers lack is lost unless they get it from here: failover planned loses nothing"}
	if l.cfg.Machine == nil && len(l.cfg.Taps()) == 0 {
		d.Warnings = append(d.Warnings, "whoever writes to the disks here gets errors from then on: shut it down first")
	}
	return nil
}

// seenOff looks at everything that could run the group's machine here, and says how it was
// seen off. What libvirtd would start by itself is not off.
func (l *life) seenOff(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, examineBounded)
	defer cancel()
	var how []string
	if m := l.cfg.Machine; m != nil {
		for _, one := range l.machine(m).Each() {
			pid, err := one.Process()
			if err == nil {
				return "", fmt.Errorf("machine %s runs here (process %d): shut it down first", one.Name, pid)
			}
			if !errors.Is(err, recovery.ErrNotRunning) {
				return "", fmt.Errorf("see machine %s off: %w", one.Name, err)
			}
		}
		how = append(how, fmt.Sprintf("machine %s has no process", m.Called()))
	}
	switch said, err := l.localOff(ctx); {
	case err != nil:
		return "", err
	case said != "":
		how = append(how, said)
	}
	for _, t := range l.cfg.Taps() {
		var said string
		var err error
		if t.Libvirt != nil {
			said, err = l.domainOff(ctx, t)
		} else {
			said, err = l.plainOff(ctx, t)
		}
		if err != nil {
			return "", err
		}
		how = append(how, said)
	}
	if err := l.untapped(ctx); err != nil {
		return "", err
	}
	if len(how) == 0 {
		return "its disks were served by this site alone, and are shut", nil
	}
	return strings.Join(how, "; "), nil
}

// domainOff asks libvirtd for what may be the tapped domain, also under another name than
// the configured one.
func (l *life) domainOff(ctx context.Context, t config.Tap) (string, error) {
	var how []string
	err := l.eachDomain(ctx, t, func(m *libvirt.Machine, state tap.State) error {
		if state != tap.StateOff && state != tap.StateCrashed {
			return fmt.Errorf("domain %s is %s: shut it down first", m.Name, state)
		}
		if auto, err := m.Autostart(ctx); err != nil || auto {
			return errors.Join(err, fmt.Errorf("libvirtd would start domain %s with its host: virsh autostart --disable %s", m.Name, m.Name))
		}
		how = append(how, fmt.Sprintf("domain %s is %s, says %s", m.Name, state, t.Libvirt.URI))
		return nil
	})
	if len(how) == 0 {
		how = append(how, fmt.Sprintf("%s has no domain %s", t.Libvirt.URI, t.Libvirt.Domain))
	}
	return strings.Join(how, "; "), err
}

// untapped is nil unless a tap is in a machine: whatever its name and whoever was asked,
// it runs. A tap takes a moment to learn that its machine has ended.
func (l *life) untapped(ctx context.Context) error {
	for {
		in := l.tappedVolume()
		if in == nil {
			return nil
		}
		if pauseFor(ctx, actPause) != nil {
			return fmt.Errorf("the machine of volume %s runs (%s): shut it down first", in.Volume.Name, in.State)
		}
	}
}

// tappedVolume is one whose writes arrive here from a machine now; nil: there is none.
func (l *life) tappedVolume() *cbt.VolumeStatus {
	r := l.reigning()
	if r == nil || r.tracker == nil {
		return nil
	}
	for _, v := range r.tracker.Status() {
		if v.State == cbt.StateSynced || v.State == cbt.StateSyncing {
			return &v
		}
	}
	return nil
}

// standDown gives the role up, waits until nobody can write, and signs. A crash between
// the two leaves a site that stood down; asked again it signs.
func (s *Site) standDown(ctx context.Context, l *life, free func(), operator string) (string, error) {
	g := l.group
	if r := l.roleNow(); r.Role.Captures() {
		if _, err := l.seenOff(ctx); err != nil {
			free()
			return "", err
		}
		_, err := l.act(func(r recovery.Reign) (recovery.Reign, error) { return r.StandDown(s.o.Now(), operator) })
		if err != nil {
			free()
			return "", err
		}
		l.next()
	}
	free() // the life ends when nobody uses it
	l, release, err := g.awaitReplica(ctx)
	if err != nil {
		return "", err
	}
	defer release()
	r := l.roleNow()
	if r.Stage() != recovery.StageReplica || r.Stood.IsZero() {
		return "", fmt.Errorf("the group is %s here now: somebody decided otherwise meanwhile", r.Stage())
	}
	how, err := l.seenOff(ctx)
	if err != nil {
		return "", fmt.Errorf("the role is given up, and nothing is signed: %w", err)
	}
	head := l.j.Head()
	if err := l.j.WaitDurable(ctx, head.Position); err != nil {
		return "", err
	}
	x := fence.Standing{Site: s.cfg.Site, Group: g.cfg.Ref(), Identity: l.id, Head: head.Position, Epoch: head.Number, Machine: g.cfg.Name, How: how, Time: s.o.Now()}
	if m := g.cfg.Machine; m != nil {
		x.Machine = m.Called()
	}
	text, err := x.Sign(s.self())
	if err != nil {
		return "", err
	}
	s.o.Log.Warn("site stands down and has signed it", "group", g.cfg.Ref(), "record", head.Position.String(), "how", how, "operator", operator)
	return text, nil
}

// awaitReplica waits for a life in which nothing is captured and nobody can write.
func (g *group) awaitReplica(ctx context.Context) (*life, func(), error) {
	ctx, cancel := context.WithTimeout(ctx, openingLimit)
	defer cancel()
	for {
		l, release, err := g.await(ctx)
		if err == nil {
			if l.ctx.Err() == nil && l.reigning() == nil && !l.roleNow().Role.Captures() {
				return l, release, nil
			}
			release()
			err = errors.New("its disks are being shut")
		}
		if pauseFor(ctx, actPause) != nil {
			return nil, nil, err
		}
	}
}
