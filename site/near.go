package site

import (
	"context"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/site/config"
)

// near is the points next to where none was found.
type near struct{ before, after *journal.Point }

// String is empty where there are none.
func (n near) String() string {
	var parts []string
	for _, x := range []struct {
		word  string
		point *journal.Point
	}{{"before it", n.before}, {"after it", n.after}} {
		if p := x.point; p != nil {
			parts = append(parts, fmt.Sprintf("%s #%d.%d of %s", x.word, p.Number, p.Seq, p.Time.Format(timeLayout)))
		}
	}
	return strings.Join(parts, ", ")
}

// nearest finds the points of the current lineage next to an --at that names a time or
// a record; of another one it finds none. Where points are cannot always be read: then
// fewer are offered, for this is an error's advice.
func nearest(ctx context.Context, j *journal.Journal, at string, now time.Time) (n near) {
	spans, err := j.Spans(ctx)
	if err != nil {
		return n
	}
	point := func(p journal.Position) *journal.Point {
		a, err := journal.ParseAt(fmt.Sprintf("#%d", p.Seq))
		if err != nil {
			return nil
		}
		pt, err := j.Resolve(ctx, a)
		if err != nil {
			return nil
		}
		return &pt
	}
	var later func(i int) bool // whether span i begins after what was asked
	if seq, ok := seqIn(at); ok {
		later = func(i int) bool { return spans[i].First.Seq > seq }
	} else if when, ok := timeIn(at, now); ok {
		later = func(i int) bool {
			p := point(spans[i].First)
			return p != nil && p.Time.After(when)
		}
	} else {
		return n
	}
	i := sort.Search(len(spans), later)
	if i > 0 {
		n.before = point(spans[i-1].Last)
	}
	if i < len(spans) {
		n.after = point(spans[i].First)
	}
	return n
}

// seqIn is the seq of an --at that names one.
func seqIn(at string) (journal.Seq, bool) {
	text, ok := strings.CutPrefix(at, "#")
	if i := strings.LastIndexByte(text, '.'); i >= 0 {
		text = text[i+1:]
	}
	n, err := strconv.ParseUint(text, 10, 64)
	return journal.Seq(n), ok && err == nil
}

// timeIn is the time of an --at that names one.
func timeIn(at string, now time.Time) (time.Time, bool) {
	if back, ok := strings.CutPrefix(at, "-"); ok {
		var d config.Duration
		err := d.UnmarshalText([]byte(back))
		return now.Add(-time.Duration(d)), err == nil
	}
	t, err := time.Parse(time.RFC3339Nano, at)
	return t, err == nil
}
