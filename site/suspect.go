package site

import (
	"context"
	"fmt"
	"slices"
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
	before journal.Position // the head when it was written
	off    int64
	data   []byte
	stands int64
}

// watching looks at a reign's volumes.
type watching struct {
	life   *life
	o      detect.Options
	queue  chan glimpse // bounded: at most a Meter's samples of a second
	mu     sync.Mutex   // guards below
	meters map[cbt.VolumeID]*detect.Meter
	turn   int64 // where in a write the next sample is taken
}

const (
	glimpses     = 256
	stretch      = time.Second // between two judgements
	suspectsKey  = "detect/suspicions"
	maxSuspicion = 64
)

// watch puts a detector beside a reign's writes, if the configuration asks for it.
func (l *life) watch(r *reign) cbt.Sink {
	c := l.cfg.Detect
	if c == nil || c.Mode != config.DetectOn {
		return r.writer
	}
	if r.watching == nil {
		r.watching = &watching{life: l, o: detect.Options{After: int64(c.After), Ratio: float64(c.Ratio) / 100}, queue: make(chan glimpse, glimpses), meters: map[cbt.VolumeID]*detect.Meter{}}
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
	case w.queue <- glimpse{ev.Volume, w.life.j.Head().Position, ev.Extent.Offset + at, slices.Clone(p), stands}:
	default:
	}
}

// run judges until ctx ends.
func (w *watching) run(ctx context.Context) {
	tick := time.NewTicker(stretch)
	defer tick.Stop()
	vs := map[cbt.VolumeID]*watchedVolume{}
	head := w.life.j.Head().Position
	for {
		select {
		case <-ctx.Done():
			return
		case g := <-w.queue:
			v := vs[g.volume]
			if v == nil {
				v = &watchedVolume{d: detect.New(w.o)}
				vs[g.volume] = v
			}
			v.samples = append(v.samples, detect.Sample{Was: w.was(ctx, g), Is: detect.Classify(g.data), StandsFor: g.stands})
		case <-tick.C:
			now := w.life.site.o.Now()
			for id, v := range vs {
				w.judge(ctx, id, v, head, now.Add(-stretch))
			}
			head = w.life.j.Head().Position
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
	calm    journal.Position // the head before what is out of the ordinary began
	restive bool
	told    bool
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

// judge ends a stretch of a volume, which began when head was the newest record.
func (w *watching) judge(ctx context.Context, id cbt.VolumeID, v *watchedVolume, head journal.Position, began time.Time) {
	r := v.d.Stretch(began, v.samples)
	v.samples = v.samples[:0]
	if restive := !r.Since.IsZero(); restive != v.restive {
		v.restive, v.calm = restive, head
	}
	if r.Suspect == v.told {
		return
	}
	v.told = r.Suspect
	err := w.tell(ctx, id, v.calm, r)
	if err != nil && ctx.Err() == nil {
		w.life.site.o.Log.Error("a suspicion is not kept", "group", w.life.cfg.Ref(), "volume", id, "err", err)
	}
}

// tell keeps a suspicion, with the last clean point pinned, or ends it.
func (w *watching) tell(ctx context.Context, id cbt.VolumeID, calm journal.Position, r detect.Report) error {
	l := w.life
	all, err := l.suspicions()
	if err != nil {
		return err
	}
	name := id.String()
	if vs, err := headVolumes(l.j); err == nil {
		if i := slices.IndexFunc(vs, func(v cbt.Volume) bool { return v.ID == id }); i >= 0 {
			name = vs[i].Name
		}
	}
	if !r.Suspect {
		for i := range all {
			if all[i].Volume == name && all[i].Until.IsZero() {
				all[i].Until = l.site.o.Now()
			}
		}
		return l.j.Remember(suspectsKey, all)
	}
	s := control.Suspicion{Volume: name, Since: r.Since, Turned: r.Turned, Ratio: r.Ratio, Usual: r.Usual}
	clean, err := l.lastPoint(ctx, calm)
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
		n := control.Notice{Level: control.Alarm, Text: fmt.Sprintf("volume %s: since %s noise is written over legible content, %.0f%% of what is written (usually %.0f%%): it may be being encrypted", s.Volume, s.Since.Format(timeLayout), 100*s.Ratio, 100*s.Usual)}
		if !s.Until.IsZero() {
			n.Level, n.Text = control.Warning, fmt.Sprintf("volume %s: from %s to %s noise was written over legible content: it may have been encrypted", s.Volume, s.Since.Format(timeLayout), s.Until.Format(timeLayout))
		}
		if s.Pin != "" {
			n.Hint = fmt.Sprintf("The last point before it is pinned as %s: look at it with view serve --at '#%d.%d', search with point bisect, go back with group rewind", s.Pin, s.Clean.Epoch, s.Clean.Seq)
		}
		out = append(out, n)
	}
	return out
}
