package site

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// target is one volume and the file that it goes to.
type target struct {
	volume cbt.Volume
	path   string
}

// Restore implements control.API: recovery.Restore for each volume. When the
// caller goes away or something fails, what was not finished is removed.
func (s *Site) Restore(ctx context.Context, q control.RestoreRequest, progress func(control.Progress)) (control.Restored, error) {
	what := "restore " + q.Group
	began := s.o.Now()
	out := control.Restored{Group: q.Group, At: q.At, Files: []control.RestoredFile{}}
	g, err := s.group(q.Group)
	if err != nil {
		return out, err
	}
	out.Group = g.cfg.Ref()
	l, release, err := s.open(ctx, g)
	if err != nil {
		return out, err
	}
	defer release()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(l.ctx, func() { cancel(errDetached) })()
	p, err := resolve(ctx, l.j, q.At)
	if err != nil {
		return out, err
	}
	out.Point = pointOf(p)
	view, err := l.j.View(ctx, p)
	if err != nil {
		return out, explain(what, err)
	}
	defer func() {
		if err := view.Close(); err != nil {
			s.o.Log.Warn("close view", "group", g.cfg.Ref(), "err", err)
		}
	}()
	targets, err := targetsOf(view.Volumes(), q)
	if err != nil {
		return out, err
	}
	for i, t := range targets {
		f, err := restoreVolume(ctx, view, t, q, progress)
		if err != nil {
			err = explain(what+" volume "+t.volume.Name, err)
			if i > 0 {
				return out, fault.Wrap(fault.Partly, what, err).With(out.Files).Advise("%d of %d volumes are restored. %s", i, len(targets), fault.Of(err).Advice())
			}
			return out, err
		}
		out.Files = append(out.Files, f)
	}
	out.Seconds = s.o.Now().Sub(began).Seconds()
	return out, nil
}

// targetsOf says which volume goes where, and refuses before anything is written.
func targetsOf(volumes []cbt.Volume, q control.RestoreRequest) ([]target, error) {
	what := "restore " + q.Group + " to " + q.To
	if q.To == "" {
		return nil, fault.New(fault.Usage, what, "no target is given")
	}
	var ts []target
	for _, v := range volumes {
		if q.Volume == "" || q.Volume == v.Name {
			ts = append(ts, target{volume: v, path: q.To})
		}
	}
	switch {
	case len(ts) == 0 && q.Volume != "":
		return nil, fault.New(fault.VolumeUnknown, what, "the group has no volume %q at that point", q.Volume)
	case len(ts) == 0:
		return nil, fault.New(fault.VolumeUnknown, what, "the group has no volumes at that point")
	}
	fi, err := os.Stat(q.To)
	isDir := err == nil && fi.IsDir()
	if isDir || len(ts) > 1 || strings.HasSuffix(q.To, "/") {
		if !isDir {
			if err := os.MkdirAll(q.To, 0o700); err != nil {
				return nil, fault.Wrap(fault.FileTrouble, what, err)
			}
		}
		for i := range ts {
			ts[i].path = filepath.Join(q.To, ts[i].volume.Name+extensionOf(q.Format))
		}
	}
	for _, t := range ts {
		if fi, err := os.Lstat(t.path); err == nil {
			if !fi.Mode().IsRegular() {
				return nil, fault.New(fault.FileExists, what, "%s is there and is no regular file", t.path).Advise("A restore only writes files; copy from view serve to a device.")
			}
			if !q.Overwrite {
				return nil, fault.New(fault.FileExists, what, "%s is there", t.path)
			}
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, fault.Wrap(fault.FileTrouble, what, err)
		}
	}
	return ts, nil
}

func extensionOf(format string) string {
	if format == control.FormatQCOW2 {
		return ".qcow2"
	}
	return ".raw"
}

// restoreVolume writes one volume to its file.
func restoreVolume(ctx context.Context, view *journal.View, t target, q control.RestoreRequest, progress func(control.Progress)) (control.RestoredFile, error) {
	o := recovery.RestoreOptions{Format: recovery.Raw, Sparse: q.Format == control.FormatSparse, Overwrite: q.Overwrite}
	switch q.Format {
	case control.FormatRaw, control.FormatSparse:
	case control.FormatQCOW2:
		o.Format = recovery.QCOW2
	default:
		return control.RestoredFile{}, fault.New(fault.Usage, "restore "+q.Group, "format %q is none of raw, sparse, qcow2", q.Format)
	}
	o.Progress = func(step string, done, total int64) {
		progress(control.Progress{Step: step + " " + t.volume.Name, Done: done, Total: total})
	}
	r, err := recovery.Restore(ctx, view, t.volume, t.path, o)
	return control.RestoredFile{Volume: t.volume.Name, Path: r.Path, Format: q.Format, Bytes: r.Bytes, Data: r.Data, SHA256: r.SHA256, Verified: err == nil}, err
}
