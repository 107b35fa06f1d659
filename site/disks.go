package site

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/embedded"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/site/fault"
)

// openImage opens an embedded volume; when it returns, image and head are equal
// and the volume's interval is open.
func (l *life) openImage(ctx context.Context, r *reign, v cbt.Volume, path string) (*disk, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fault.Wrap(fault.ImageTrouble, "make the directory of "+path, err)
	}
	d, err := embedded.New(ctx, embedded.Options{Volume: v, Image: path, Sink: l.watch(r), History: history{l.j}, Memory: l.j,
		Progress: func(step string, done, total int64) { l.levelled(step+" "+v.Name, done, total) }, Log: l.site.o.Log.With("group", l.cfg.Ref())})
	if err != nil {
		return nil, err
	}
	return &disk{volume: v, kind: kindEmbedded, device: d, run: d.Run, status: l.statusOf(v, d.Protected), close: d.Close, checkpoint: d.Checkpoint}, nil
}

// openFromJournal opens a volume that has no image here: after a failover. The
// fork's point is what it holds, so its interval opens at once.
func (l *life) openFromJournal(ctx context.Context, r *reign, v cbt.Volume) (*disk, error) {
	m, err := l.movedNow(l.roleNow())
	if err != nil {
		return nil, err
	}
	if path := m.Images[v.ID.String()]; path != "" {
		return l.openMoved(ctx, r, v, path, m.Devices[v.ID.String()])
	}
	d := embedded.NewJournaled(v, l.watch(r))
	p, err := r.writer.Record(ctx, cbt.Event{Kind: cbt.EventSynced, Volume: v.ID})
	if err == nil {
		err = p.Wait(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("open interval: %w", err)
	}
	return &disk{volume: v, kind: kindJournal, device: d, run: d.Run, status: l.statusOf(v, d.Protected), close: d.Close}, nil
}

// statusOf tells of a disk that this site serves what a tracker tells of a tapped one.
func (l *life) statusOf(v cbt.Volume, protected func() bool) func() cbt.VolumeStatus {
	since := l.site.o.Now()
	return func() cbt.VolumeStatus {
		if protected() {
			return cbt.VolumeStatus{Volume: v, State: cbt.StateSynced, Since: since}
		}
		return cbt.VolumeStatus{Volume: v, State: cbt.StateBroken, Since: since, Cause: cbt.CauseDiskFull, Detail: "the journal has no room; the disk is served without it"}
	}
}

// history is what an embedded volume asks of its journal.
type history struct{ j *journal.Journal }

var _ embedded.History = history{}

// Head implements embedded.History.
func (h history) Head() embedded.Place {
	p := h.j.Head().Position
	return embedded.Place{Epoch: p.Epoch.String(), Seq: uint64(p.Seq)}
}

func positionOf(p embedded.Place) (journal.Position, error) {
	var e journal.EpochID
	err := e.UnmarshalText([]byte(p.Epoch))
	return journal.Position{Epoch: e, Seq: journal.Seq(p.Seq)}, err
}

// Holds implements embedded.History.
func (h history) Holds(p embedded.Place) bool {
	at, err := positionOf(p)
	l := h.j.Lineage()
	if err != nil || !l.Holds(at) {
		return false
	}
	end, ok := endOf(h.j.Branches(), at.Epoch)
	return ok && l.Holds(end)
}

// Changed implements embedded.History.
func (h history) Changed(ctx context.Context, from embedded.Place, v cbt.VolumeID) ([]cbt.Extent, error) {
	at, err := positionOf(from)
	if err != nil {
		return nil, err
	}
	end, ok := endOf(h.j.Branches(), at.Epoch)
	if !ok {
		return nil, fmt.Errorf("epoch %s: %w", at.Epoch.Short(), journal.ErrNoPoint)
	}
	changed, err := h.j.Diff(ctx, end, h.j.Head().Position)
	if err != nil {
		return nil, err
	}
	return changed[v], nil
}

// endOf is the last record of an epoch.
func endOf(branches []journal.Branch, e journal.EpochID) (journal.Position, bool) {
	for _, b := range branches {
		if b.ID == e {
			return b.Last.Position, b.Last.Epoch == e
		}
	}
	return journal.Position{}, false
}

// Replay implements embedded.History.
func (h history) Replay(ctx context.Context, after embedded.Place, each func(cbt.Event) error) error {
	at, err := positionOf(after)
	if err != nil {
		return err
	}
	err = h.j.Replay(ctx, at, func(_ journal.Seq, ev cbt.Event) error { return each(ev) })
	if errors.Is(err, journal.ErrReclaimed) {
		return fmt.Errorf("%w: %w", embedded.ErrThinned, err)
	}
	return err
}

// awaited is a journal whose loop starts beside us: an epoch begins once it runs.
type awaited struct{ *journal.Journal }

// BeginEpoch is the journal's, and waits for its loop.
func (a awaited) BeginEpoch(ctx context.Context, site string, parent journal.Position, atLeast uint64) (*journal.Writer, error) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		w, err := a.Journal.BeginEpoch(ctx, site, parent, atLeast)
		if err == nil || !isStarting(err) {
			return w, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
