package site

import (
	"context"
	"fmt"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// noteKey is where the site log keeps what was said about a pin.
func noteKey(pin string) string { return "pin-note/" + pin }

// Pin implements control.API. It needs the daemon: only it can keep the point.
func (s *Site) Pin(ctx context.Context, q control.PinRequest) (control.Pin, error) {
	what := fmt.Sprintf("pin a point of %s as %q", q.Group, q.Name)
	if !markName.MatchString(q.Name) {
		return control.Pin{}, fault.New(fault.MarkName, what, "the name has characters that it may not have, or is too long")
	}
	l, release, err := s.forPins(ctx, q.Group, what)
	if err != nil {
		return control.Pin{}, err
	}
	defer release()
	pins, err := l.j.Pins()
	if err != nil {
		return control.Pin{}, explain(what, err)
	}
	for _, p := range pins {
		if p.Name == q.Name {
			return control.Pin{}, fault.New(fault.MarkName, what, "it pins point #%d.%d already", p.Number, p.At.Seq)
		}
	}
	p, err := resolve(ctx, l.j, q.At)
	if err != nil {
		return control.Pin{}, err
	}
	if err := l.j.Remember(noteKey(q.Name), q.Note); err != nil {
		return control.Pin{}, explain(what, err)
	}
	pin, err := l.j.Pin(ctx, q.Name, p, q.Diff)
	if err != nil {
		return control.Pin{}, explain(what, err)
	}
	s.o.Log.Info("point pinned", "group", l.cfg.Ref(), "pin", q.Name, "point", p.String(), "diff", q.Diff)
	return l.pinOf(pin), nil
}

// Unpin implements control.API.
func (s *Site) Unpin(ctx context.Context, q control.UnpinRequest) (control.Pin, error) {
	what := fmt.Sprintf("unpin %q of %s", q.Name, q.Group)
	l, release, err := s.forPins(ctx, q.Group, what)
	if err != nil {
		return control.Pin{}, err
	}
	defer release()
	pins, err := l.j.Pins()
	if err != nil {
		return control.Pin{}, explain(what, err)
	}
	var out control.Pin
	for _, p := range pins {
		if p.Name == q.Name {
			out = l.pinOf(p)
		}
	}
	if err := l.j.Unpin(q.Name); err != nil {
		return control.Pin{}, explain(what, err)
	}
	s.o.Log.Info("pin let go", "group", l.cfg.Ref(), "pin", q.Name)
	return out, nil
}

func (s *Site) forPins(ctx context.Context, name, what string) (*life, func(), error) {
	g, err := s.group(name)
	if err != nil {
		return nil, nil, err
	}
	if !s.running() {
		return nil, nil, fault.New(fault.NeedsDaemon, what, "pins are kept by the daemon")
	}
	return g.await(ctx)
}

func (l *life) pinOf(p journal.Pin) control.Pin {
	out := control.Pin{Name: p.Name, Point: control.Point{Epoch: p.Number, Seq: uint64(p.At.Seq), Time: p.Time}, Diff: p.Diff, Since: p.Made}
	if _, err := l.j.Recall(noteKey(p.Name), &out.Note); err != nil {
		l.site.o.Log.Warn("recall the note of a pin", "group", l.cfg.Ref(), "pin", p.Name, "err", err)
	}
	return out
}

// pins lists the pins of this site.
func (l *life) pins() ([]control.Pin, error) {
	all, err := l.j.Pins()
	out := []control.Pin{}
	for _, p := range all {
		out = append(out, l.pinOf(p))
	}
	return out, err
}
