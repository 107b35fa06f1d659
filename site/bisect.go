package site

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// search is a group's bisection as it is kept, in a file of its own: a site that only
// reads keeps one too.
type search struct {
	recovery.Bisection
	Check  string    `json:"check"`
	Volume string    `json:"volume,omitempty"`
	Since  time.Time `json:"since"`
}

func (s *Site) searchFile(g *group) string {
	return filepath.Join(s.cfg.Data, "bisect", named("bisect", g.cfg.Tenant, g.cfg.Name).Short()+".json")
}

// Bisect implements control.API.
func (s *Site) Bisect(ctx context.Context, q control.BisectRequest) (control.Bisection, error) {
	what := "bisect " + q.Group
	g, err := s.group(q.Group)
	if err != nil {
		return control.Bisection{}, err
	}
	l, release, err := s.open(ctx, g)
	if err != nil {
		return control.Bisection{}, err
	}
	defer release()
	s.searching.Lock()
	defer s.searching.Unlock()
	x, resumed, err := s.searchFor(ctx, l, q)
	if err != nil {
		return control.Bisection{}, explain(what, err)
	}
	spans, err := l.j.SpansTo(ctx, x.Bad)
	if err != nil {
		return control.Bisection{}, explain(what, err)
	}
	if q.Tried != nil {
		lineage, err := journal.LineageOf(l.j.Branches(), x.Bad.Epoch)
		if err != nil {
			return control.Bisection{}, explain(what, err)
		}
		if err := x.take(*q.Tried, lineage, s.o.Now()); err != nil {
			return control.Bisection{}, err
		}
	}
	if !resumed || q.Tried != nil {
		if err := s.keepSearch(g, x); err != nil {
			return control.Bisection{}, fault.Wrap(fault.FileTrouble, what, err)
		}
	}
	h, err := x.Step(spans)
	if err != nil {
		return control.Bisection{}, explain(what, err)
	}
	out := control.Bisection{Group: g.cfg.Ref(), Check: x.Check, Volume: x.Volume, Since: x.Since, Resumed: resumed && q.Tried == nil && len(x.Tries) > 0, Tries: []control.BisectTry{},
		Between: h.Between, Left: h.Left, Exact: h.Exact}
	numbers := epochNumbers(l.j)
	point := func(p journal.Position) control.Point {
		if pt, err := pointAt(ctx, l.j, numbers[p.Epoch], p.Seq); err == nil {
			return pointOf(pt)
		}
		return control.Point{Epoch: numbers[p.Epoch], Seq: uint64(p.Seq)} // thinned since
	}
	out.Good, out.Bad, out.LastGood, out.FirstBad = point(x.Good), point(x.Bad), point(h.LastGood), point(h.FirstBad)
	for _, t := range x.Tries {
		out.Tries = append(out.Tries, control.BisectTry{Point: control.Point{Epoch: t.Number, Seq: uint64(t.At.Seq)}, Verdict: string(t.Verdict), Exit: t.Exit, Seconds: t.Seconds})
	}
	if !h.Next.IsZero() {
		next := point(h.Next)
		out.Next = &next
	}
	out.Why = whyInexact(h)
	return out, nil
}

// whyInexact says what lies between the last good point and the first bad one.
func whyInexact(h recovery.Halved) string {
	why := ""
	if h.Next.IsZero() && !h.Exact {
		n := uint64(h.FirstBad.Seq - h.LastGood.Seq - 1)
		why = fmt.Sprintf("%d records lie between the two of which no point is left: history was thinned there, or has a gap", n)
		if h.Skipped > 0 {
			why = fmt.Sprintf("the check could not tell of %d points between the two", h.Skipped)
		}
	}
	if h.Moody {
		why = joined(why, "the check called a point good that lies behind a bad one: what it looks for comes and goes")
	}
	return why
}

func joined(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// searchFor is the search that q is about: the one that was begun, if it is that.
func (s *Site) searchFor(ctx context.Context, l *life, q control.BisectRequest) (search, bool, error) {
	good, err := resolve(ctx, l.j, q.Good)
	if err != nil {
		return search{}, false, err
	}
	bad, err := resolve(ctx, l.j, q.Bad)
	if err != nil {
		return search{}, false, err
	}
	if s.running() { // branches are known to their durable ends
		if err := l.j.WaitDurable(ctx, bad.Position); err != nil {
			return search{}, false, err
		}
	}
	if lineage, err := journal.LineageOf(l.j.Branches(), bad.Epoch); err != nil {
		return search{}, false, err
	} else if !lineage.Until(bad.Seq).Holds(good.Position) || good.Seq >= bad.Seq {
		return search{}, false, fmt.Errorf("%w: %s, %s", recovery.ErrNotBetween, good, bad)
	}
	fresh := search{Bisection: recovery.Bisection{Good: good.Position, Bad: bad.Position}, Check: q.Check, Volume: q.Volume, Since: s.o.Now()}
	var old search
	b, err := os.ReadFile(s.searchFile(l.group))
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && q.Restart && q.Tried == nil:
		return fresh, false, nil
	case err != nil:
		return fresh, false, err
	case json.Unmarshal(b, &old) != nil: // half of one: nothing is lost but time
		return fresh, false, nil
	}
	if old.Good != fresh.Good || old.Bad != fresh.Bad || old.Check != fresh.Check || old.Volume != fresh.Volume {
		return fresh, false, nil
	}
	return old, true, nil
}

func (x *search) take(t control.BisectTry, lineage journal.Lineage, now time.Time) error {
	v := recovery.Verdict(t.Verdict)
	if !slices.Contains([]recovery.Verdict{recovery.Good, recovery.Bad, recovery.Skip}, v) {
		return fault.New(fault.Usage, "bisect", "verdict %q is none of good, bad, skip", t.Verdict)
	}
	i, ok := lineage.Owner(journal.Seq(t.Point.Seq))
	if !ok || i.Number != t.Point.Epoch {
		return fault.New(fault.PointUnknown, "bisect", "#%d.%d is not in the history that leads to the bad point", t.Point.Epoch, t.Point.Seq)
	}
	x.Tries = append(x.Tries, recovery.Tried{At: journal.Position{Epoch: i.Epoch, Seq: journal.Seq(t.Point.Seq)}, Number: i.Number, Verdict: v, Exit: t.Exit, Seconds: t.Seconds, Time: now})
	return nil
}

// keepSearch makes x durable.
func (s *Site) keepSearch(g *group, x search) error {
	b, err := json.MarshalIndent(x, "", "  ")
	if err != nil {
		return err
	}
	file := s.searchFile(g)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(file+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}
