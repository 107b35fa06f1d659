package site

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
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
	// Devices are the identities of those images that are block devices, by volume id.
	Devices map[string]string `json:"devices,omitempty"`
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
	if m.Devices == nil {
		m.Devices = map[string]string{}
	}
	return m, nil
}

func movedMemo(v cbt.VolumeID) string { return "moved/" + v.String() }

// movedOptions are an image's that v was or is to be moved to.
func (l *life) movedOptions(w *journal.Writer, v cbt.Volume, path string) embedded.Options {
	return embedded.Options{Volume: v, Image: path, Sink: w, History: history{l.j}, Memory: l.j, Key: movedMemo(v.ID), Log: l.site.o.Log.With("group", l.cfg.Ref())}
}

// openMoved opens a disk of the history that lies in an image here. An image that is gone,
// or a device that is another one by now, ends the opening: what the journal had no room
// for was in it alone.
func (l *life) openMoved(ctx context.Context, r *reign, v cbt.Volume, path, device string) (*disk, error) {
	_, err := os.Stat(path)
	if device != "" {
		err = recovery.SameDevice(path, device)
	}
	if err != nil {
		return nil, fault.Wrap(fault.ImageTrouble, "open the image of volume "+v.Name, err)
	}
	o := l.movedOptions(r.writer, v, path)
	o.Device = device != ""
	d, err := embedded.New(ctx, o)
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
	local, err := l.pivotedNow(r)
	if err != nil {
		return nil, err
	}
	var refs []journal.Reference
	for id := range m.Images {
		if local.Disks[id].Done { // it is never opened here again
			continue
		}
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
	for _, path := range append(slices.Collect(maps.Values(q.Devices)), cmp.Or(q.To, "/")) {
		if !filepath.IsAbs(path) {
			return out, fault.New(fault.Usage, what, "%q is no absolute path", path)
		}
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
	if all := l.cfg.Machine.Each(); q.Pivot && len(all) > 1 {
		return out, fault.New(fault.Usage, what, "machines %s share the group's disks: those of several are not handed to their machines", l.cfg.Machine.Called()).Advise("Move them without --pivot.")
	}
	began := s.o.Now()
	out.Group = l.cfg.Ref()
	lies, err := l.movedNow(l.roleNow())
	if err == nil {
		err = placeable(r, q, lies)
	}
	if err != nil {
		return out, err
	}
	for _, d := range r.disks {
		v, err := l.moveDisk(ctx, r, d, q, progress)
		if err != nil {
			return out, explain(what, err)
		}
		out.Volumes = append(out.Volumes, v)
	}
	if q.Pivot {
		if out.Unprotected, err = l.pivotDisks(ctx, r, progress); err != nil {
			return out, explain("hand the disks of "+q.Group+" to their machine", err)
		}
		for i, d := range r.disks {
			if out.Volumes[i].Local, err = l.localOf(d.volume.ID); err != nil {
				return out, explain(what, err)
			}
		}
	}
	out.Seconds = s.o.Now().Sub(began).Seconds()
	return out, nil
}

// placeable is nil if every disk that does not lie anywhere yet is told where to go, before
// any is moved.
func placeable(r *reign, q control.MoveRequest, lies moved) error {
	what := "move the disks of " + q.Group
	left := maps.Clone(q.Devices)
	for _, d := range r.disks {
		if _, ok := left[d.volume.Name]; !ok && q.To == "" && lies.Images[d.volume.ID.String()] == "" {
			return fault.New(fault.Usage, what, "volume %s has neither a device nor a directory to go to", d.volume.Name)
		}
		delete(left, d.volume.Name)
	}
	for name := range left {
		return fault.New(fault.Usage, what, "it has no volume %q", name)
	}
	return nil
}

func (l *life) moveDisk(ctx context.Context, r *reign, d *disk, q control.MoveRequest, progress func(control.Progress)) (control.MovedVolume, error) {
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
	identity := ""
	if v.Image, ok = q.Devices[d.volume.Name]; !ok {
		v.Image = filepath.Join(q.To, strings.ReplaceAll(l.cfg.Ref(), "/", "-")+"-"+d.volume.Name+".img")
	} else if identity, err = l.claim(d.volume, v.Image); err != nil {
		return v, err
	}
	o := l.movedOptions(r.writer, d.volume, v.Image)
	o.Device = identity != ""
	o.Progress = func(_ string, done, total int64) {
		progress(control.Progress{Step: "copy " + d.volume.Name, Done: done, Total: total})
	}
	o.Settle = func() error {
		m.Images[d.volume.ID.String()] = v.Image
		if o.Device {
			m.Devices[d.volume.ID.String()] = identity
		}
		if err := errors.Join(syncParent(v.Image), l.j.Remember(movedKey, m)); err != nil {
			return fmt.Errorf("remember where it lies: %w", err)
		}
		return nil
	}
	pause, err := journaled.Move(ctx, o)
	if err != nil {
		return v, err
	}
	if o.Device {
		if err := l.claimed(d.volume); err != nil {
			return v, err
		}
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
