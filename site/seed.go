package site

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// A seed brings a group's first copy to a peer by other means than the link: the
// source exports a file, the peer imports it before anything was sent to it, and
// replication goes on from the record that the seed leads to.

// ExportSeed implements control.API. The file appears whole, or not at all.
func (s *Site) ExportSeed(ctx context.Context, q control.SeedExport, progress func(control.Progress)) (control.Seed, error) {
	what := "export a seed of " + q.Group + " to " + q.To
	began := s.o.Now()
	g, err := s.group(q.Group)
	if err != nil {
		return control.Seed{}, err
	}
	if _, err := os.Lstat(q.To); err == nil && !q.Overwrite {
		return control.Seed{}, fault.New(fault.FileExists, what, "%s is there", q.To)
	}
	l, release, err := s.open(ctx, g)
	if err != nil {
		return control.Seed{}, err
	}
	defer release()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(l.ctx, func() { cancel(errDetached) })()
	var made journal.Seed
	err = writeWhole(q.To, func(f io.Writer) (err error) {
		w := &told{w: f, step: "export", progress: progress, now: s.o.Now}
		made, err = l.j.ExportSeed(ctx, w, journal.Seed{Tenant: g.cfg.Tenant, Group: g.cfg.Name, Site: s.cfg.Site})
		return err
	})
	if err != nil {
		return control.Seed{}, explain(what, err)
	}
	s.o.Log.Info("seed exported", "group", g.cfg.Ref(), "file", q.To, "to", made.To.Position.String(), "bytes", made.Bytes)
	return s.seedTold(g, q.To, made, began), nil
}

// writeWhole makes a file that is durable under its name, and nobody else's to read.
func writeWhole(path string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // it has another name than what was asked for
		}
	}()
	if err := errors.Join(write(f), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// told tells of what passes through it.
type told struct {
	w        io.Writer
	r        io.ReaderAt
	step     string
	done     int64
	total    int64 // 0: not known
	progress func(control.Progress)
	now      func() time.Time
	last     time.Time
}

func (t *told) moved(n int) {
	t.done += int64(n)
	if now := t.now(); now.Sub(t.last) >= 200*time.Millisecond {
		t.last = now
		t.progress(control.Progress{Step: t.step, Done: t.done, Total: t.total})
	}
}

func (t *told) Write(p []byte) (int, error) {
	n, err := t.w.Write(p)
	t.moved(n)
	return n, err
}

func (t *told) ReadAt(p []byte, off int64) (int, error) {
	n, err := t.r.ReadAt(p, off)
	t.moved(n)
	return n, err
}

func (s *Site) seedTold(g *group, file string, x journal.Seed, began time.Time) control.Seed {
	return control.Seed{Group: g.cfg.Ref(), File: file, Site: x.Site, Made: x.Made, Bytes: x.Bytes, Epoch: x.To.Epoch.String(), Seq: uint64(x.To.Seq),
		Time: x.Time, Seconds: s.o.Now().Sub(began).Seconds()}
}

// ImportSeed implements control.API.
func (s *Site) ImportSeed(ctx context.Context, q control.SeedImport, progress func(control.Progress)) (control.Seed, error) {
	what := "import the seed " + q.From
	began := s.o.Now()
	if !s.running() {
		return control.Seed{}, fault.New(fault.NeedsDaemon, what, "a group's journal is written by the daemon")
	}
	f, err := os.Open(q.From)
	if err != nil {
		return control.Seed{}, fault.Wrap(fault.FileTrouble, what, err)
	}
	defer func() { _ = f.Close() }() // opened for reading only
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = &fs.PathError{Op: "read", Path: q.From, Err: errors.New("it is no regular file")}
	}
	if err != nil {
		return control.Seed{}, fault.Wrap(fault.FileTrouble, what, err)
	}
	head, err := journal.ReadSeed(io.NewSectionReader(f, 0, fi.Size()))
	if err != nil {
		return control.Seed{}, explain(what, err)
	}
	g := s.seeded(head)
	if g == nil {
		return control.Seed{}, fault.New(fault.GroupUnknown, what, "it is of group %s/%s of site %s, which is not configured here", head.Tenant, head.Group, head.Site)
	}
	l, release, err := g.await(ctx)
	if err != nil {
		return control.Seed{}, err
	}
	defer release()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(l.ctx, func() { cancel(errDetached) })()
	if r := l.roleNow().Role; r.Captures() {
		return control.Seed{}, fault.New(fault.NotReplica, what, "group %s is %s here", g.cfg.Ref(), r)
	}
	// It is read once to be checked, and once to be taken in.
	in := &told{r: f, step: "import", total: 2 * fi.Size(), progress: progress, now: s.o.Now}
	taken, err := l.j.ImportSeed(ctx, in, fi.Size())
	if err != nil {
		return control.Seed{}, explain(what, err)
	}
	s.o.Log.Info("seed imported", "group", g.cfg.Ref(), "file", q.From, "to", taken.To.Position.String())
	if s.repl != nil {
		s.repl.Refresh()
	}
	return s.seedTold(g, q.From, taken, began), nil
}

// seeded is the group that a seed is of, or nil.
func (s *Site) seeded(x journal.Seed) *group {
	for _, g := range s.groups {
		if g.id == x.Identity {
			return g
		}
	}
	return nil
}
