package site

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/libvirt"
	"github.com/novacron/afterimage/cbt/qemu"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

// Times of looking at a domain.
const (
	lookEvery    = 10 * time.Second // without an event that asks for it
	lookPatience = 5 * time.Second
)

// plugs keeps the disks that are captured those that the domain has. One that is
// plugged joins: the points of the others go on meanwhile, and cover it once it is
// known. One that is pulled leaves: the points of the others go on without it. What
// the domain has is its live definition, asked at each event and now and then.
type plugs struct {
	life    *life
	reign   *reign
	tap     config.Tap
	defined *definitions

	looking sync.Mutex // held while what is captured is made what the domain has

	mu     sync.Mutex           // guards what follows
	disks  map[string]qemu.Disk // that are captured, by target
	order  []string             // of their targets
	loose  []libvirt.InspectedDisk
	domain *libvirt.Domain // as it was seen last; nil: not yet
}

// seenKey is where a journal remembers that a configured disk was plugged once: before
// that its absence is a mistake, and no reason to go on without it.
func seenKey(v cbt.VolumeID) string { return "site/plugged/" + v.String() }

func newPlugs(l *life, r *reign, tap config.Tap, disks map[string]cbt.Volume) *plugs {
	p := &plugs{life: l, reign: r, tap: tap, defined: &definitions{life: l, reign: r}, disks: make(map[string]qemu.Disk)}
	for _, target := range slices.Sorted(maps.Keys(disks)) {
		p.add(target, domainDisk(disks[target], target))
	}
	return p
}

func (p *plugs) add(target string, d qemu.Disk) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.disks[target] = d
	p.order = append(p.order, target)
}

func (p *plugs) remove(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.disks, target)
	p.order = slices.DeleteFunc(p.order, func(t string) bool { return t == target })
}

// tapped is what a tracker begins with.
func (p *plugs) tapped() []qemu.Disk {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []qemu.Disk
	for _, target := range p.order {
		out = append(out, p.disks[target])
	}
	return out
}

// run looks until ctx ends.
func (p *plugs) run(ctx context.Context) {
	log := p.life.site.o.Log.With("group", p.life.cfg.Ref())
	var told string
	for ctx.Err() == nil {
		err := p.follow(ctx)
		if ctx.Err() == nil && err != nil && err.Error() != told {
			told = err.Error()
			log.Warn("the domain is not watched", "domain", p.tap.Libvirt.Domain, "err", err)
		}
		again := time.NewTimer(firstRetry)
		select {
		case <-again.C:
		case <-ctx.Done():
		}
		again.Stop()
	}
}

// follow looks at the domain whenever something happened to it, until the connection
// or ctx ends.
func (p *plugs) follow(ctx context.Context) error {
	c := p.tap.Libvirt
	dial, cancel := context.WithTimeout(ctx, lookPatience)
	w, err := libvirt.DialWatch(dial, c.URI, c.Domain)
	cancel()
	if err != nil {
		return err
	}
	defer w.Close()
	log := p.life.site.o.Log.With("group", p.life.cfg.Ref(), "domain", c.Domain)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var told string
	for {
		for _, n := range w.News() {
			log.Info("the domain", "what", n.What, "detail", n.Detail)
			if err := p.happened(n); err != nil {
				return err
			}
		}
		if err := p.look(ctx, w); err != nil && ctx.Err() == nil && err.Error() != told {
			told = err.Error()
			log.Warn("look at the domain", "err", err)
		}
		select {
		case <-w.Woken():
		case <-tick.C:
		case <-w.Done():
			return nil // libvirtd has gone; trackers tell of that
		case <-ctx.Done():
			return nil
		}
	}
}

// look makes what is captured what the domain has now.
func (p *plugs) look(ctx context.Context, w *libvirt.Watch) error {
	p.looking.Lock()
	defer p.looking.Unlock()
	asking, cancel := context.WithTimeout(ctx, lookPatience)
	defer cancel()
	var d *libvirt.Domain
	var in libvirt.Inspection
	err := p.life.named(p.tap, func(name string) (err error) {
		d, in, err = w.Look(asking, name)
		return err
	})
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.domain = d
	p.mu.Unlock()
	if !in.Runs() {
		return nil // what it will have is seen when it runs
	}
	p.life.remember(p.tap, d)
	if err := p.happened(libvirt.Happening{What: libvirt.Started}); err != nil { // it came while nobody heard
		return err
	}
	p.defined.note(ctx, d)
	return p.settle(ctx, in)
}

// settle brings in what is new and lets go what has gone.
func (p *plugs) settle(ctx context.Context, in libvirt.Inspection) error {
	there := make(map[string]libvirt.InspectedDisk)
	for _, k := range in.Disks {
		if k.Writable {
			there[k.Target] = k
		}
	}
	var errs []error
	p.mu.Lock()
	captured := maps.Clone(p.disks)
	p.mu.Unlock()
	for target, d := range captured {
		if _, ok := there[target]; ok {
			errs = append(errs, p.life.j.Remember(seenKey(d.Volume.ID), true))
		} else {
			errs = append(errs, p.leave(ctx, target, d.Volume))
		}
	}
	var loose []libvirt.InspectedDisk
	joining := make(map[string]cbt.Volume)
	for _, k := range in.Disks {
		if _, ok := captured[k.Target]; ok || !k.Writable || k.Size == 0 {
			continue // one whose size is not told now is asked again
		}
		if v, ok := p.volumeOf(k); ok {
			joining[k.Target] = v
		} else {
			loose = append(loose, k)
		}
	}
	errs = append(errs, p.join(ctx, joining))
	p.mu.Lock()
	p.loose = loose
	p.mu.Unlock()
	return errors.Join(append(errs, p.agree(ctx))...)
}

// agree makes the tracker follow the disks that are captured, and no others: one that
// took the place of another just when a disk came or went knows nothing of that.
func (p *plugs) agree(ctx context.Context) error {
	followed := make(map[cbt.VolumeID]bool)
	for _, v := range p.reign.tracker.statusOf(p.tap.Guest) {
		followed[v.Volume.ID] = true
	}
	var errs []error
	for _, d := range p.tapped() {
		if !followed[d.Volume.ID] {
			errs = append(errs, p.reign.tracker.plug(p.tap.Guest, d))
		}
		delete(followed, d.Volume.ID)
	}
	for id := range followed {
		errs = append(errs, p.reign.tracker.unplug(ctx, id, func(ctx context.Context) error { return p.reign.writer.LeaveVolume(ctx, id) }))
	}
	return errors.Join(errs...)
}

// volumeOf is the volume that a disk is of, if it is to be captured.
func (p *plugs) volumeOf(k libvirt.InspectedDisk) (cbt.Volume, bool) {
	cfg := p.life.cfg
	for _, c := range p.tap.Volumes {
		if c.Libvirt != nil && c.Libvirt.Target == k.Target {
			v := volumeOf(cfg, c)
			v.Size = k.Size
			return v, true
		}
	}
	if p.tap.Libvirt.Disks != config.DisksAll {
		return cbt.Volume{}, false
	}
	return volumeOf(cfg, config.Volume{Name: volumeName(cfg, p.tap.Guest, k.Target), Size: config.Bytes(k.Size)}), true
}

// volumeName is what the disk of a target is called that volumes: does not name: by its
// target, behind its machine where there are several.
func volumeName(g config.Group, guest, target string) string {
	name := target
	if guest != "" {
		name = guest + "-" + target
	}
	for _, c := range g.Volumes {
		if c.Name == name {
			return "disk-" + name
		}
	}
	return name
}

// join makes disks, by target, part of the group, and has them captured. The first ones
// of a group are its members at once, all of them before one is captured: there are no
// points that could go on without them.
func (p *plugs) join(ctx context.Context, disks map[string]cbt.Volume) error {
	add, parts := p.reign.writer.JoinVolume, partsOf(p.life.j)
	if p.life.initial(ctx) {
		add = p.reign.writer.AddVolume
	}
	for target, v := range disks {
		if part, ok := parts[v.ID]; ok && part.Size > v.Size {
			v.Size = part.Size // the tracker finds out, and what to say of it
			disks[target] = v
		}
		if err := add(ctx, v); err != nil {
			return fmt.Errorf("join disk %s: %w", target, err)
		}
	}
	for _, target := range slices.Sorted(maps.Keys(disks)) {
		d := domainDisk(disks[target], target)
		if err := p.reign.tracker.plug(p.tap.Guest, d); err != nil {
			return fmt.Errorf("join disk %s: %w", target, err)
		}
		p.add(target, d)
		p.life.site.o.Log.Info("a disk joins", "group", p.life.cfg.Ref(), "disk", target, "volume", d.Volume.Name, "bytes", d.Volume.Size)
	}
	return nil
}

// firstLook adds to the disks of a domain those that a group of all disks
// is to begin with: so its first points cover them all. A domain that cannot be looked
// at now is looked at later.
func (l *life) firstLook(ctx context.Context, r *reign, m *guestTap) error {
	if m.Libvirt.Disks != config.DisksAll || !l.initial(ctx) {
		return nil
	}
	look, cancel := context.WithTimeout(ctx, lookPatience)
	defer cancel()
	in, err := libvirt.Inspect(look, m.Libvirt.URI, m.Libvirt.Domain)
	if err != nil || !in.Runs() {
		return ctx.Err()
	}
	p := &plugs{life: l, tap: m.Tap}
	for _, k := range in.Disks {
		v, ok := p.volumeOf(k)
		if _, named := m.domain[k.Target]; named || !ok || !k.Writable || k.Size == 0 {
			continue
		}
		if err := r.writer.AddVolume(ctx, v); err != nil {
			return fmt.Errorf("add disk %s: %w", k.Target, err)
		}
		m.domain[k.Target] = v
	}
	return nil
}

// initial reports that the group never had a point.
func (l *life) initial(ctx context.Context) bool {
	spans, err := l.j.Spans(ctx)
	return err == nil && len(spans) == 0
}

// leave ends a disk's part in the group. What comes under its target later is compared
// with what the journal holds, whatever its bitmaps say.
func (p *plugs) leave(ctx context.Context, target string, v cbt.Volume) error {
	var seen bool
	if _, err := p.life.j.Recall(seenKey(v.ID), &seen); err != nil || !seen {
		return err // it was never there: its volume says so, and there are no points
	}
	err := p.reign.tracker.unplug(ctx, v.ID, func(ctx context.Context) error {
		if err := qemu.Forget(p.life.j, v.ID); err != nil {
			return err
		}
		return p.reign.writer.LeaveVolume(ctx, v.ID)
	})
	if err != nil {
		return fmt.Errorf("let disk %s leave: %w", target, err)
	}
	p.remove(target)
	p.life.site.o.Log.Warn("a disk has left", "group", p.life.cfg.Ref(), "disk", target, "volume", v.Name)
	return nil
}

// notices say which disks are not captured, though somebody may believe so.
func (p *plugs) notices() []control.Notice {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []control.Notice
	for _, c := range p.tap.Volumes {
		if c.Libvirt == nil || p.disks[c.Libvirt.Target].Node != "" {
			continue
		}
		out = append(out, control.Notice{Level: control.Alarm,
			Text: fmt.Sprintf("volume %s is not protected: the domain has no disk %s any more; points go on without it", c.Name, c.Libvirt.Target),
			Hint: "plug the disk again, and it joins by itself; or remove the volume from the configuration"})
	}
	slices.SortFunc(p.loose, func(a, b libvirt.InspectedDisk) int { return cmp.Compare(a.Target, b.Target) })
	for _, k := range p.loose {
		out = append(out, control.Notice{Level: control.Warning,
			Text: fmt.Sprintf("disk %s (%s) of the domain is not protected", k.Target, k.Source),
			Hint: fmt.Sprintf("add to volumes: {name: %s, size: %d, libvirt: {target: %s}}, or to libvirt: disks: %s", k.Target, k.Size, k.Target, config.DisksAll)})
	}
	return out
}

// tellPlugs adds them to a line.
func (l *life) tellPlugs(line *control.Group) {
	if r := l.reigning(); r != nil {
		for _, p := range r.plugs {
			line.Notices = append(append(p.away(), line.Notices...), p.notices()...)
		}
	}
}

// partsOf is all volumes that ever were in the group, by id.
func partsOf(j *journal.Journal) map[cbt.VolumeID]journal.Part {
	out := make(map[cbt.VolumeID]journal.Part)
	for _, p := range j.Parts() {
		out[p.ID] = p
	}
	return out
}

// targetOf is the target of the disk that volumeName calls so; "" if none is.
func targetOf(g config.Group, guest, name string) string {
	for _, target := range []string{strings.TrimPrefix(name, "disk-"), name} {
		if guest != "" {
			var its bool
			if target, its = strings.CutPrefix(target, guest+"-"); !its {
				continue
			}
		}
		if strings.Contains(target, "-") {
			continue // no target has one: it is of a machine whose name begins like this one's
		}
		if volumeName(g, guest, target) == name {
			return target
		}
	}
	return ""
}

// captured is the disks of a reign, those that were plugged since with them.
func (r *reign) captured(states map[cbt.VolumeID]cbt.VolumeStatus) []*disk {
	out := slices.Clone(r.disks)
	for _, v := range slices.SortedFunc(maps.Values(states), func(a, b cbt.VolumeStatus) int { return cmp.Compare(a.Volume.Name, b.Volume.Name) }) {
		if !slices.ContainsFunc(out, func(d *disk) bool { return d.volume.ID == v.Volume.ID }) {
			out = append(out, &disk{volume: v.Volume, kind: kindDomain, guest: r.tracker.guestOf(v.Volume.ID)})
		}
	}
	return out
}
