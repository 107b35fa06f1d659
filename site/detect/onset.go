package detect

import (
	"time"

	"github.com/novacron/afterimage/journal"
)

// How far before the first sample that was turned the clean position is, since between
// two samples a Meter sees nothing and a load beside an encryption is sampled in its
// stead: marginMost samples, or as many as marginTime had if that is less, but
// marginLeast at least. An encryption that is a tenth of what is written goes unseen for
// marginMost samples in one of 700,000 cases, one that is half of it for marginLeast in
// one of 65,000.
const (
	marginMost  = 128
	marginLeast = 16
	marginTime  = time.Minute
	quietAfter  = 128 // samples in a row of which none is turned: no run is under way
)

// seen is when a sample was taken, and what was written before it.
type seen struct {
	at     time.Time
	before journal.Position
}

// onset knows where the run of turned samples that is under way began: at the first of
// those since when more was turned than is usual (Page's cumulative sum), however slowly
// it began. It holds marginMost samples and maxExtents extents.
type onset struct {
	behind  []seen // the newest, oldest first
	sum     float64
	quiet   int
	running bool
	since   time.Time
	clean   journal.Position
	turned  float64
	extents extents
}

// take weighs a sample; of what is written the share usual is turned without a run, and
// of a sum no more than most is remembered.
func (o *onset) take(s Sample, usual, most float64) {
	if len(o.behind) > marginMost {
		o.behind = append(o.behind[:0], o.behind[1:]...)
	}
	o.behind = append(o.behind, seen{s.At, s.Before})
	n, turned := float64(s.StandsFor), s.turned()
	if turned && !o.running {
		o.running, o.since, o.clean = true, s.At, o.margin()
	}
	if !o.running {
		return
	}
	o.quiet++
	o.sum -= usual * n
	if turned {
		o.quiet, o.sum, o.turned = 0, o.sum+n, o.turned+n
		o.extents.add(s.Extent)
	}
	o.sum = min(o.sum, most)
}

// over reports whether the run has come to nothing.
func (o *onset) over() bool { return o.running && (o.sum <= 0 || o.quiet >= quietAfter) }

func (o *onset) end() { *o = onset{behind: o.behind} }

// margin is the position from which on the newest sample might not have been the first.
func (o *onset) margin() journal.Position {
	last := len(o.behind) - 1
	i := last
	for i > 0 && (last-i < marginLeast || o.behind[last].at.Sub(o.behind[i].at) < marginTime) {
		i--
	}
	return o.behind[i].before
}
