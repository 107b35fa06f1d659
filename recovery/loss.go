package recovery

import (
	"slices"
	"time"

	"github.com/novacron/afterimage/journal"
)

// Loss is what the new primary will not have. It has two known parts, and one that
// nobody here can know: what the source did after it was last heard.
type Loss struct {
	Known        bool         `json:"known"` // a head of the source was heard
	Seconds      float64      `json:"seconds"`
	Writes       uint64       `json:"writes"` // given up, and records that never arrived
	Bytes        int64        `json:"bytes"`
	GivenUp      GivenUp      `json:"given_up"`
	NeverArrived NeverArrived `json:"never_arrived"`
	// UnheardSeconds is how long the source has not been heard.
	UnheardSeconds float64 `json:"unheard_seconds"`
}

// GivenUp is what this site holds beyond the point. It stays readable as a branch.
type GivenUp struct {
	Seconds float64      `json:"seconds"` // from the point to the newest record here
	Records uint64       `json:"records"` // marks and the like too
	Writes  uint64       `json:"writes"`
	Bytes   int64        `json:"bytes"`
	Volumes []VolumeLoss `json:"volumes,omitempty"`
}

// VolumeLoss is one volume's part.
type VolumeLoss struct {
	Volume string `json:"volume"`
	Writes uint64 `json:"writes"`
	Bytes  int64  `json:"bytes"` // of the extents of writes, and of blocks that a resync read
}

// NeverArrived is what the source had beyond this site's head when it was last heard.
type NeverArrived struct {
	Seconds float64 `json:"seconds"` // from the newest record here to its newest
	Records uint64  `json:"records"`
	Bytes   int64   `json:"bytes"` // as framed
}

func lossOf(in Inputs) Loss {
	l := Loss{GivenUp: givenUp(in)}
	if s := in.Source; s != nil {
		l.Known = true
		heard := s.Heard
		if heard.IsZero() {
			heard = s.Time
		}
		l.UnheardSeconds = span(heard, in.Now)
		end, at, bytes := in.Head.Seq, in.Head.Time, s.Bytes
		if t := in.Tail; in.takesTail() {
			end, at, bytes = t.Head.Seq, t.Time, max(0, s.Bytes-t.Bytes)
		}
		if s.Head.Seq > end { // dense along a lineage, so the difference counts
			l.NeverArrived = NeverArrived{span(at, s.Time), uint64(s.Head.Seq - end), bytes}
		}
	}
	l.Seconds = l.GivenUp.Seconds
	if l.NeverArrived.Records > 0 {
		from := in.Point.Time
		if in.takesTail() {
			from = in.Tail.Time
		}
		l.Seconds = max(l.Seconds, span(from, in.Source.Time))
	}
	l.Writes = l.GivenUp.Writes + l.NeverArrived.Records
	l.Bytes = l.GivenUp.Bytes + l.NeverArrived.Bytes
	return l
}

func givenUp(in Inputs) GivenUp {
	g := GivenUp{Records: in.Since.Records}
	if g.Records > 0 {
		g.Seconds = span(in.Point.Time, in.Since.Last)
	}
	for _, v := range in.Volumes {
		part := VolumeLoss{Volume: v.Name}
		i := slices.IndexFunc(in.Since.Volumes, func(c journal.Change) bool { return c.Volume == v.ID })
		if i >= 0 {
			c := in.Since.Volumes[i]
			part.Writes, part.Bytes = c.Writes, c.Bytes+c.FillBytes
		}
		g.Volumes = append(g.Volumes, part)
		g.Writes += part.Writes
		g.Bytes += part.Bytes
	}
	if in.Thinned { // never less than the truth
		g.Writes = g.Records
	}
	return g
}

// span is the seconds from a to b, never below zero: the two may be told by clocks
// of two sites.
func span(a, b time.Time) float64 { return max(0, b.Sub(a).Seconds()) }
