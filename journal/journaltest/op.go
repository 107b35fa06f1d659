package journaltest

import "fmt"

// Kind is what an operation does.
type Kind uint8

// Kinds of operations. The first six are records of a volume; the others are done
// to the journal.
const (
	Write    Kind = iota + 1 // Data at Off
	Fill                     // Data at Off, by a resync
	Zero                     // Len bytes at Off
	Trim                     // Len bytes at Off
	Resize                   // the volume has Size bytes from now on
	Break                    // a gap of the volume, and synced again
	Mark                     // Name on the moment
	Pin                      // Name on the moment, to be kept whatever the ladder says
	Flush                    // wait until all before is durable
	Fork                     // a new epoch goes on at the pin Name
	Reopen                   // close, open, a new epoch goes on at the head
	Hold                     // open a view of the moment and keep it
	Release                  // read the oldest view that is held, and close it
	Maintain                 // fold, merge and reclaim under ladder number Ladder
	Look                     // read some point again
)

var names = [...]string{"", "write", "fill", "zero", "trim", "resize", "break", "mark", "pin", "flush", "fork", "reopen", "hold", "release", "maintain", "look"}

func (k Kind) String() string { return names[k] }

// Op is one operation. After is the group's state once it is done.
type Op struct {
	Kind     Kind
	Volume   int
	Off, Len int64
	Data     []byte
	Size     int64
	Name     string
	Ladder   int
	After    *State
}

func (op Op) String() string {
	switch op.Kind {
	case Write, Fill, Zero, Trim:
		return fmt.Sprintf("%s of %d bytes at %d of volume %d", op.Kind, op.Len, op.Off, op.Volume)
	case Resize:
		return fmt.Sprintf("resize of volume %d to %d bytes", op.Volume, op.Size)
	case Mark, Pin, Fork:
		return fmt.Sprintf("%s %s", op.Kind, op.Name)
	case Maintain:
		return fmt.Sprintf("maintain under ladder %d", op.Ladder)
	}
	return op.Kind.String()
}
