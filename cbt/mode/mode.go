package mode

import (
	"errors"
	"fmt"

	"github.com/novacron/afterimage/cbt"
)

// ErrRefused is wrapped by the error for an event that must not be acted on.
var ErrRefused = errors.New("capture mode")

// Plan is what a volume's owner chose.
type Plan uint8

// Plans. The zero Plan is per write.
const (
	PerWrite Plan = iota
	Cycles
)

// State is where a volume stands. The zero State, of a volume that nothing follows,
// is where each life of a capturing process begins: opening a journal closes its
// intervals, so none is open then.
type State struct {
	Plan  Plan
	Phase cbt.State // what Tracker.Status tells; "" is StateDetached
	Mode  cbt.Mode  // "" is ModeNone
	Why   string    // Mode is what it is, for people

	basis  basis
	held   bool      // every write arrives, or one instant is held
	whole  bool      // nothing is missing from the picture
	open   bool      // an interval may be open in the journal
	untold int       // gaps that are ordered and have no place yet
	told   cbt.Cause // of the newest gap since the volume was last synced
}

// basis is what tells the part of the disk that the sink may not know.
type basis uint8

const (
	unjudged  basis = iota
	byBitmap        // trusted bitmaps
	byReading       // nothing: all has to be read
)

// Kind is what happened.
type Kind uint8

// Kinds of events.
const (
	Attach   Kind = iota + 1 // an attachment begins; what an earlier one left is swept
	Judged                   // Trusted and Why: the bitmaps' verdict
	Tapped                   // every write from now on arrives
	Compared                 // cycles: all was read while a new bitmap collected
	Drawn                    // cycles: one instant of the disk is held
	Dropped                  // cycles: the instant was given up; the bitmaps have their bits again
	Brought                  // all that had to be read is recorded and durable
	Mark                     // the synced event is about to be recorded
	Closed                   // cycles: the synced event has its place
	GapTold                  // the gap that was ordered has its place
	Break                    // Cause ended the attachment, or an attempt at one
	Release                  // Cause: left alone on request, or the tracker ends
)

// Event is one of them.
type Event struct {
	Kind    Kind
	Trusted bool      // Judged
	Why     string    // Judged, Break, Release: for people
	Cause   cbt.Cause // Break, Release
}

// Order is what has to be done now, before anything else.
type Order uint8

// Orders.
const (
	Nothing   Order = iota
	TellGap         // record the gap, durable with whatever is recorded next
	ReadDelta       // read what the bitmaps name
	ReadWhole       // read and compare everything
	Draw            // hold one instant and read what the bitmaps name of it
)

// Next is the state after e, and the order that e means. On an error the state is
// as before and e must not be acted on.
func (s State) Next(e Event) (State, Order, error) {
	switch e.Kind {
	case Attach:
		if s.open {
			return s.refuse(e)
		}
		s.forget()
		s.show(cbt.StateAttaching, cbt.ModeNone, "")
		return s, Nothing, nil
	case Break:
		return s.leave(cbt.StateBroken, cbt.ModeNone, e, s.told != e.Cause)
	case Release:
		// Between two cycles no interval is open, and yet it is this that ends the points.
		return s.leave(cbt.StateDetached, cbt.ModeReleased, e, s.Plan == Cycles && s.Phase == cbt.StateSynced)
	case GapTold:
		s.untold = max(s.untold-1, 0)
		return s, Nothing, nil
	}
	if s.Phase != cbt.StateAttaching && s.Phase != cbt.StateSyncing && s.Phase != cbt.StateSynced {
		return s, Nothing, fmt.Errorf("%w: %v of a volume that is %s", ErrRefused, e.Kind, s.phase())
	}
	if s.Plan == Cycles {
		return s.cycle(e)
	}
	return s.perWrite(e)
}

// perWrite takes the events of an attachment that sees every write.
func (s State) perWrite(e Event) (State, Order, error) {
	switch {
	case e.Kind == Judged && s.basis == unjudged:
		return s.judged(e, ReadDelta)
	case e.Kind == Tapped && s.basis != unjudged && !s.held:
		s.held = true
		s.Phase = cbt.StateSyncing
		return s, Nothing, nil
	case e.Kind == Brought && s.held && !s.open:
		s.whole = true
		return s, Nothing, nil
	case e.Kind == Mark && s.markable():
		s.opened()
		s.show(cbt.StateSynced, cbt.ModePerWrite, "")
		return s, Nothing, nil
	}
	return s.refuse(e)
}

// cycle takes the events of bitmap cycles.
func (s State) cycle(e Event) (State, Order, error) {
	switch {
	case e.Kind == Judged && s.basis == unjudged:
		return s.judged(e, Draw)
	case e.Kind == Compared && s.basis == byReading && !s.open:
		s.basis = byBitmap
		s.show(cbt.StateSyncing, cbt.ModeCycles, "")
		return s, Draw, nil
	case e.Kind == Drawn && s.basis == byBitmap && !s.held && !s.open:
		s.held = true
		return s, ReadDelta, nil
	case e.Kind == Dropped && s.basis == byBitmap && !s.open:
		s.held, s.whole = false, false
		return s, Nothing, nil
	case e.Kind == Brought && s.held && !s.open:
		s.whole = true
		return s, Nothing, nil
	case e.Kind == Mark && s.markable():
		s.opened()
		s.show(cbt.StateSynced, cbt.ModeCycles, "")
		return s, Nothing, nil
	case e.Kind == Closed && s.open:
		s.open, s.held, s.whole = false, false, false
		s.untold++
		return s, TellGap, nil
	}
	return s.refuse(e)
}

func (s State) judged(e Event, trusted Order) (State, Order, error) {
	switch {
	case !e.Trusted:
		s.basis = byReading
		s.show(cbt.StateSyncing, cbt.ModeFull, e.Why)
		if s.Plan == PerWrite {
			s.Phase = cbt.StateAttaching // until the tap is in
		}
		return s, ReadWhole, nil
	case s.Plan == Cycles:
		s.show(cbt.StateSyncing, cbt.ModeCycles, e.Why)
	default:
		s.show(cbt.StateAttaching, cbt.ModeDelta, e.Why)
	}
	s.basis = byBitmap
	return s, trusted, nil
}

// markable says that an interval may open: see the package's promises.
func (s State) markable() bool { return s.held && s.whole && !s.open && s.untold == 0 }

func (s *State) opened() { s.open, s.told = true, "" }

// leave ends an attachment. news says that the cause is worth a gap of its own
// although no interval was open.
func (s State) leave(phase cbt.State, m cbt.Mode, e Event, news bool) (State, Order, error) {
	gap := s.open || news
	s.forget()
	s.open = false
	s.told = e.Cause
	s.show(phase, m, e.Why)
	if gap {
		s.untold++
		return s, TellGap, nil
	}
	return s, Nothing, nil
}

func (s *State) forget() { s.basis, s.held, s.whole = unjudged, false, false }

func (s *State) show(phase cbt.State, m cbt.Mode, why string) { s.Phase, s.Mode, s.Why = phase, m, why }

func (s State) refuse(e Event) (State, Order, error) {
	return s, Nothing, fmt.Errorf("%w: %v of a volume that is %s (held %v, whole %v, open %v, gaps due %d)",
		ErrRefused, e.Kind, s.phase(), s.held, s.whole, s.open, s.untold)
}

func (s State) phase() cbt.State {
	if s.Phase == "" {
		return cbt.StateDetached
	}
	return s.Phase
}

// Open reports whether an interval may be open in the journal.
func (s State) Open() bool { return s.open }

func (k Kind) String() string {
	names := [...]string{"", "attach", "judged", "tapped", "compared", "drawn", "dropped", "brought", "mark", "closed", "gap told", "break", "release"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("event %d", k)
}
