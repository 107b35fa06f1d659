package site

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/detect"
)

// watched is a Sink beside which a detector looks at some of the writes. It sees what
// the guest writes, before anything is sealed. On the way of a write it costs a few
// instructions, and for one write in many a copy of 4 KiB; nothing waits for it: where
// nobody takes a sample it is dropped.
type watched struct {
	cbt.Sink
	w *watching
}

// Record implements cbt.Sink.
func (x watched) Record(ctx context.Context, ev cbt.Event) (cbt.Pending, error) {
	if ev.Kind == cbt.EventWrite && len(ev.Data) >= cbt.SectorBytes {
		x.w.look(ev)
	}
	return x.Sink.Record(ctx, ev)
}

// glimpse is a sample on its way to who judges it.
type glimpse struct {
	volume cbt.VolumeID
	at     time.Time
	before journal.Position // the head when it was written
	extent cbt.Extent       // of the write
	off    int64            // of data
	data   []byte
	stands int64
}

// watching looks at a reign's volumes.
type watching struct {
	life   *life
	o      detect.Options
	began  time.Time
	head   journal.Position // when it began
	queue  chan glimpse     // bounded: at most a Meter's samples of a second
	mu     sync.Mutex       // guards below
	meters map[cbt.VolumeID]*detect.Meter
	turn   int64 // where in a write the next sample is taken
}

const (
	glimpses     = 256
	stretch      = time.Second // between two judgements
	suspectsKey  = "detect/suspicions"
	maxSuspicion = 64
	retoldAfter  = 10 // stretches, when there is more of a suspicion that is told
)

// watch puts a detector beside a reign's writes, if the configuration asks for it.
func (l *life) watch(r *reign) cbt.Sink {
	c := l.cfg.Detect
	if c == nil || c.Mode != config.DetectOn {
		return r.writer
	}
	if r.watching == nil {
		r.watching = &watching{life: l, o: detect.Options{After: int64(c.After), Ratio: float64(c.Ratio) / 100}, began: l.site.o.Now(), head: l.j.Head().Position,
			queue: make(chan glimpse, glimpses), meters: map[cbt.VolumeID]*detect.Meter{}}
	}
	return watched{r.writer, r.watching}
}

// look takes a sample of ev, if it is its turn.
func (w *watching) look(ev cbt.Event) {
	w.mu.Lock()
	m := w.meters[ev.Volume]
	if m == nil {
		m = new(detect.Meter)
		w.meters[ev.Volume] = m
	}
	stands, ok := m.Pick(ev.Extent.Length)
	w.turn += 5 * detect.SampleBytes
	turn := w.turn
	w.mu.Unlock()
	if !ok {
		return
	}
	at := int64(0)
	if n := int64(len(ev.Data)) / detect.SampleBytes; n > 1 {
		at = turn / detect.SampleBytes % n * detect.SampleBytes
	}
	p := ev.Data[at:min(at+detect.SampleBytes, int64(len(ev.Data)))]
	select {
	case w.queue <- glimpse{ev.Volume, w.life.site.o.Now(), w.life.j.Head().Position, ev.Extent, ev.Extent.Offset + at, slices.Clone(p), stands}:
	default:
	}
}

// run judges until ctx ends.
func (w *watching) run(ctx context.Context) {
	tick := time.NewTicker(stretch)
	defer tick.Stop()
	vs := map[cbt.VolumeID]*watchedVolume{}
	for {
		select {
		case <-ctx.Done():
			return
		case g := <-w.queue:
			v := vs[g.volume]
			if v == nil {
				v = &watchedVolume{d: detect.New(w.o, w.began, w.head)}
				vs[g.volume] = v
			}
			v.samples = append(v.samples, detect.Sample{Was: w.was(ctx, g), Is: detect.Classify(g.data), StandsFor: g.stands, At: g.at, Before: g.before, Extent: g.extent})
		case <-tick.C:
			for id, v := range vs {
				w.judge(ctx, id, v)
			}
			w.mu.Lock()
			for _, m := range w.meters {
				m.Refill()
			}
			w.mu.Unlock()
			w.life.site.o.passes("judged")
		}
	}
}

// watchedVolume is what one volume's detector is told next.
type watchedVolume struct {
	d       *detect.Detector
	samples []detect.Sample
	told    bool
	seen    detect.Report // the last that was suspect
	kept    int64         // bytes turned, as they are kept
	since   int           // stretches, since they were
}

// was says what the write went over. What cannot be read any more is unknown.
func (w *watching) was(ctx context.Context, g glimpse) detect.Class {
	if g.before.IsZero() {
		return detect.Unknown
	}
	p := make([]byte, len(g.data))
	if err := w.life.j.Peek(ctx, g.before, g.volume, p, g.off); err != nil {
		return detect.Unknown
	}
	return detect.Classify(p)
}

// judge ends a stretch of a volume.
func (w *watching) judge(ctx context.Context, id cbt.VolumeID, v *watchedVolume) {
	r := v.d.Stretch(v.samples)
	v.samples = v.samples[:0]
	v.since++
	if r.Suspect {
		v.seen = r
	}
	var err error
	switch {
	case r.Suspect && !v.told:
		v.told, v.kept, v.since = true, r.Turned, 0
		err = w.tell(ctx, id, r)
	case r.Suspect && r.Turned != v.kept && v.since >= retoldAfter:
		v.kept, v.since = r.Turned, 0
		err = w.retell(id, r, false)
	case !r.Suspect && v.told:
		v.told = false
		err = w.retell(id, v.seen, true)
	}
	if err != nil && ctx.Err() == nil {
		w.life.site.o.Log.Error("a suspicion is not kept", "group", w.life.cfg.Ref(), "volume", id, "err", err)
	}
}

// nameOf is a volume's name.
func (w *watching) nameOf(id cbt.VolumeID) string {
	if vs, err := headVolumes(w.life.j); err == nil {
		if i := slices.IndexFunc(vs, func(v cbt.Volume) bool { return v.ID == id }); i >= 0 {
			return vs[i].Name
		}
	}
	return id.String()
}

// tell keeps a suspicion, with the last clean point pinned.
func (w *watching) tell(ctx context.Context, id cbt.VolumeID, r detect.Report) error {
	l, name := w.life, w.nameOf(id)
	all, err := l.suspicions()
	if err != nil {
		return err
	}
	s := control.Suspicion{Volume: name, Since: r.Since, Usual: r.Usual}
	weigh(&s, r)
	clean, err := l.lastPoint(ctx, r.Clean)
	if err == nil {
		pin := "clean-" + r.Since.UTC().Format("20060102T150405Z")
		if err := l.j.Remember(noteKey(pin), "the last point before volume "+name+" was written as if it were encrypted"); err != nil {
			return err
		}
		if _, err = l.j.Pin(ctx, pin, clean, false); err == nil {
			p := pointOf(clean)
			s.Clean, s.Pin = &p, pin
		}
	}
	l.site.o.Log.Warn("a volume is written as if it were being encrypted", "group", l.cfg.Ref(), "volume", name, "since", s.Since, "turned", s.Turned, "ratio", s.Ratio, "usual", s.Usual, "clean", s.Pin, "err", err)
	all = append(all, s)
	return l.j.Remember(suspectsKey, all[max(0, len(all)-maxSuspicion):])
}

// retell keeps what has become of a suspicion that was told, and that it is over.
func (w *watching) retell(id cbt.VolumeID, r detect.Report, over bool) error {
	l, name := w.life, w.nameOf(id)
	all, err := l.suspicions()
	if err != nil {
		return err
	}
	for i := range all {
		if all[i].Volume != name || !all[i].Until.IsZero() {
			continue
		}
		if all[i].Since.Equal(r.Since) {
			weigh(&all[i], r)
		}
		if over {
			all[i].Until = l.site.o.Now()
		}
	}
	return l.j.Remember(suspectsKey, all)
}

// weigh takes over what was seen so far.
func weigh(s *control.Suspicion, r detect.Report) {
	s.Turned, s.Ratio, s.Widened, s.Extents = r.Turned, r.Ratio, r.Widened, nil
	for _, e := range r.Extents {
		s.Extents = append(s.Extents, control.Extent{Offset: e.Offset, Length: e.Length})
	}
}

// lastPoint is the newest point that is not after p.
func (l *life) lastPoint(ctx context.Context, p journal.Position) (journal.Point, error) {
	spans, err := l.j.SpansTo(ctx, p)
	if err != nil {
		return journal.Point{}, err
	}
	if len(spans) == 0 {
		return journal.Point{}, journal.ErrNoPoint
	}
	last := spans[len(spans)-1]
	return pointAt(ctx, l.j, last.Number, last.Last.Seq)
}

// suspicions are those of this group at this site, oldest first.
func (l *life) suspicions() ([]control.Suspicion, error) {
	var all []control.Suspicion
	_, err := l.j.Recall(suspectsKey, &all)
	return all, err
}

// suspicionNotices tells of those that are under way, and of those of the last day.
func (l *life) suspicionNotices(now time.Time) []control.Notice {
	all, err := l.suspicions()
	if err != nil {
		return nil
	}
	var out []control.Notice
	for _, s := range all {
		if !s.Until.IsZero() && now.Sub(s.Until) > 24*time.Hour {
			continue
		}
		n := control.Notice{Level: control.Alarm, Text: fmt.Sprintf("volume %s: since %s noise is written over legible content, %.0f%% of what is written (usually %.0f%%): it may be being encrypted%s", s.Volume, s.Since.Format(timeLayout), 100*s.Ratio, 100*s.Usual, whereabouts(s))}
		if !s.Until.IsZero() {
			n.Level, n.Text = control.Warning, fmt.Sprintf("volume %s: from %s to %s noise was written over legible content: it may have been encrypted%s", s.Volume, s.Since.Format(timeLayout), s.Until.Format(timeLayout), whereabouts(s))
		}
		if s.Pin != "" {
			n.Hint = fmt.Sprintf("The last point before it is pinned as %s: look at it with view serve --at '#%d.%d', search with point bisect, go back with group rewind", s.Pin, s.Clean.Epoch, s.Clean.Seq)
		}
		out = append(out, n)
	}
	return out
}

// whereabouts names the first ranges of a suspicion; point list has all that are kept.
func whereabouts(s control.Suspicion) string {
	const named = 3
	var b strings.Builder
	for i, e := range s.Extents {
		switch {
		case i == named:
			fmt.Fprintf(&b, " and %d more", len(s.Extents)-named)
			return b.String()
		case i == 0:
			b.WriteString(", in bytes")
		default:
			b.WriteString(",")
		}
		fmt.Fprintf(&b, " %d to %d", e.Offset, e.Offset+e.Length-1)
	}
	return b.String()
}
