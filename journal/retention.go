package journal

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Rung is one step of a ladder: points no older than For are kept one to each Every.
type Rung struct {
	Every time.Duration // 0: every write
	For   time.Duration // 0: for ever; the last rung only
}

// Retention says which points of the past are kept.
type Retention struct {
	Ladder     []Rung        // empty: every write, for ever
	Lock       time.Duration // nothing younger is thinned or reclaimed, by anybody
	QuotaBytes int64         // of segments and runs on disk; 0: none
	WarnAt     []int         // per cent of the quota at which Maintain warns, e.g. 80, 90
}

// Validate says what is wrong with r: rungs must reach further back from one to the
// next and be no denser than the one before, and only the last may reach for ever.
func (r Retention) Validate() error {
	for i, g := range r.Ladder {
		last := i == len(r.Ladder)-1
		switch {
		case g.Every < 0 || g.For < 0:
			return fmt.Errorf("rung %d of the ladder: %v for %v: %w", i+1, g.Every, g.For, ErrOutOfRange)
		case g.For == 0 && !last:
			return fmt.Errorf("rung %d of the ladder is for ever and not the last: %w", i+1, ErrOutOfRange)
		case i > 0 && g.Every <= r.Ladder[i-1].Every:
			return fmt.Errorf("rung %d of the ladder is as dense as the one before: %w", i+1, ErrOutOfRange)
		case i > 0 && g.For != 0 && g.For <= r.Ladder[i-1].For:
			return fmt.Errorf("rung %d of the ladder reaches no further than the one before: %w", i+1, ErrOutOfRange)
		}
	}
	if r.Lock < 0 || r.QuotaBytes < 0 {
		return fmt.Errorf("lock of %v, quota of %d bytes: %w", r.Lock, r.QuotaBytes, ErrOutOfRange)
	}
	for _, w := range r.WarnAt {
		if w < 1 || w > 100 {
			return fmt.Errorf("warning at %d %%: %w", w, ErrOutOfRange)
		}
	}
	return nil
}

// dense is how far back every write is a point: the reach of the rung that says so.
// for ever is true where that has no end.
func (r Retention) dense() (d time.Duration, forEver bool) {
	if len(r.Ladder) == 0 {
		return 0, true
	}
	d = r.Lock
	for _, g := range r.Ladder {
		if g.Every == 0 {
			d, forEver = max(d, g.For), forEver || g.For == 0
		}
	}
	return d, forEver
}

// ReferenceKind is why something of the past is needed whatever the ladder says.
type ReferenceKind string

// Kinds of references. A cursor needs all frames after At, until Until (zero: no
// end); an uncommitted failover the point At and everything after it; a view and a
// pin the point At.
const (
	ReferenceCursor      ReferenceKind = "cursor"
	ReferenceUncommitted ReferenceKind = "uncommitted"
	ReferenceView        ReferenceKind = "view"
	ReferencePin         ReferenceKind = "pin"
)

// Reference is one user of the past.
type Reference struct {
	Kind  ReferenceKind
	Name  string // of the peer, the failover or the pin
	At    Position
	Until time.Time // of a cursor: the end of its peer's hold; zero: none
}

func (r Reference) reason() string {
	if r.Name == "" {
		return string(r.Kind)
	}
	return string(r.Kind) + " " + r.Name
}

// holds reports that r keeps the point at p.
func (r Reference) holds(p Position, now time.Time) bool {
	switch r.Kind {
	case ReferenceCursor:
		return p.Seq > r.At.Seq && (r.Until.IsZero() || !r.Until.Before(now))
	case ReferenceUncommitted:
		return p.Seq >= r.At.Seq
	}
	return p == r.At
}

// Candidate is a point that Choose decides about. Branch names the epoch that the
// abandoned branch it lies on ends in; it is zero for the head's lineage.
type Candidate struct {
	Point
	Branch EpochID
}

// Keep is a point that is kept, and why: "every write", "every 1m", "newest",
// "lock", "pin NAME", "view", "cursor PEER", "uncommitted NAME".
type Keep struct {
	Point
	Reasons []string `json:"reasons"`
}

// Choose says which of candidates are kept as of now, in their order, which must be
// that of the journal: oldest first on each branch. It is pure, and the only place
// where that is decided. A candidate is kept iff at least one of these holds:
//
//   - the ladder is empty, or a rung with Every 0 reaches back to it: "every write";
//   - it is the last candidate of its branch within a slot of a rung's Every, slots
//     being counted from the Unix epoch, and the rung reaches back to it;
//   - it is the newest of its branch and its branch is the head's lineage: "newest";
//   - it is younger than Lock: "lock";
//   - a reference holds it.
//
// A rung reaches back to what is no older than its For. All rungs apply at once, so
// a point that a coarse rung will want is never dropped by a finer one before it;
// and what Choose keeps of what it kept before is what it keeps of everything:
// thinning twice is thinning once. A time in the future is young. now must be a time that
// is witnessed (clock.go): what it makes old is gone for good.
func Choose(candidates []Candidate, r Retention, refs []Reference, now time.Time) []Keep {
	reasons := make([][]string, len(candidates))
	for _, g := range r.Ladder {
		g.choose(candidates, now, reasons)
	}
	newest := -1
	for i, c := range candidates {
		if len(r.Ladder) == 0 {
			reasons[i] = append(reasons[i], everyWrite)
		}
		if c.Branch.IsZero() {
			newest = i
		}
		if r.Lock > 0 && now.Sub(c.Time) < r.Lock {
			reasons[i] = append(reasons[i], "lock")
		}
		for _, f := range refs {
			if f.holds(c.Position, now) {
				reasons[i] = append(reasons[i], f.reason())
			}
		}
	}
	if newest >= 0 {
		reasons[newest] = append(reasons[newest], "newest")
	}
	var out []Keep
	for i, c := range candidates {
		if len(reasons[i]) > 0 {
			out = append(out, Keep{c.Point, slices.Compact(reasons[i])})
		}
	}
	return out
}

const everyWrite = "every write"

// choose gives its reason to what rung g keeps.
func (g Rung) choose(candidates []Candidate, now time.Time, reasons [][]string) {
	type slot struct {
		branch EpochID
		number int64
	}
	reason := everyWrite
	if g.Every > 0 {
		reason = "every " + shortDuration(g.Every)
	}
	taken := make(map[EpochID]slot)
	for i := len(candidates) - 1; i >= 0; i-- {
		c := candidates[i]
		if g.For > 0 && now.Sub(c.Time) > g.For {
			continue
		}
		if g.Every > 0 {
			s := slot{c.Branch, g.slot(c.Time)}
			if t, ok := taken[c.Branch]; ok && t == s {
				continue
			}
			taken[c.Branch] = s
		}
		reasons[i] = append(reasons[i], reason)
	}
}

// shortDuration is d without the zeros that time.Duration prints: 1m, not 1m0s.
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// slot is the number of the slot of g.Every that t lies in.
func (g Rung) slot(t time.Time) int64 {
	n, e := t.UnixNano(), int64(g.Every)
	if n < 0 {
		n -= e - 1
	}
	return n / e
}
