package journal

import (
	"errors"
	"fmt"

	"github.com/novacron/afterimage/cbt"
)

// Errors of this package. DamageError and NoPointError carry evidence.
var (
	ErrNotFound      = errors.New("no journal here")
	ErrWrongJournal  = errors.New("the directory holds another group's journal")
	ErrLocked        = errors.New("the journal is open in another process")
	ErrClosed        = errors.New("the journal is closed")
	ErrFailed        = errors.New("the journal failed and must be opened again")
	ErrFull          = fmt.Errorf("quota or disk: %w", cbt.ErrDiskFull)
	ErrFenced        = errors.New("a newer epoch has begun; this writer is fenced")
	ErrReadOnly      = errors.New("the journal carries a feature that this version may read but not write")
	ErrIncompatible  = errors.New("the journal carries a feature that this version does not know")
	ErrLowerEpoch    = errors.New("a newer epoch is known; records of a lower one are refused")
	ErrUnknownParent = errors.New("the parent of an epoch is not held here")
	ErrNotContiguous = errors.New("records do not follow on what is held")
	ErrTailLost      = errors.New("records that were durable are missing from the end of the journal")
	// ErrRolledBack: what is there verifies, but as of an earlier time.
	ErrRolledBack = errors.New("the journal is older than what was known durable")
	// ErrMissingSegment: later segments are there, so this one was.
	ErrMissingSegment = errors.New("a segment is missing in the middle of the journal")
	// ErrRunLost: the index cannot be built anew, for a run that it must be built from is
	// missing or damaged.
	ErrRunLost = errors.New("a run is missing or damaged that the index must be built anew from")
	// ErrSiteLogLost: entries of the site log are lost, and with them, perhaps, pins,
	// cursors and what this site had taken on.
	ErrSiteLogLost   = errors.New("entries of the site log are lost")
	ErrNoPoint       = errors.New("no point there")
	ErrUnknownVolume = errors.New("no such volume")
	ErrOutOfRange    = errors.New("the range lies outside the volume")
	ErrBadAt         = errors.New("not a point in time")
	ErrRetained      = errors.New("the history is locked")
	ErrShredded      = errors.New("the key was destroyed")
	ErrNoKey         = errors.New("the key is not held here")
	ErrWrongKey      = errors.New("the key is not the one")
)

// errNotSynced: a sync failed, and what the disk holds is not known any more. Whoever
// meets it ends the journal.
var errNotSynced = errors.New("a sync failed")

// synced marks the failure of a sync.
func synced(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", errNotSynced, err)
}

// IsLoss reports that a journal does not open because less is there than was
// durable: Options.AcceptLoss opens it.
func IsLoss(err error) bool {
	return errors.Is(err, ErrTailLost) || errors.Is(err, ErrRolledBack) || errors.Is(err, ErrMissingSegment) || errors.Is(err, ErrRunLost) || errors.Is(err, ErrSiteLogLost)
}

// DamageError names bytes that failed verification. It is never a torn tail.
type DamageError struct {
	Hop    string // where it was found: "open", "read", "receive", "verify", "stream"
	Volume cbt.VolumeID
	Epoch  EpochID
	Seq    Seq // the first record that it touches
	Last   Seq `json:",omitempty"` // the last one; zero: Seq
	File   string
	Offset int64 // bytes from the start of File
	What   string
	Mended bool `json:",omitempty"` // what is read is right again: it was made anew from what verifies

	class  error       // ErrMissingSegment, or nil
	file   fileID      // File, if it holds payloads
	ranges []fileRange // bytes that cannot be trusted; none: no cell is read from them
}

// Unwrap makes errors.Is find the class of the damage.
func (e *DamageError) Unwrap() error { return e.class }

func (e *DamageError) Error() string {
	seqs := e.Seq.String()
	if e.Last > e.Seq {
		seqs += "-" + e.Last.String()
	}
	return fmt.Sprintf("%s: damaged record: volume %s, epoch %s, seq %s, file %s, offset %d: %s",
		e.Hop, cbt.ID(e.Volume).Short(), e.Epoch.Short(), seqs, e.File, e.Offset, e.What)
}

// NoPointError says why there is no point where one was asked for.
type NoPointError struct {
	At     string
	Why    string
	Before *Point // nearest one before, if any
}

func (e *NoPointError) Error() string {
	s := fmt.Sprintf("resolve %s: no point there: %s", e.At, e.Why)
	if e.Before != nil {
		s += fmt.Sprintf("; nearest before: #%d.%d", e.Before.Number, e.Before.Seq)
	}
	return s
}

// Unwrap makes errors.Is(err, ErrNoPoint) hold.
func (e *NoPointError) Unwrap() error { return ErrNoPoint }

// Errors of retention. ReclaimedError carries evidence.
var (
	ErrReclaimed = errors.New("the history before it was folded")
	ErrBusy      = errors.New("it is being done already")
	ErrNoPin     = errors.New("no such pin")
	ErrSeed      = errors.New("the seed is not whole")             // or the file is none
	ErrHistory   = errors.New("the journal holds history already") // and a seed is for one without
)

// ReclaimedError says that records are gone as they were written: history was
// folded, and what is left of it before From are the points that are kept.
type ReclaimedError struct {
	At   Position // what was asked for
	From Position // the first record that is still there as it was written
}

func (e *ReclaimedError) Error() string {
	return fmt.Sprintf("record %s: the history before %s was folded", e.At, e.From)
}

// Unwrap makes errors.Is hold of ErrReclaimed, and of ErrNoPoint: such a record is
// no point.
func (e *ReclaimedError) Unwrap() []error { return []error{ErrReclaimed, ErrNoPoint} }
