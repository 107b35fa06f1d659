package journal

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/novacron/afterimage/cbt"
)

// Point is a moment that can be restored.
type Point struct {
	Position
	Number  uint64         `json:"epoch_number"`
	Time    time.Time      `json:"time"`
	Marks   []Mark         `json:"marks,omitempty"`   // at exactly this record
	Volumes []cbt.VolumeID `json:"volumes"`           // that it covers
	Invalid string         `json:"invalid,omitempty"` // why a read of it meets damage; "": none is known
}

func (p Point) String() string { return fmt.Sprintf("#%d.%d", p.Number, p.Seq) }

// Span is an interval in which every record is a point.
type Span struct {
	First, Last Position
	Number      uint64
	Volumes     []cbt.VolumeID
	Open        bool      // it ends at the head
	Ended       cbt.Cause // why it ended, if it did
	Detail      string
	ended       time.Time // of the record that ended it; zero while it is open
}

// turn is an event that opens, closes or changes a span.
type turn struct {
	seq    Seq
	kind   Kind
	in     Interval
	volume cbt.VolumeID
	joins  bool // of a volume's record: it is a member once it was synced
	left   bool // of a volume's record: it is a member no more
	gap    gapBody
	time   time.Time
}

// spansOf runs the rule of when there are points over a lineage's turns. A group
// has points while all of its members are synced; a volume is a member from when it
// is added, but one that joins, or is added while there are points, is one only from
// its first synced record. One that leaves ends nothing for the others: from that
// record on their points do not cover it. An epoch's first record closes every
// interval. before is the members that there were before the first turn. It is pure.
func spansOf(l Lineage, turns []turn, before []cbt.VolumeID, carry bool) []Span {
	members, synced := make(map[cbt.VolumeID]bool), make(map[cbt.VolumeID]bool)
	for _, v := range before {
		members[v] = true
	}
	var spans []Span
	open := false
	end := func(s Seq, t time.Time, c cbt.Cause, detail string) {
		if !open {
			return
		}
		open = false
		last := &spans[len(spans)-1]
		if s <= last.First.Seq { // nothing lies in it
			spans = spans[:len(spans)-1]
			return
		}
		i, _ := l.Owner(s - 1)
		last.Last, last.Open, last.Ended, last.Detail, last.ended = Position{i.Epoch, s - 1}, false, c, detail, t
	}
	// begin opens a span at t if every member is synced, and ends the one before it.
	begin := func(t turn) {
		if len(synced) < len(members) {
			return
		}
		end(t.seq, t.time, "", "")
		if len(synced) == 0 {
			return
		}
		vs := slices.SortedFunc(maps.Keys(synced), func(a, b cbt.VolumeID) int { return cmp.Compare(a.String(), b.String()) })
		spans = append(spans, Span{First: Position{t.in.Epoch, t.seq}, Number: t.in.Number, Volumes: vs, Open: true})
		open = true
	}
	for _, t := range turns {
		switch t.kind {
		case KindEpoch:
			if carry {
				continue
			}
			end(t.seq, t.time, cbt.CauseOpening, "")
			clear(synced)
		case KindVolume:
			switch {
			case t.left:
				leaves := synced[t.volume] || !open
				delete(members, t.volume)
				delete(synced, t.volume)
				if leaves {
					begin(t)
				}
			case !open && !t.joins:
				members[t.volume] = true
			}
		case KindGap:
			if synced[t.volume] { // a disk that joins closes nothing for the others
				end(t.seq, t.time, t.gap.Cause, t.gap.Detail)
			}
			delete(synced, t.volume)
		case KindSynced:
			members[t.volume], synced[t.volume] = true, true
			begin(t)
		}
	}
	if open && len(l) > 0 {
		spans[len(spans)-1].Last = lastOf(l)
	}
	return spans
}

// spans is the points of a lineage that are there: behind folded history the ones
// of allSpans, in it those that are kept, each a span of one record.
func (j *Journal) spans(l Lineage) ([]Span, error) {
	all, err := j.allSpans(l)
	if err != nil {
		return nil, err
	}
	return j.leftOf(all, l), nil
}

func (j *Journal) leftOf(spans []Span, l Lineage) []Span {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.past.left(spans, l, j.ordinalLocked)
}

// allSpans is where every record of a lineage was a point before anything was folded.
func (j *Journal) allSpans(l Lineage) ([]Span, error) {
	turns, err := j.turns(l, nil)
	if err != nil {
		return nil, err
	}
	return spansOf(l, turns, nil, j.o.faults.carrySynced), nil
}

// turns is what opens, closes or changes spans in l, in order. before is the
// volumes, by ordinal, that were there before l.
func (j *Journal) turns(l Lineage, before map[uint32]cbt.VolumeID) ([]turn, error) {
	vs := make(map[uint32]cbt.VolumeID)
	maps.Copy(vs, before)
	var turns []turn
	for _, k := range []Kind{KindVolume, KindEpoch, KindSynced, KindGap} {
		err := j.eachHappening(k, l, func(i Interval, s Seq, h happening) error {
			t := turn{seq: s, kind: k, in: i, time: h.Time}
			switch k {
			case KindVolume:
				var b volumeBody
				if err := decodeBody(h.Body, &b); err != nil {
					return fmt.Errorf("read catalogue: volume record %d: %w", s, err)
				}
				vs[b.Ordinal], t.volume, t.joins, t.left = b.ID, b.ID, b.Joins, b.Left
			case KindGap:
				if err := decodeBody(h.Body, &t.gap); err != nil {
					return fmt.Errorf("read catalogue: gap record %d: %w", s, err)
				}
			}
			if k == KindSynced || k == KindGap {
				t.volume = vs[h.Volume]
			}
			turns = append(turns, t)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(turns, func(a, b turn) int { return cmp.Compare(a.seq, b.seq) })
	return turns, nil
}

// Spans lists where there are points in the current lineage, oldest first.
func (j *Journal) Spans(ctx context.Context) ([]Span, error) {
	l, err := j.settled(ctx)
	if err != nil {
		return nil, err
	}
	return j.spans(l)
}

// SpansTo lists where there are points in the lineage that ends with p, oldest first.
func (j *Journal) SpansTo(ctx context.Context, p Position) ([]Span, error) {
	if err := j.waitHeld(ctx, p); err != nil {
		return nil, err
	}
	l, err := j.lineageAt(p)
	if err != nil {
		return nil, err
	}
	return j.spans(l)
}

// settled is the current lineage, indexed to its end.
func (j *Journal) settled(ctx context.Context) (Lineage, error) {
	j.mu.Lock()
	l, n, s := append(Lineage(nil), j.lineage...), len(j.branches), j.written
	j.mu.Unlock()
	if n == 0 {
		return nil, nil
	}
	return l.written(), j.waitIndexed(ctx, n, s)
}

// pointAt is the point at record p, or a *NoPointError.
func (j *Journal) pointAt(ctx context.Context, p Position) (Point, error) {
	if err := j.waitHeld(ctx, p); err != nil {
		return Point{}, err
	}
	l, err := j.lineageAt(p)
	if err != nil {
		return Point{}, err
	}
	span, any, err := j.lastSpan(l)
	if err != nil {
		return Point{}, err
	}
	if !any || !span.Open {
		e := &NoPointError{At: p.String(), Why: "no volume was synced before it"}
		if any {
			e.Why = fmt.Sprintf("it lies in a gap: %s %s", span.Ended, span.Detail)
			if _, folded, kept := j.keptPoint(p); folded && !kept {
				e.Why = "the history there was folded, and this point was not kept"
				if err := j.silentAt(p); err != nil {
					e.Why = err.Error()
				}
			}
			if b, err := j.describe(ctx, span, span.Last); err == nil {
				e.Before = &b
			}
		}
		return Point{}, e
	}
	return j.describe(ctx, span, p)
}

func (j *Journal) describe(ctx context.Context, s Span, p Position) (Point, error) {
	t, err := j.timeAt(ctx, p)
	if err != nil {
		return Point{}, err
	}
	l, err := j.lineageAt(p)
	if err != nil {
		return Point{}, err
	}
	i, _ := l.Owner(p.Seq)
	pt := Point{Position: p, Number: i.Number, Time: t, Volumes: s.Volumes}
	own := Lineage{{i.Epoch, i.Number, p.Seq, p.Seq}}
	err = j.eachHappening(KindMark, own, func(_ Interval, _ Seq, h happening) error {
		var m Mark
		err := decodeBody(h.Body, &m)
		pt.Marks = append(pt.Marks, m)
		return err
	})
	if err == nil {
		pt.Invalid, err = j.invalidAt(l)
	}
	return pt, err
}

// Volumes is the group's disks at p, by name: of a point those that it covers, else
// those that have not left, nor join and were never synced.
func (j *Journal) Volumes(p Point) ([]cbt.Volume, error) {
	l, err := j.lineageAt(p.Position)
	if err != nil {
		return nil, err
	}
	m, err := j.pictured(l, p)
	return volumeList(m), err
}

// Part is what a volume is to the group at the head.
type Part struct {
	cbt.Volume
	Left bool // it was a part of it
}

// Parts lists all volumes that ever were in the group, by name.
func (j *Journal) Parts() []Part {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []Part
	for _, b := range j.volumes {
		out = append(out, Part{cbt.Volume{ID: b.ID, Name: b.Name, Size: b.Size}, b.Left})
	}
	slices.SortFunc(out, func(a, b Part) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// ChainOf is the chain value of the frame that holds p: the same at every site.
func (j *Journal) ChainOf(ctx context.Context, p Position) (Chain, error) { return j.chainOf(ctx, p) }

// Machines is the newest definition of each machine at p, by name.
func (j *Journal) Machines(p Point) (map[string][]byte, error) {
	l, err := j.lineageAt(p.Position)
	if err != nil {
		return nil, err
	}
	out := make(map[string][]byte)
	err = j.eachHappening(KindMachine, l, func(_ Interval, s Seq, h happening) error {
		var b machineBody
		if err := decodeBody(h.Body, &b); err != nil {
			return fmt.Errorf("read catalogue: machine record %d: %w", s, err)
		}
		out[b.Name] = b.Definition
		return nil
	})
	return out, err
}

// Happening is an entry of the catalogue: an epoch, volume, synced, gap, mark or
// machine record.
type Happening struct {
	Position
	Number uint64
	Kind   Kind
	Time   time.Time
	Volume cbt.VolumeID
	Cause  cbt.Cause
	Detail string // of a gap for people, of a machine its name, of a volume what became of it
	Size   int64  // of a volume, in bytes
	Mark   Mark
}

// What becomes of a volume.
const (
	VolumeAdded   = "added"
	VolumeJoins   = "joins" // points cover it once it was synced
	VolumeResized = "resized"
	VolumeLeft    = "left"
)

// became is what a volume's record says beside the one before it.
func became(was, is volumeBody) string {
	switch {
	case is.Left:
		return VolumeLeft
	case was.Size > 0 && !was.Left:
		return VolumeResized
	case is.Joins:
		return VolumeJoins
	}
	return VolumeAdded
}

// Happenings lists the control records of the current lineage between two times
// (zero: no bound), oldest first.
func (j *Journal) Happenings(ctx context.Context, from, to time.Time) ([]Happening, error) {
	l, err := j.settled(ctx)
	if err != nil {
		return nil, err
	}
	vs, err := j.volumesIn(l)
	if err != nil {
		return nil, err
	}
	byOrdinal := make(map[uint32]cbt.VolumeID)
	for id, v := range vs {
		byOrdinal[v.Ordinal] = id
	}
	var out []Happening
	volumes := make(map[cbt.VolumeID]volumeBody)
	for _, k := range []Kind{KindEpoch, KindVolume, KindSynced, KindGap, KindMark, KindMachine} {
		err := j.eachHappening(k, l, func(i Interval, s Seq, h happening) error {
			e := Happening{Position: Position{i.Epoch, s}, Number: i.Number, Kind: k, Time: h.Time, Volume: byOrdinal[h.Volume]}
			var err error
			if k == KindVolume { // each is told beside the one before it, wherever that is
				var b volumeBody
				err = decodeBody(h.Body, &b)
				e.Volume, e.Detail, e.Size = b.ID, became(volumes[b.ID], b), b.Size
				volumes[b.ID] = b
			}
			if h.Time.Before(from) || (!to.IsZero() && h.Time.After(to)) {
				return err
			}
			switch k {
			case KindGap:
				var g gapBody
				err = decodeBody(h.Body, &g)
				e.Cause, e.Detail = g.Cause, g.Detail
			case KindMark:
				err = decodeBody(h.Body, &e.Mark)
			case KindMachine:
				var m machineBody
				err = decodeBody(h.Body, &m)
				e.Detail = m.Name
			}
			out = append(out, e)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(out, func(a, b Happening) int { return cmp.Compare(a.Seq, b.Seq) })
	return out, nil
}
