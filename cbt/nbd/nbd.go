package nbd

import (
	"context"

	"github.com/novacron/afterimage/cbt"
)

// Device is what an export serves. Offsets and lengths are in bytes, inside the
// export's size, of any alignment and never empty; all methods are called from
// many goroutines at once.
//
// An error that wraps an Errno is sent as that number; any other is sent as EIO.
type Device interface {
	// ReadAt fills p. p is the device's until the call returns.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// WriteAt takes p. p is the device's until the call returns; when it returns
	// an error the server never uses p again, since somebody behind the device
	// may still hold it. With fua it returns once p is safe against power loss.
	WriteAt(ctx context.Context, p []byte, off int64, fua bool) error
	// Zero makes e read as zeros; e may be far larger than any write. noHole
	// asks for the space to stay allocated.
	Zero(ctx context.Context, e cbt.Extent, fua, noHole bool) error
	// Trim says that the content of e does not matter any more.
	Trim(ctx context.Context, e cbt.Extent, fua bool) error
	// Flush returns once every change whose call has returned is safe against
	// power loss (proto.md, "Ordering of messages and writes").
	Flush(ctx context.Context) error
	// Status tells what e consists of, in order and without holes in between.
	// It may stop early, after at least one extent.
	Status(ctx context.Context, e cbt.Extent) ([]StatusExtent, error)
}

// Prompt is a Device of which most writes are done without waiting for a disk. They
// need no goroutine of their own then: whoever reads the socket begins what has
// arrived, settles it together and answers.
type Prompt interface {
	Device
	// Begin takes a write, in the order of the calls, without waiting for anything.
	// False: it has to go the way of WriteAt. p is the caller's again on return.
	// Settle follows.
	Begin(p []byte, off int64) (Begun, bool)
	// Settle makes what was begun safe. It may be held up, until the device lets go.
	Settle()
	// LetGo has f called, in a goroutine of its own, when the device lets go: what was
	// begun waits no more then, and nobody need be held up. stop is as of
	// context.AfterFunc.
	LetGo(f func()) (stop func() bool)
}

// Begun is a write of a Prompt that has its place.
type Begun interface {
	// Wait returns once the write may be answered. It is called once.
	Wait() error
}

// StatusExtent is one piece of the base:allocation context.
type StatusExtent struct {
	Length int64 // bytes, above zero
	Hole   bool  // nothing is allocated
	Zero   bool  // reads as zeros
}

// Export is one disk that a server offers.
type Export struct {
	Name        string
	Description string // for people; nbdinfo shows it
	Size        int64  // bytes
	ReadOnly    bool
	// MultiConn promises that a FLUSH or FUA on one connection covers what was
	// answered on all others (proto.md, NBD_FLAG_CAN_MULTI_CONN).
	MultiConn bool
	// NoFlush withholds FLUSH and FUA: answered then means as safe as it gets.
	NoFlush bool
	Device  Device
	// Release, which may be nil, is called once, when the last request of the
	// connection that opened the export has ended.
	Release func()
}

// transmissionFlags are what the server tells about x.
func (x *Export) transmissionFlags(structured bool) uint16 {
	f := uint16(flagHasFlags)
	if x.ReadOnly {
		f |= flagReadOnly
	} else {
		f |= flagSendTrim | flagSendWriteZeroes
	}
	if !x.NoFlush {
		f |= flagSendFlush | flagSendFUA
	}
	if x.MultiConn {
		f |= flagCanMultiConn
	}
	if structured {
		f |= flagSendDF
	}
	return f
}
