package site

import (
	"context"
	"fmt"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/qemu"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
)

// promoting is the history of a promotion: its epochs fork where somebody chose,
// not where the captured disks stand. What is remembered of dirty bitmaps tells
// what changed since another head, and a delta made from it would be wrong; so it
// is forgotten, durably, before the epoch exists. A crash in between costs a full
// read and nothing else.
type promoting struct {
	awaited
	life *life
}

var _ recovery.History = promoting{}

func (l *life) promoting() promoting { return promoting{awaited{l.j}, l} }

// BeginEpoch is the journal's, after the bitmaps were forgotten.
func (p promoting) BeginEpoch(ctx context.Context, site string, parent journal.Position, atLeast uint64) (*journal.Writer, error) {
	if err := p.life.forgetBitmaps(); err != nil {
		return nil, err
	}
	p.life.site.o.passes("bitmaps forgotten")
	w, err := p.awaited.BeginEpoch(ctx, site, parent, atLeast)
	p.life.site.o.passes("epoch begun")
	return w, err
}

// Remember is the journal's.
func (p promoting) Remember(key string, v any) error {
	err := p.awaited.Remember(key, v)
	p.life.site.o.passes("remembered " + key)
	return err
}

// forgetBitmaps makes the next resync of every volume a full read: of those that
// the configuration names, and of those that the history does.
func (l *life) forgetBitmaps() error {
	volumes, err := headVolumes(l.j)
	if err != nil {
		return fmt.Errorf("list volumes to forget bitmaps of: %w", err)
	}
	for _, v := range l.cfg.Volumes {
		volumes = append(volumes, volumeOf(l.cfg, v))
	}
	forgotten := map[cbt.VolumeID]bool{}
	for _, v := range volumes {
		if forgotten[v.ID] {
			continue
		}
		forgotten[v.ID] = true
		if err := qemu.Forget(l.j, v.ID); err != nil {
			return fmt.Errorf("forget bitmaps of volume %s: %w", v.Name, err)
		}
	}
	return nil
}
