package site

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// Verify implements control.API: it scrubs a group's journal and, if asked, repairs
// what is damaged with frames of the group's peers.
func (s *Site) Verify(ctx context.Context, q control.VerifyRequest, progress func(control.Progress)) (control.Verified, error) {
	what := "verify " + q.Group
	out := control.Verified{Group: q.Group, Time: s.o.Now(), Found: []control.Damage{}, Left: []control.Damage{}, Invalid: []control.InvalidPoints{}}
	g, err := s.group(q.Group)
	if err != nil {
		return out, err
	}
	out.Group = g.cfg.Ref()
	if q.Repair && !s.running() {
		return out, fault.New(fault.NeedsDaemon, what, "a repair needs a session with a peer")
	}
	peers := g.cfg.Peers
	if q.From != "" {
		if peers, err = onePeer(g.cfg, q.From); err != nil {
			return out, err
		}
	}
	l, release, err := s.open(ctx, g)
	if err != nil {
		return out, err
	}
	defer release()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(l.ctx, func() { cancel(errDetached) })()
	err = l.verify(ctx, q, peers, progress, &out)
	out.Seconds = s.o.Now().Sub(out.Time).Seconds()
	return out, explain(what, err)
}

func onePeer(g config.Group, name string) ([]string, error) {
	for _, p := range g.Peers {
		if p == name {
			return []string{p}, nil
		}
	}
	return nil, fault.New(fault.PeerUnknown, "verify "+g.Ref(), "peer %q is none of the group's", name)
}

// verify scrubs once and repairs from one peer after the other until nothing is left.
func (l *life) verify(ctx context.Context, q control.VerifyRequest, peers []string, progress func(control.Progress), out *control.Verified) error {
	found, err := l.j.Scrub(ctx, journal.Scrub{BytesPerSecond: q.BytesPerSecond, Progress: func(done, total int64) {
		out.Bytes = done
		progress(control.Progress{Step: "verify", Done: done, Total: total})
	}})
	mended := 0
	for i := range found {
		if found[i].Mended {
			mended++
		}
		out.Found = append(out.Found, l.damage(&found[i]))
	}
	if err != nil {
		return err
	}
	repair := q.Repair && len(found) > mended
	if repair { // what needs no peer comes first
		if _, err := l.j.Repair(ctx, nil, nil); err != nil {
			return err
		}
	}
	for _, peer := range peers {
		if !repair || len(l.j.Damages()) == 0 {
			break
		}
		progress(control.Progress{Step: "repair from " + peer})
		r, err := l.j.Repair(ctx, func(ctx context.Context, p journal.Position) ([]byte, error) {
			return l.site.repl.Fetch(ctx, peer, l.j.Identity(), p)
		}, func(ctx context.Context, c journal.Cells) ([]byte, error) {
			return l.site.repl.FetchCells(ctx, peer, l.j.Identity(), c)
		})
		if err != nil {
			return err
		}
		done := control.Repair{Peer: peer, Files: r.Files, Frames: r.Frames, Bytes: r.Bytes}
		if r.Refused != nil {
			done.Error = r.Refused.Error()
		}
		out.Repairs = append(out.Repairs, done)
	}
	if repair { // what counts is what a scrub says of it now
		if found, err = l.j.Scrub(ctx, journal.Scrub{Progress: func(done, total int64) {
			progress(control.Progress{Step: "verify again", Done: done, Total: total})
		}}); err != nil {
			return err
		}
	}
	for i := range found {
		if !found[i].Mended {
			out.Left = append(out.Left, l.damage(&found[i]))
		}
	}
	spoilt, err := l.j.Invalid(ctx)
	for _, r := range spoilt {
		out.Invalid = append(out.Invalid, control.InvalidPoints{First: uint64(r.First.Seq), Last: uint64(r.Last.Seq), Why: r.Damage.String()})
	}
	return err
}

// damage is d as it is shown.
func (l *life) damage(d *journal.DamageError) control.Damage {
	c := control.Damage{First: uint64(d.Seq), Last: uint64(max(d.Seq, d.Last)), File: d.File, Offset: d.Offset, What: d.What, Mended: d.Mended}
	if !d.Epoch.IsZero() {
		c.Epoch = d.Epoch.String()
	}
	if vs, err := l.j.Volumes(journal.Point{Position: l.j.Head().Position}); err == nil {
		for _, v := range vs {
			if v.ID == d.Volume {
				c.Volume = v.Name
			}
		}
	}
	return c
}

// scrub verifies the group's journal again and again, slowly, until ctx ends. Where
// damage is found it is repaired if a peer can; what is left is logged and listed.
func (l *life) scrub(ctx context.Context) {
	scrubs := l.cfg.Scrubs()
	every := time.Duration(scrubs.Every)
	const key = "site/verified"
	var last time.Time
	if _, err := l.j.Recall(key, &last); err != nil {
		l.site.o.Log.Error("recall last scrub", "group", l.cfg.Ref(), "err", err)
	}
	if last.IsZero() { // a new journal is as old as its first opening
		last = l.site.o.Now()
		if err := l.j.Remember(key, last); err != nil {
			return
		}
	}
	for {
		select {
		case <-time.After(max(last.Add(every).Sub(l.site.o.Now()), time.Second)):
		case <-ctx.Done():
			return
		}
		var out control.Verified
		q := control.VerifyRequest{Group: l.cfg.Ref(), Repair: true, BytesPerSecond: int64(scrubs.Rate)}
		err := l.verify(ctx, q, l.cfg.Peers, func(control.Progress) {}, &out)
		last = l.site.o.Now()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			l.site.o.Log.Error("scrub failed", "group", l.cfg.Ref(), "err", err)
		case len(out.Left) > 0:
			l.site.o.Log.Error("damage is left in the journal", "group", l.cfg.Ref(), "code", fault.DamageLeft, "found", len(out.Found), "left", len(out.Left), "first", out.Left[0])
			l.site.meters.failed(fault.DamageLeft)
		default:
			l.site.o.Log.Info("journal verified", "group", l.cfg.Ref(), "bytes", out.Bytes, "repaired", len(out.Found))
		}
		if err := l.j.Remember(key, last); err != nil {
			return // the journal has failed, which ends this life
		}
	}
}

// Recover opens the journal of a group of which durable records are lost, on the word
// of a person: see journal.Options.AcceptLoss. No daemon may run.
func Recover(c *config.Config, o Options, q control.RecoverRequest) (control.Recovered, error) {
	what := "recover " + q.Group
	out := control.Recovered{Group: q.Group, DryRun: q.DryRun, Kept: []string{}}
	s := newSite(c, o.withDefaults())
	g, err := s.group(q.Group)
	if err != nil {
		return out, err
	}
	out.Group = g.cfg.Ref()
	if held(c.Data) {
		return out, fault.New(fault.DaemonTwice, what, "a daemon runs on %s", c.Data).Advise("Stop it first: a journal is cut only while nobody has it open.")
	}
	if _, err := os.Stat(g.dir); err != nil {
		return out, fault.New(fault.JournalAbsent, what, "there is none in %s", g.dir)
	}
	opening := journal.Options{Sync: syncMode(g.cfg.Sync), Now: s.o.Now, Log: s.o.Log}
	j, err := journal.Open(g.dir, opening)
	if err == nil {
		out.Head = uint64(j.Head().Seq)
		return out, explain(what, j.Close())
	}
	if !journal.IsLoss(err) {
		return out, explain(what, err)
	}
	out.Why, out.SiteLog = err.Error(), errors.Is(err, journal.ErrSiteLogLost)
	if q.DryRun {
		return out, nil
	}
	opening.AcceptLoss = true
	if j, err = journal.Open(g.dir, opening); err != nil {
		return out, explain(what, err)
	}
	out.Head = uint64(j.Head().Seq)
	ls, err := j.Losses()
	if n := len(ls); n > 0 {
		for _, name := range ls[n-1].Kept {
			out.Kept = append(out.Kept, filepath.Join(g.dir, "lost", name))
		}
	}
	if lost, unknown, lerr := j.SiteLogLoss(); unknown || lerr != nil {
		out.SiteLog, out.Older, err = true, lost.Older, errors.Join(err, lerr)
	}
	return out, explain(what, errors.Join(err, j.Close()))
}

// FrameFor gives a peer the frame that holds a record; its bytes are in memory, so
// they outlive the call.
func (g guard) FrameFor(ctx context.Context, p journal.Position) (journal.Frame, error) {
	ctx, leave, err := g.enter(ctx)
	if err != nil {
		return journal.Frame{}, err
	}
	defer leave()
	return g.l.j.FrameFor(ctx, p)
}

// StoredCells gives a peer the stored bytes of a part of a record.
func (g guard) StoredCells(ctx context.Context, c journal.Cells) ([]byte, error) {
	ctx, leave, err := g.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	return g.l.j.StoredCells(ctx, c)
}
