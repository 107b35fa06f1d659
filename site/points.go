package site

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// parseAt reads an --at; spans back may have days, weeks and years: -7d.
func parseAt(at string) (journal.At, error) {
	text := at
	if back, ok := strings.CutPrefix(at, "-"); ok {
		var d config.Duration
		if d.UnmarshalText([]byte(back)) == nil {
			text = "-" + time.Duration(d).String()
		}
	}
	a, err := journal.ParseAt(text)
	if err != nil {
		return a, fault.Wrap(fault.AtSyntax, fmt.Sprintf("read --at %q", at), err)
	}
	return a, nil
}

// resolve finds the point that at means.
func resolve(ctx context.Context, j *journal.Journal, at string) (journal.Point, error) {
	a, err := parseAt(at)
	if err != nil {
		return journal.Point{}, err
	}
	return resolveAt(ctx, j, a)
}

func resolveAt(ctx context.Context, j *journal.Journal, a journal.At) (journal.Point, error) {
	p, err := j.Resolve(ctx, a)
	if err == nil {
		return p, nil
	}
	at := a.String()
	f := explain("resolve "+at, err)
	var nowhere *journal.NoPointError
	if errors.As(err, &nowhere) {
		n := nearest(ctx, j, at, time.Now())
		if nowhere.Before != nil {
			n.before = nowhere.Before
		}
		if text := n.String(); text != "" {
			f = fault.Of(f).Advise("The nearest points that are there: %s. point list shows all.", text)
		}
	}
	return journal.Point{}, f
}

// pointAt is the point at seq; epoch 0 means the current lineage.
func pointAt(ctx context.Context, j *journal.Journal, epoch uint64, seq journal.Seq) (journal.Point, error) {
	at := fmt.Sprintf("#%d", seq)
	if epoch != 0 {
		at = fmt.Sprintf("#%d.%d", epoch, seq)
	}
	return resolve(ctx, j, at)
}

func pointOf(p journal.Point) control.Point {
	out := control.Point{Epoch: p.Number, Seq: uint64(p.Seq), Time: p.Time}
	for _, m := range p.Marks {
		out.Marks = append(out.Marks, control.Mark{Name: m.Name, App: m.App, Pin: m.Pin, Note: m.Note})
	}
	for _, v := range p.Volumes {
		out.Volumes = append(out.Volumes, v.String())
	}
	return out
}

// Points implements control.API.
func (s *Site) Points(ctx context.Context, q control.PointsQuery) (control.Points, error) {
	out := control.Points{Group: q.Group, Time: s.o.Now(), Kept: []control.Stretch{}, Spans: []control.Span{}, Gaps: []control.Gap{}, Marks: []control.Point{}, Pins: []control.Pin{}, Changes: []control.Change{}}
	g, err := s.group(q.Group)
	if err != nil {
		return out, err
	}
	out.Group = g.cfg.Ref()
	l, release, err := s.open(ctx, g)
	if err != nil {
		return out, explain("list points of "+out.Group, err)
	}
	defer release()
	if q.At != "" {
		p, err := resolve(ctx, l.j, q.At)
		if err != nil {
			return out, err
		}
		c := pointOf(p)
		out.Resolved = &c
	}
	// Asked before the spans, as in groupStatus: the last life's end is open to the
	// journal until the next epoch begins, and nothing is captured meanwhile.
	reigns := l.reigning() != nil
	past, err := l.past(ctx, q.From, q.To)
	if err != nil {
		return out, explain("list points of "+out.Group, err)
	}
	if out.Spans, err = past.ranges(ctx, l.j, q.From, q.To, reigns); err != nil {
		return out, err
	}
	out.Kept = past.stretches(out.Spans)
	if out.Pins, err = l.pins(); err != nil {
		return out, explain("list points of "+out.Group, err)
	}
	if q.Branches {
		if out.Abandoned, err = l.abandoned(ctx); err != nil {
			return out, explain("list branches of "+out.Group, err)
		}
	}
	if out.Skipped, err = l.skipped(ctx, true); err != nil {
		return out, explain("list points of "+out.Group, err)
	}
	if out.Suspect, err = l.suspicions(); err != nil {
		return out, explain("list points of "+out.Group, err)
	}
	return out, explain("list points of "+out.Group, listHappenings(ctx, l.j, q, &out))
}

// bare is a point without what a span's end does not need.
func bare(p journal.Point) control.Point {
	return control.Point{Epoch: p.Number, Seq: uint64(p.Seq), Time: p.Time}
}

func listHappenings(ctx context.Context, j *journal.Journal, q control.PointsQuery, out *control.Points) error {
	hs, err := j.Happenings(ctx, q.From, q.To)
	if err != nil {
		return err
	}
	names := map[cbt.VolumeID]string{}
	for _, v := range j.Parts() {
		names[v.ID] = v.Name
	}
	for _, h := range hs {
		switch h.Kind {
		case journal.KindGap:
			out.Gaps = append(out.Gaps, control.Gap{Epoch: h.Number, Seq: uint64(h.Seq), Time: h.Time, Volume: names[h.Volume], Cause: string(h.Cause), Detail: h.Detail})
		case journal.KindVolume:
			out.Changes = append(out.Changes, control.Change{Epoch: h.Number, Seq: uint64(h.Seq), Time: h.Time, Volume: names[h.Volume], What: h.Detail, Size: h.Size})
		case journal.KindMachine:
			out.Changes = append(out.Changes, control.Change{Epoch: h.Number, Seq: uint64(h.Seq), Time: h.Time, Machine: h.Detail, What: "defined"})
		case journal.KindMark:
			out.Marks = append(out.Marks, control.Point{Epoch: h.Number, Seq: uint64(h.Seq), Time: h.Time,
				Marks: []control.Mark{{Name: h.Mark.Name, App: h.Mark.App, Pin: h.Mark.Pin, Note: h.Mark.Note}}})
		}
	}
	return nil
}

// headVolumes is the disks of a group at its head.
func headVolumes(j *journal.Journal) ([]cbt.Volume, error) {
	h := j.Head()
	if h.Position.IsZero() {
		return nil, nil
	}
	return j.Volumes(journal.Point{Position: h.Position, Number: h.Number})
}

var markName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// CheckMarkName is the fault of a name that no mark and no pin can have.
func CheckMarkName(name string) error {
	if !markName.MatchString(name) {
		return fault.New(fault.MarkName, fmt.Sprintf("name a point %q", name), "the name has characters that it may not have, or is too long")
	}
	return nil
}

// markPatience bounds the wait of a mark for the end of a bitmap cycle.
const markPatience = 30 * time.Second

// Mark implements control.API.
func (s *Site) Mark(ctx context.Context, q control.MarkRequest) (control.Point, error) {
	what := fmt.Sprintf("mark %s as %q", q.Group, q.Name)
	g, err := s.group(q.Group)
	if err != nil {
		return control.Point{}, err
	}
	if !markName.MatchString(q.Name) {
		return control.Point{}, fault.New(fault.MarkName, what, "the name has characters that it may not have, or is too long")
	}
	if !s.running() {
		return control.Point{}, fault.New(fault.NeedsDaemon, what, "a mark is a record of the primary's history")
	}
	l, release, err := g.await(ctx)
	if err != nil {
		return control.Point{}, err
	}
	defer release()
	r := l.reignOf(ctx)
	if r == nil && l.roleNow().Role.Captures() {
		return control.Point{}, fault.New(fault.GroupFailed, what, "its disks are being opened").Advise("Try again in a moment.")
	}
	if r == nil {
		return control.Point{}, fault.New(fault.NotPrimary, what, "the group is %s here", l.roleNow().Role)
	}
	hs, err := l.j.Happenings(ctx, time.Time{}, time.Time{})
	if err != nil {
		return control.Point{}, explain(what, err)
	}
	for _, h := range hs {
		if h.Kind == journal.KindMark && h.Mark.Name == q.Name {
			return control.Point{}, fault.New(fault.MarkName, what, "point #%d.%d has that name already", h.Number, h.Seq)
		}
	}
	var p journal.Point
	set := func(ctx context.Context) (err error) {
		p, err = r.writer.Mark(ctx, journal.Mark{Name: q.Name, App: q.App, Pin: q.Pin, Note: q.Note})
		return err
	}
	if r.tracker != nil {
		at := set
		set = func(ctx context.Context) error {
			ctx, cancel := context.WithTimeoutCause(ctx, markPatience, errors.New("no cycle was closed meanwhile"))
			defer cancel()
			return r.tracker.atPoint(ctx, at)
		}
	}
	if !q.App {
		err = explain(what, set(ctx))
	} else {
		err = l.markQuietly(ctx, what, q.Name, set)
	}
	return pointOf(p), err
}
