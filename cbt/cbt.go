package cbt

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

// SectorBytes is the granularity of guest writes, CellBytes the unit of index,
// checksum and sealing, MaxWriteBytes the largest single write (NBD proto.md,
// "Size constraints": what servers must at least be ready for).
const (
	SectorBytes   = 512
	CellBytes     = 4096
	MaxWriteBytes = 32 << 20
)

// ID is a random 128-bit name. The zero ID names nothing.
type ID [16]byte

// NewID draws a random ID.
func NewID() ID {
	var id ID
	if _, err := rand.Read(id[:]); err != nil {
		panic(err) // crypto/rand never fails on Linux; the runtime aborts first
	}
	return id
}

// String is 32 hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Short is the first 8 digits, for tables and logs.
func (id ID) Short() string { return hex.EncodeToString(id[:4]) }

// IsZero reports whether id names nothing.
func (id ID) IsZero() bool { return id == ID{} }

// MarshalText and UnmarshalText are String and ParseID.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText accepts what String prints.
func (id *ID) UnmarshalText(b []byte) error {
	v, err := ParseID(string(b))
	if err == nil {
		*id = v
	}
	return err
}

// ParseID reads what String prints.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != 2*len(id) {
		return id, fmt.Errorf("parse id %q: want %d hexadecimal digits", s, 2*len(id))
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return id, fmt.Errorf("parse id %q: %w", s, err)
	}
	return id, nil
}

// VolumeID names one virtual disk, Incarnation one life of a capturing process.
type (
	VolumeID    ID
	Incarnation ID
)

func (v VolumeID) String() string { return ID(v).String() }

// MarshalText is String.
func (v VolumeID) MarshalText() ([]byte, error) { return ID(v).MarshalText() }

// UnmarshalText accepts what String prints.
func (v *VolumeID) UnmarshalText(b []byte) error { return (*ID)(v).UnmarshalText(b) }

func (i Incarnation) String() string { return ID(i).String() }

// Volume is one virtual disk.
type Volume struct {
	ID   VolumeID
	Name string // unique within its group
	Size int64  // bytes, a multiple of SectorBytes
}

// Extent is a byte range of a volume. Records hold sector-aligned ones only.
type Extent struct {
	Offset int64 // bytes
	Length int64 // bytes
}

// End is the first byte past e.
func (e Extent) End() int64 { return e.Offset + e.Length }

// Aligned reports whether both ends lie on sector boundaries.
func (e Extent) Aligned() bool { return e.Offset%SectorBytes == 0 && e.Length%SectorBytes == 0 }

// Overlaps reports whether e and f share a byte.
func (e Extent) Overlaps(f Extent) bool { return e.Offset < f.End() && f.Offset < e.End() }

// Round is the smallest sector-aligned extent that holds e.
func (e Extent) Round() Extent {
	first := e.Offset &^ (SectorBytes - 1)
	end := (e.End() + SectorBytes - 1) &^ (SectorBytes - 1)
	return Extent{first, end - first}
}

// Within reports whether e lies inside a volume of size bytes, without overflow.
func (e Extent) Within(size int64) bool {
	return e.Offset >= 0 && e.Length >= 0 && e.Length <= size && e.Offset <= size-e.Length
}

func (e Extent) String() string { return fmt.Sprintf("[%d,+%d)", e.Offset, e.Length) }

// Cause says why points stopped. The texts are stable: journals hold them.
type Cause string

// Causes of a gap.
const (
	CauseTapError        Cause = "tap-error"         // QEMU's job ended with an error
	CauseTapEnded        Cause = "tap-ended"         // the job or its machine went away
	CauseStall           Cause = "stall"             // a write outlasted its stall budget; the tap let go
	CauseDiskFull        Cause = "disk-full"         // the journal could not take more
	CauseJournal         Cause = "journal-error"     // the journal failed
	CauseDetached        Cause = "detached"          // released on request
	CauseOpening         Cause = "opening"           // a new life of the capturing process
	CauseBitmapUntrusted Cause = "bitmap-untrusted"  // no trusted bitmap: everything is read again
	CauseLost            Cause = "history-lost"      // records that were durable are lost; a person accepted it
	CauseMachine         Cause = "machine-not-there" // no QMP socket answers
	CauseCycle           Cause = "between-cycles"    // bitmap capture: a closed cycle is one point
)

// EventKind is what happened to a volume.
type EventKind uint8

// Kinds of events.
const (
	EventWrite  EventKind = iota + 1 // Data at Extent
	EventZero                        // Extent reads as zeros
	EventTrim                        // Extent discarded; reads as zeros
	EventFill                        // Data at Extent, read from the live disk
	EventSynced                      // the volume's interval opens at this event
	EventGap                         // the volume's interval closes; Cause says why
)

// Event is one thing that a Tracker saw. Extents are sector-aligned and inside
// the volume; Write and Fill carry at most MaxWriteBytes. Data belongs to the
// Sink until Pending.Wait has returned nil or a failure of the sink itself; when
// Wait returned because its context ended, Data must never be reused.
type Event struct {
	Kind   EventKind
	Volume VolumeID
	Extent Extent
	Data   []byte // len(Data) == Extent.Length for Write and Fill, else nil
	Cause  Cause  // Gap
	Detail string // Gap: for people
	// At is the moment that the event tells of, where that is earlier than its record:
	// what a closed cycle holds. Zero: now. No record's time is before an earlier one's.
	At time.Time
}

// Pending is an event that has its place in the order.
type Pending interface {
	// Wait returns once the event is safe by the sink's policy.
	Wait(ctx context.Context) error
}

// Sink takes what a Tracker captures; the writer of a journal's epoch is one.
// All methods are safe for concurrent use.
type Sink interface {
	// Record gives ev its place in the order and returns without waiting for
	// storage, except for back-pressure while too much is under way. A call
	// that begins after another has returned is ordered after it.
	Record(ctx context.Context, ev Event) (Pending, error)
	// ReadHead reads v as of at least all that was safe when it is called.
	ReadHead(ctx context.Context, v VolumeID, off int64, p []byte) error
	// WaitDurable returns once all that was recorded before the call survives
	// the loss of power.
	WaitDurable(ctx context.Context) error
}

// Prompt is a Sink whose records are safe without waiting for a disk, so that who
// records them may make them safe himself, many at once.
type Prompt interface {
	Sink
	// RecordNow is Record where that means no waiting at all. Else it reports false,
	// and nothing is recorded: Record is to be asked. ev.Data is the caller's again on
	// return. Commit must follow, in any case and soon.
	RecordNow(ev Event) (Pending, bool)
	// Commit makes what RecordNow took safe, or sees to it that it becomes safe while
	// others do the same. It may be held up where the storage is.
	Commit()
}

// Memory keeps small values across restarts of a tracker's process, by key.
// Remember returns once the value is durable. Recall reports whether there was one.
type Memory interface {
	Remember(key string, v any) error
	Recall(key string, v any) (bool, error)
}

// ErrDiskFull is wrapped by a Sink's errors when its storage is full; a tracker
// then lets the tap go with CauseDiskFull.
var ErrDiskFull = errors.New("journal storage is full")
