package detect

import "time"

// Options of a Detector. The zero value works.
type Options struct {
	After int64   // bytes turned lately from which on there is an alarm; default 8 MiB
	Ratio float64 // of what is written lately, at least; default 0.25
	Over  float64 // times the volume's baseline, at least; default 4
}

func (o Options) withDefaults() Options {
	if o.After == 0 {
		o.After = 8 << 20
	}
	if o.Ratio == 0 {
		o.Ratio = 0.25
	}
	if o.Over == 0 {
		o.Over = 4
	}
	return o
}

// Sample is one look at a write.
type Sample struct {
	Was, Is   Class
	StandsFor int64 // bytes
}

// Report is where a Detector stands.
type Report struct {
	Suspect bool      // noise is being written over what was legible
	Since   time.Time // of the first stretch that was out of the ordinary
	Turned  int64     // bytes from legible to noise since then, by the samples
	Ratio   float64   // of what is written lately
	Usual   float64   // the same by the baseline
	Blind   bool      // what is overwritten is noise already: nothing can be told
}

// Sums that forget: lately what the last recentBytes held, as a baseline the last
// usualBytes.
const (
	recentBytes = 32 << 20
	usualBytes  = 1 << 30
	calmRatio   = 0.05 // of a stretch that is not out of the ordinary, unless the baseline is above
)

type sums struct{ written, turned, known, noisy float64 }

func (s *sums) add(x sums, keep float64) {
	s.written, s.turned = s.written*keep+x.written, s.turned*keep+x.turned
	s.known, s.noisy = s.known*keep+x.known, s.noisy*keep+x.noisy
}

func (s sums) ratio() float64 {
	if s.written == 0 {
		return 0
	}
	return s.turned / s.written
}

// baseline is the ratio as far as it is known: of a volume of which little was seen
// nothing is usual.
func (s sums) baseline() float64 { return s.turned / max(s.written, usualBytes/4) }

// Detector watches one volume. It is pure: time comes with what it is told.
type Detector struct {
	o             Options
	recent, usual sums
	restless      bool // the stretches are out of the ordinary
	since         time.Time
	turned        float64
	suspect       bool
}

// New is a detector that knows nothing of its volume yet.
func New(o Options) *Detector { return &Detector{o: o.withDefaults()} }

// Stretch takes the samples of a stretch of time that began then. A stretch of which
// there are none changes nothing.
func (d *Detector) Stretch(began time.Time, samples []Sample) Report {
	var x sums
	for _, s := range samples {
		n := float64(s.StandsFor)
		x.written += n
		if s.Was == Legible && s.Is == Noise {
			x.turned += n
		}
		if s.Was == Legible || s.Was == Noise {
			x.known += n
		}
		if s.Was == Noise {
			x.noisy += n
		}
	}
	if x.written > 0 {
		d.weigh(began, x)
	}
	return d.report()
}

func (d *Detector) weigh(began time.Time, x sums) {
	d.recent.add(x, keep(x.written, recentBytes))
	calm := max(calmRatio, 2*d.usual.baseline())
	switch {
	case d.recent.ratio() <= calm:
		d.restless, d.suspect, d.turned = false, false, 0
	case !d.restless:
		d.restless, d.since = true, began
		fallthrough
	default:
		d.turned += x.turned
	}
	if d.restless && d.turned >= float64(d.o.After) && d.recent.ratio() >= max(d.o.Ratio, min(d.o.Over*d.usual.baseline(), 0.9)) {
		d.suspect = true
	}
	if d.suspect { // it becomes the usual, if it is, but slowly
		x = sums{x.written / 8, x.turned / 8, x.known / 8, x.noisy / 8}
	}
	d.usual.add(x, keep(x.written, usualBytes))
}

// keep is what is left of a sum of the last window bytes when n more come.
func keep(n float64, window float64) float64 { return max(0, 1-n/window) }

func (d *Detector) report() Report {
	r := Report{Suspect: d.suspect, Ratio: d.recent.ratio(), Usual: d.usual.baseline(), Turned: int64(d.turned)}
	if d.restless {
		r.Since = d.since
	}
	r.Blind = d.usual.known > recentBytes && d.usual.noisy > 0.9*d.usual.known
	return r
}
