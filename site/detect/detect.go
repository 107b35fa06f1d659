package detect

import (
	"slices"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

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
	StandsFor int64            // bytes
	At        time.Time        // when it was taken
	Before    journal.Position // the newest record before the write
	Extent    cbt.Extent       // of the whole write
}

// turned reports whether noise goes over what was legible.
func (s Sample) turned() bool { return s.Was == Legible && s.Is == Noise }

// rewrites reports whether it goes over something that held more than zeros.
func (s Sample) rewrites() bool { return s.Was == Legible || s.Was == Noise }

// Report is where a Detector stands.
type Report struct {
	Suspect bool      // noise is being written over what was legible
	Since   time.Time // of the first sample that was turned, of those that are too many
	// Clean is where none of it was written yet, by the margin of onset.go.
	Clean   journal.Position
	Turned  int64        // bytes from legible to noise since then, by the samples
	Extents []cbt.Extent // of the writes that were turned, by the samples; a MiB between them is no gap
	Widened bool         // there were more than fit, and the nearest became one
	Ratio   float64      // of what is written lately
	Usual   float64      // the same by the baseline
	Blind   bool         // what is overwritten is noise already: nothing can be told
}

// Sums that forget: lately what the last recentBytes held, as a baseline the last
// usualBytes.
const (
	recentBytes = 32 << 20
	usualBytes  = 1 << 30
	knownBytes  = usualBytes / 4 // seen of a volume until something is usual of it
	calmRatio   = 0.05           // of a stretch that is not out of the ordinary, unless the baseline is above
	leastUsual  = 0.01           // turned, of what is written, before a run begins
	oddPart     = 0.4            // of Options.Ratio, where places are turned that are not usually rewritten
)

// sums are of bytes; odd are those that were turned in places that are not usually
// rewritten.
type sums struct{ written, turned, odd, known, noisy float64 }

func (s *sums) add(x sums, keep float64) {
	s.written, s.turned, s.odd = s.written*keep+x.written, s.turned*keep+x.turned, s.odd*keep+x.odd
	s.known, s.noisy = s.known*keep+x.known, s.noisy*keep+x.noisy
}

func (s sums) ratio() float64 { return share(s.turned, s.written) }

func share(part, of float64) float64 {
	if of == 0 {
		return 0
	}
	return part / of
}

// baseline is the ratio as far as it is known: of a volume of which little was seen
// nothing is usual.
func (s sums) baseline() float64 { return s.turned / max(s.written, knownBytes) }

// Detector watches one volume. It is pure: time comes with what it is told.
type Detector struct {
	o             Options
	recent, usual sums
	places        places
	onset         onset
	restless      bool // lately is out of the ordinary
	turned, odd   float64
	suspect       bool
}

// New is a detector that knows nothing of its volume yet; it begins when head is the
// newest record.
func New(o Options, began time.Time, head journal.Position) *Detector {
	return &Detector{o: o.withDefaults(), onset: onset{behind: []seen{{began, head}}}}
}

// Stretch takes the samples of a stretch of time, in order. One of which there are none
// changes nothing.
func (d *Detector) Stretch(samples []Sample) Report {
	var x sums
	usual := d.usual.baseline()
	usual = max(leastUsual, min(2*usual, (1+usual)/2))
	for _, s := range samples {
		n := float64(s.StandsFor)
		x.written += n
		odd := d.places.take(s)
		if s.turned() {
			x.turned += n
			if odd {
				x.odd += n
			}
		}
		if s.rewrites() {
			x.known += n
		}
		if s.Was == Noise {
			x.noisy += n
		}
		if d.onset.take(s, usual, float64(d.o.After)); d.onset.over() && !d.suspect {
			d.onset.end()
		}
	}
	if x.written > 0 {
		d.weigh(x)
	}
	return d.report()
}

func (d *Detector) weigh(x sums) {
	d.recent.add(x, keep(x.written, recentBytes))
	if d.recent.ratio() <= max(calmRatio, 2*d.usual.baseline()) {
		if d.suspect {
			d.onset.end()
		}
		d.restless, d.suspect, d.turned, d.odd = false, false, 0, 0
	} else {
		d.restless, d.turned, d.odd = true, d.turned+x.turned, d.odd+x.odd
	}
	d.suspect = d.suspect || d.restless && (d.loud() || d.strange())
	if d.restless { // it becomes the usual, if it is, but slowly
		x = sums{x.written / 8, x.turned / 8, x.odd / 8, x.known / 8, x.noisy / 8}
	}
	d.usual.add(x, keep(x.written, usualBytes))
}

// loud reports whether much of what is written is turned.
func (d *Detector) loud() bool {
	return d.turned >= float64(d.o.After) && d.recent.ratio() >= max(d.o.Ratio, min(d.o.Over*d.usual.baseline(), 0.9))
}

// strange reports whether less of it is, but in places that this volume does not
// usually rewrite, as far as it is known.
func (d *Detector) strange() bool {
	return d.usual.written >= knownBytes && d.odd >= float64(d.o.After) &&
		share(d.recent.odd, d.recent.written) >= max(oddPart*d.o.Ratio, min(d.o.Over*share(d.usual.odd, d.usual.written), 0.9))
}

// keep is what is left of a sum of the last window bytes when n more come.
func keep(n float64, window float64) float64 { return max(0, 1-n/window) }

func (d *Detector) report() Report {
	r := Report{Suspect: d.suspect, Ratio: d.recent.ratio(), Usual: d.usual.baseline()}
	if o := d.onset; d.suspect && !o.running { // the unusual became the usual as it was told of
		r.Since, r.Clean, r.Turned = o.behind[0].at, o.behind[0].before, int64(d.turned)
	} else if o.running {
		r.Since, r.Clean, r.Turned, r.Extents, r.Widened = o.since, o.clean, int64(o.turned), slices.Clone(o.extents.list), o.extents.widened
	}
	r.Blind = d.usual.known > recentBytes && d.usual.noisy > 0.9*d.usual.known
	return r
}
