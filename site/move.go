package site

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/embedded"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// movedKey is where the site log keeps which disks of a promoted group lie in images.
const movedKey = "failover/moved"

// moved is where disks lie that were moved out of the journal alone. It holds for one
// promotion: what another one starts from has nothing to do with these images.
type moved struct {
	Promotion cbt.ID            `json:"promotion"`
	Images    map[string]string `json:"images"` // by volume id
}

// movedNow is what holds for the group's role.
func (l *life) movedNow(r recovery.Reign) (moved, error) {
	var m moved
	if _, err := l.j.Recall(movedKey, &m); err != nil {
		return m, fmt.Errorf("recall moved disks: %w", err)
	}
	if m.Promotion != r.Promotion || r.Promotion == (cbt.ID{}) {
		m = moved{Promotion: r.Promotion}
	}
	if m.Images == nil {
		m.Images = map[string]string{}
	}
	return m, nil
}

func movedMemo(v cbt.VolumeID) string { return "moved/" + v.String() }

// movedOptions are an image's that v was or is to be moved to.
func (l *life) movedOptions(w *journal.Writer, v cbt.Volume, path string) embedded.Options {
	return embedded.Options{Volume: v, Image: path, Sink: w, History: history{l.j}, Memory: l.j, Key: movedMemo(v.ID), Log: l.site.o.Log.With("group", l.cfg.Ref())}
}

// openMoved opens a disk of the history that lies in an image here. An image that is gone
// ends the opening: what the journal had no room for was in it alone.
func (l *life) openMoved(ctx context.Context, r *reign, v cbt.Volume, path string) (*disk, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, fault.Wrap(fault.ImageTrouble, "open the image of volume "+v.Name, err)
	}
	d, err := embedded.New(ctx, l.movedOptions(r.writer, v, path))
	if err != nil {
		return nil, err
	}
	return &disk{volume: v, kind: kindEmbedded, device: d, run: d.Run, status: l.statusOf(v, d.Protected), close: d.Close, checkpoint: d.Checkpoint}, nil
}

// movedReferences are what images need of the past, should they be opened again.
func (l *life) movedReferences(r recovery.Reign) ([]journal.Reference, error) {
	m, err := l.movedNow(r)
	if err != nil {
		return nil, err
	}
	var refs []journal.Reference
	for id := range m.Images {
		place, ok, err := embedded.CheckpointedAs(l.j, "moved/"+id)
		if err != nil {
			return nil, err
		}
		at, err := positionOf(place)
		if ok && err == nil && l.j.Lineage().Holds(at) {
			refs = append(refs, journal.Reference{Kind: journal.ReferenceCursor, Name: "image " + id, At: at})
		}
	}
	return refs, nil
}

// MoveDisks implements control.API.
func (s *Site) MoveDisks(ctx context.Context, q control.MoveRequest, progress func(control.Progress)) (control.Moved, error) {
	what := "move the disks of " + q.Group
	out := control.Moved{Group: q.Group, Volumes: []control.MovedVolume{}}
	if !filepath.IsAbs(q.To) {
		return out, fault.New(fault.Usage, what, "%q is no absolute path", q.To)
	}
	l, release, err := s.forFailover(ctx, control.FailoverRequest{Group: q.Group})
	if err != nil {
		return out, err
	}
	defer release()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(l.ctx, func() { cancel(errDetached) })()
	if err := l.claimFailover(); err != nil {
		return out, err
	}
	defer l.releaseFailover()
	r := l.reignOf(ctx)
	if r == nil {
		return out, fault.New(fault.NotReplica, what, "the group is not primary here").Advise("Disks are moved after a failover, at the site that runs their machine.")
	}
	began := s.o.Now()
	out.Group = l.cfg.Ref()
	for _, d := range r.disks {
		v, err := l.moveDisk(ctx, r, d, q.To, progress)
		if err != nil {
			return out, explain(what, err)
		}
		out.Volumes = append(out.Volumes, v)
	}
	out.Seconds = s.o.Now().Sub(began).Seconds()
	return out, nil
}

func (l *life) moveDisk(ctx context.Context, r *reign, d *disk, dir string, progress func(control.Progress)) (control.MovedVolume, error) {
	v := control.MovedVolume{Volume: d.volume.Name, Bytes: d.volume.Size}
	m, err := l.movedNow(l.roleNow())
	if err != nil {
		return v, err
	}
	if v.Image = m.Images[d.volume.ID.String()]; v.Image != "" {
		v.Before = true
		return v, nil
	}
	journaled, ok := d.device.(*embedded.Device)
	if d.kind != kindJournal || !ok {
		return v, fault.New(fault.Usage, "move volume "+d.volume.Name, "it does not live in the journal alone, it is %s", d.kind)
	}
	v.Image = filepath.Join(dir, strings.ReplaceAll(l.cfg.Ref(), "/", "-")+"-"+d.volume.Name+".img")
	o := l.movedOptions(r.writer, d.volume, v.Image)
	o.Progress = func(_ string, done, total int64) {
		progress(control.Progress{Step: "copy " + d.volume.Name, Done: done, Total: total})
	}
	o.Settle = func() error {
		m.Images[d.volume.ID.String()] = v.Image
		if err := errors.Join(syncParent(v.Image), l.j.Remember(movedKey, m)); err != nil {
			return fmt.Errorf("remember where it lies: %w", err)
		}
		return nil
	}
	pause, err := journaled.Move(ctx, o)
	if err != nil {
		return v, err
	}
	v.Pause = pause.Seconds()
	l.site.o.Log.Info("disk moved", "group", l.cfg.Ref(), "volume", d.volume.Name, "image", v.Image, "pause", pause)
	return v, nil
}

func syncParent(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
