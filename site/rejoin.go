package site

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// A replica that has thinned the record at which the group's history left its own cannot
// go on from there. It is refused for ever, until a person has it rejoin:
//
//  1. a journal is made that begins with the newest point which both histories hold, taken
//     from the one here (journal.OpenPast), or with nothing where there is none;
//  2. the order to change the two is durable (aside.go), and the life ends;
//  3. the next one sets the old journal aside, where it can be read, and opens the new
//     one, to which the peer sends what differs.
//
// Before 2 nothing has happened; after it, it will.

// stuck is err, and where the history here was thinned, what helps.
func (l *life) stuck(err error) error {
	if !errors.Is(err, journal.ErrReclaimed) {
		return err
	}
	return fmt.Errorf("%w: at site %s, group rejoin %s begins again with the newest point that both hold", err, l.site.cfg.Site, l.cfg.Name)
}

// rejoining is what a rejoin begins with.
type rejoining struct {
	peer   string
	common journal.Cursor
	from   journal.Keep // zero: nothing
}

// rejoinPlan says what it means to begin again with what is in common.
func (l *life) rejoinPlan(ctx context.Context, d *control.Decision) (rejoining, error) {
	var out rejoining
	what := "rejoin " + d.Group
	r := l.roleNow()
	if r.Role.Captures() {
		return out, fault.New(fault.NotReplica, what, "the group is %s here", r.Stage()).Advise("Run the command at the replica that is refused.")
	}
	theirs, err := l.leader(ctx, &out)
	if err != nil {
		return out, err
	}
	head, ours := l.j.Head(), l.j.Branches()
	rel, err := journal.Relate(ours, head.Epoch, theirs.Branches, theirs.Head.Epoch)
	if err != nil {
		return out, err
	}
	out.common = rel.Common
	switch {
	case head.IsZero() || rel.Kind == journal.Same || rel.Kind == journal.PeerAhead:
		d.Refused = append(d.Refused, "nothing here stands in the way of "+out.peer+": the group follows by itself")
	case rel.Kind == journal.PeerBehind:
		d.Refused = append(d.Refused, out.peer+" holds less than this site")
	case rel.Kind == journal.Diverged && !rel.OurTail && r.Left == nil:
		d.Refused = append(d.Refused, "the histories exclude each other: failover resolve decides which is kept")
	case newest(ours) >= theirs.Number && find(ours, theirs.Head.Epoch) == nil:
		d.Refused = append(d.Refused, fmt.Sprintf("epoch %d of %s is not above epoch %d here: failover reprotect there first", theirs.Number, out.peer, newest(ours)))
	case !rel.Common.IsZero() && !l.thinned(ctx, rel.Common.Position):
		d.Refused = append(d.Refused, fmt.Sprintf("record %d, the last that both hold, is a point here: the group follows by itself", rel.Common.Seq))
	}
	if out.from, err = l.newestCommon(ctx, rel.Common); err != nil {
		return out, err
	}
	return out, l.tellRejoin(d, out, head)
}

// leader is the peer whose history goes on: the primary, or else one that relays it.
func (l *life) leader(ctx context.Context, out *rejoining) (found heads, err error) {
	var errs []error
	for _, peer := range l.cfg.Peers {
		once, cancel := context.WithTimeout(ctx, askLimit)
		h, err := ask[heads](once, l, peer, topicHeads, struct{}{})
		cancel()
		if err != nil {
			errs = append(errs, fmt.Errorf("ask %s: %w", peer, err))
			continue
		}
		if out.peer == "" || h.Role == recovery.Primary {
			found, out.peer = h, peer
		}
	}
	if out.peer == "" {
		return found, errors.Join(append(errs, fmt.Errorf("find the primary: %w", replicator.ErrNotConnected))...)
	}
	return found, nil
}

func newest(bs []journal.Branch) (number uint64) {
	for _, b := range bs {
		number = max(number, b.Number)
	}
	return number
}

func find(bs []journal.Branch, id journal.EpochID) *journal.Branch {
	for i := range bs {
		if bs[i].ID == id {
			return &bs[i]
		}
	}
	return nil
}

// opens reports that the image at a record can be read here.
func (l *life) opens(ctx context.Context, at journal.Position) bool {
	v, err := l.j.View(ctx, journal.Point{Position: at})
	return err == nil && v.Close() == nil
}

// thinned reports that the image at a record was folded away.
func (l *life) thinned(ctx context.Context, at journal.Position) bool {
	v, err := l.j.View(ctx, journal.Point{Position: at})
	if err == nil {
		err = v.Close()
	}
	return errors.Is(err, journal.ErrReclaimed)
}

// newestCommon is the newest point here of what both histories hold.
func (l *life) newestCommon(ctx context.Context, common journal.Cursor) (journal.Keep, error) {
	if common.IsZero() {
		return journal.Keep{}, nil
	}
	keeps, err := l.j.Points(ctx, time.Time{}, time.Time{})
	if err != nil {
		return journal.Keep{}, err
	}
	lineage := l.j.Lineage()
	for _, k := range slices.Backward(keeps) {
		if k.Seq <= common.Seq && lineage.Holds(k.Position) && l.opens(ctx, k.Position) {
			return k, nil
		}
	}
	return journal.Keep{}, nil
}

func (l *life) tellRejoin(d *control.Decision, r rejoining, head journal.Head) error {
	name, err := l.nextAside()
	if err != nil {
		return err
	}
	used := l.j.Usage()
	d.Aside = name
	d.Steps = append(d.Steps, fmt.Sprintf("set aside: the history here up to #%d.%d, %s, is kept as %s and can be read: point list %s", head.Number, head.Seq, bytesText(used.Used), name, name))
	if r.from.IsZero() {
		d.Steps = append(d.Steps, "begin: with nothing, for no point here lies in both histories", "follow: "+r.peer+" sends the whole of the group")
	} else {
		c := pointOf(r.from.Point)
		d.Fork = &c
		d.Steps = append(d.Steps, fmt.Sprintf("begin: with point #%d.%d, read here", r.from.Number, r.from.Seq),
			fmt.Sprintf("follow: %s sends what differs since that point, and nothing else", r.peer))
	}
	pins, err := l.j.Pins()
	if err != nil {
		return err
	}
	for _, p := range pins {
		d.Warnings = append(d.Warnings, fmt.Sprintf("pin %s stays with what is set aside", p.Name))
	}
	d.Warnings = append(d.Warnings, "points older than that are in what is set aside alone, which counts towards no quota and is never thinned; remove "+l.asideDir(name)+" when nobody needs it")
	return nil
}

// carriedKeys name what this site knows of itself and its peers, not of the
// history that is set aside.
func (l *life) carriedKeys() []string {
	keys := []string{recovery.RoleKey, bootKey, revokedKey}
	for _, t := range l.cfg.Taps() {
		keys = append(keys, domainKey(t))
		for _, v := range t.Volumes {
			keys = append(keys, driveKey(volumeOf(l.cfg, v).ID))
		}
	}
	for _, p := range l.j.Parts() { // also of disks that no configuration lists
		keys = append(keys, driveKey(p.ID))
	}
	for _, peer := range l.cfg.Peers {
		keys = append(keys, headKey(peer), begunKey(peer))
	}
	return keys
}

// carryOwed takes over what is still owed to a domain's autostart. A start is not: nobody
// starts here what another site runs.
func (l *life) carryOwed(to *journal.Journal) error {
	var was stoppedFor
	if ok, err := l.j.Recall(stoppedKey, &was); err != nil || !ok || was.Tapped == nil {
		return err
	}
	was.Machine, was.Halted = "", false
	return to.Remember(stoppedKey, was)
}

// rejoin makes the journal to go on with, and has the next life open it.
func (l *life) rejoin(ctx context.Context, d *control.Decision, operator string) error {
	again := control.Decision{Group: d.Group}
	r, err := l.rejoinPlan(ctx, &again)
	if err != nil {
		return err
	}
	if len(again.Refused) > 0 || again.Aside != d.Aside {
		return fault.New(fault.PlanStale, "rejoin "+d.Group, "what it means has changed meanwhile").With(again)
	}
	was := l.roleNow()
	if err := l.beginAgain(ctx, r.from.Position); err != nil {
		return err
	}
	if err := l.claimFailover(); err != nil {
		return err
	}
	defer l.releaseFailover()
	if now := l.roleNow(); now.Stage() != was.Stage() {
		return fault.New(fault.PlanStale, "rejoin "+d.Group, "the group is %s here by now", now.Stage())
	}
	if err := l.orderAside(d.Aside); err != nil {
		return err
	}
	l.site.o.Log.Warn("history is set aside to rejoin", "group", l.cfg.Ref(), "peer", r.peer, "from", r.from.Position.String(), "as", d.Aside, "operator", operator)
	l.next()
	return nil
}

// beginAgain makes a journal beside this one that begins with a point of it.
func (l *life) beginAgain(ctx context.Context, at journal.Position) (err error) {
	dir := l.nextDir()
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700)); err != nil {
		return fault.Wrap(fault.FileTrouble, "make "+dir, err)
	}
	j, err := journal.Open(dir, l.options(l.keys))
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	var g errgroup.Group
	g.Go(func() error { return j.Run(running) })
	defer func() {
		stop()
		err = errors.Join(err, g.Wait(), j.Close())
	}()
	if !at.IsZero() {
		if err := l.carryPast(ctx, j, at); err != nil {
			return err
		}
	}
	for _, key := range l.carriedKeys() {
		var v json.RawMessage
		if ok, err := l.j.Recall(key, &v); err != nil || !ok {
			if err != nil {
				return err
			}
			continue
		}
		if err := j.Remember(key, v); err != nil {
			return err
		}
	}
	return l.carryOwed(j)
}

// carryPast takes a point of this journal over into an empty one.
func (l *life) carryPast(ctx context.Context, to *journal.Journal, at journal.Position) error {
	past, err := l.j.OpenPast(ctx, at)
	if err != nil {
		return err
	}
	defer past.Close()
	landing, err := to.OpenLanding(ctx, journal.Position{}, nil)
	for isStarting(err) && pauseFor(ctx, arrivalLook) == nil {
		landing, err = to.OpenLanding(ctx, journal.Position{}, nil)
	}
	if err != nil {
		return err
	}
	defer landing.Close()
	r, w := io.Pipe()
	var g errgroup.Group
	g.Go(func() error {
		err := past.Write(ctx, w, landing.Place())
		return errors.Join(err, w.CloseWithError(err))
	})
	_, err = landing.Take(ctx, r, past.To())
	return errors.Join(err, r.CloseWithError(err), g.Wait())
}
