package journal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// At is a parsed --at: which point is meant, before any journal is asked.
type At struct {
	text   string
	kind   atKind
	back   time.Duration
	when   time.Time // of atBack: from when it counts, zero: now
	name   string
	number uint64 // of the epoch; 0 for the current lineage
	seq    Seq
}

type atKind uint8

const (
	atLatest atKind = iota
	atLatestApp
	atBack
	atTime
	atName
	atBefore
	atSeq
)

// String is what ParseAt was given.
func (a At) String() string { return a.text }

// ParseAt reads latest, latest-app, -5m, an RFC 3339 time, name:X, before:X, #SEQ
// (in the current lineage) or #EPOCH.SEQ. Anything else wraps ErrBadAt.
func ParseAt(s string) (At, error) {
	a := At{text: s}
	var err error
	switch {
	case s == "latest":
	case s == "latest-app":
		a.kind = atLatestApp
	case strings.HasPrefix(s, "-"):
		a.kind = atBack
		a.back, err = time.ParseDuration(s[1:])
		if err == nil && a.back < 0 {
			err = errors.New("a duration back in time has one minus sign")
		}
	case strings.HasPrefix(s, "name:"):
		a.kind, a.name = atName, s[len("name:"):]
	case strings.HasPrefix(s, "before:"):
		a.kind, a.name = atBefore, s[len("before:"):]
	case strings.HasPrefix(s, "#"):
		a.kind = atSeq
		err = a.parseSeq(s[1:])
	default:
		a.kind = atTime
		a.when, err = time.Parse(time.RFC3339Nano, s)
	}
	if err == nil && (a.kind == atName || a.kind == atBefore) && a.name == "" {
		err = errors.New("a name is missing")
	}
	if err != nil {
		return At{}, fmt.Errorf("parse %q: %w (latest, latest-app, -5m, 2026-11-22T10:00:00+01:00, name:X, before:X, #SEQ or #EPOCH.SEQ): %w", s, ErrBadAt, err)
	}
	return a, nil
}

// Since is a with a span back counted from now, whenever it is resolved: journals that
// are asked one after the other then mean the same instant.
func (a At) Since(now time.Time) At {
	if a.kind == atBack {
		a.when = now
	}
	return a
}

// Moves reports that a means another point as more is written: latest, latest-app.
func (a At) Moves() bool { return a.kind == atLatest || a.kind == atLatestApp }

func (a *At) parseSeq(s string) error {
	epoch, seq, both := strings.Cut(s, ".")
	if !both {
		epoch, seq = "", s
	}
	n, err := strconv.ParseUint(seq, 10, 64)
	if err == nil && both {
		a.number, err = strconv.ParseUint(epoch, 10, 64)
	}
	a.seq = Seq(n)
	if err == nil && (n == 0 || (both && a.number == 0)) {
		err = errors.New("epochs and seqs begin with 1")
	}
	return err
}

// Resolve finds the point that a means. Where there is none it returns a
// *NoPointError, which says why and what is nearest before.
func (j *Journal) Resolve(ctx context.Context, a At) (Point, error) {
	p, err := steady(j, func() (Point, error) { return j.resolve(ctx, a) })
	var no *NoPointError
	if errors.As(err, &no) {
		no.At = a.text
		return Point{}, no
	}
	if err != nil {
		return Point{}, fmt.Errorf("resolve %s: %w", a, err)
	}
	return p, nil
}

func (j *Journal) resolve(ctx context.Context, a At) (Point, error) {
	l, err := j.settled(ctx)
	if err != nil {
		return Point{}, err
	}
	if len(l) == 0 {
		return Point{}, &NoPointError{Why: "the journal is empty"}
	}
	switch a.kind {
	case atLatest:
		return j.newestUpTo(ctx, l, lastOf(l).Seq)
	case atBack:
		now := a.when
		if now.IsZero() {
			now = j.o.Now()
		}
		return j.atTime(ctx, l, now.Add(-a.back))
	case atTime:
		if err := j.afterAll(ctx, l, a.when); err != nil {
			return Point{}, err
		}
		return j.atTime(ctx, l, a.when)
	case atSeq:
		return j.atSeq(ctx, l, a)
	}
	s, ok, err := j.findMark(l, a)
	if err != nil {
		return Point{}, err
	}
	if !ok {
		return Point{}, &NoPointError{Why: "no such mark in this lineage"}
	}
	if a.kind == atBefore {
		return j.newestUpTo(ctx, l, s-1)
	}
	i, _ := l.Owner(s)
	return j.pointAt(ctx, Position{i.Epoch, s})
}

// newestUpTo is the newest point of l not after seq s.
func (j *Journal) newestUpTo(ctx context.Context, l Lineage, s Seq) (Point, error) {
	span, any, err := j.lastSpan(l.Until(s))
	if err != nil {
		return Point{}, err
	}
	if !any {
		return Point{}, &NoPointError{Why: "no volume was synced before it"}
	}
	return j.describe(ctx, span, span.Last)
}

// foreignSlack is by how much a time may lie after the newest that is known and still mean now:
// clocks of two machines differ.
const foreignSlack = time.Minute

// afterAll refuses a time that lies in the future: the newest point would be shown as
// something that it is not.
func (j *Journal) afterAll(ctx context.Context, l Lineage, t time.Time) error {
	t = t.Add(-foreignSlack)
	if !t.After(j.o.Now()) {
		return nil
	}
	e := &NoPointError{Why: "it lies in the future"}
	p, err := j.newestUpTo(ctx, l, lastOf(l).Seq)
	switch {
	case err == nil && !t.After(p.Time): // written by a clock that is ahead of ours
		return nil
	case err == nil:
		e.Before = &p
	case !errors.Is(err, ErrNoPoint):
		return err
	}
	return e
}

// atTime is the point that shows the group as of t; a time inside a gap has none.
// In folded history it is the newest point that is kept and not later than t.
func (j *Journal) atTime(ctx context.Context, l Lineage, t time.Time) (Point, error) {
	p := j.history()
	for k := len(l) - 1; k >= 0; k-- {
		i := l[k]
		if i.First = p.behind(j.ordinalOf(i.Epoch), i.First); i.First > i.Last {
			continue
		}
		s, ok, err := j.seqAt(ctx, i, t)
		if err != nil {
			return Point{}, err
		}
		if ok {
			return j.pointAt(ctx, Position{l[k].Epoch, s})
		}
	}
	if at, ok := j.newestKept(l, t); ok {
		return j.keptAt(ctx, at, t)
	}
	return Point{}, &NoPointError{Why: "the journal begins later"}
}

// keptAt is the kept point at p as what shows the group as of t, unless the points
// around p had ended before t.
func (j *Journal) keptAt(ctx context.Context, p Position, t time.Time) (Point, error) {
	l, err := j.lineageAt(p)
	if err != nil {
		return Point{}, err
	}
	head := j.Lineage() // what came after p, to see when its span ended
	if head.Holds(p) {
		l = head
	}
	spans, err := j.allSpans(l)
	if err != nil {
		return Point{}, err
	}
	for _, s := range spans {
		if s.First.Seq <= p.Seq && p.Seq <= s.Last.Seq && !s.ended.IsZero() && !t.Before(s.ended) && s.Ended != "" {
			e := &NoPointError{Why: fmt.Sprintf("it lies in a gap: %s %s", s.Ended, s.Detail)}
			if b, err := j.pointAt(ctx, p); err == nil {
				e.Before = &b
			}
			return Point{}, e
		}
	}
	return j.pointAt(ctx, p)
}

func (j *Journal) atSeq(ctx context.Context, l Lineage, a At) (Point, error) {
	if a.number == 0 {
		i, ok := l.Owner(a.seq)
		if !ok {
			return Point{}, &NoPointError{Why: fmt.Sprintf("the current lineage ends at record %d", lastOf(l).Seq)}
		}
		return j.pointAt(ctx, Position{i.Epoch, a.seq})
	}
	for _, b := range j.Branches() {
		if b.Number == a.number {
			return j.pointAt(ctx, Position{b.ID, a.seq})
		}
	}
	return Point{}, &NoPointError{Why: fmt.Sprintf("no epoch %d is held here", a.number)}
}

// findMark is the newest mark of a name, or the newest application-consistent one.
// Only records whose bytes hold what is looked for are decoded.
func (j *Journal) findMark(l Lineage, a At) (at Seq, ok bool, err error) {
	holds := []byte(`"app":true`)
	if a.kind != atLatestApp {
		holds = encodeBody(a.name)
	}
	it, err := j.iterate(happenKey(KindMark, 0, 0), happenKey(KindMark+1, 0, 0))
	if err != nil {
		return 0, false, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	ordinals := j.ordinalsOf(l)
	for i := len(l) - 1; i >= 0; i-- {
		for there := it.SeekLT(happenKey(KindMark, ordinals[i], l[i].Last+1)); there; there = it.Prev() {
			ordinal, s := happenedAt(it.Key())
			if ordinal != ordinals[i] || s < l[i].First {
				for i > 0 && ordinals[i-1] > ordinal { // epochs without a mark
					i--
				}
				break
			}
			if !bytes.Contains(it.Value(), holds) {
				continue
			}
			var h happening
			var m Mark
			j.decoded.Add(1)
			if err := errors.Join(json.Unmarshal(it.Value(), &h), decodeBody(h.Body, &m)); err != nil {
				return 0, false, fmt.Errorf("read catalogue: mark record %d: %w", s, err)
			}
			if _, folded, kept := j.keptPoint(Position{l[i].Epoch, s}); a.kind == atLatestApp && folded && !kept {
				continue // an older one may still be there
			}
			if (a.kind == atLatestApp && m.App) || (a.kind != atLatestApp && m.Name == a.name) {
				return s, true, nil
			}
		}
	}
	return 0, false, it.Error()
}
