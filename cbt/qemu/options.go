package qemu

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/novacron/afterimage/cbt"
)

// Disk is one volume and the block node through which its guest writes.
type Disk struct {
	Volume cbt.Volume
	Node   string // a root node: the one that the guest's device or export uses
	// Find, if not nil, tells the node anew at each attachment, instead of Node:
	// a manager of the machine names nodes as it pleases.
	Find func(ctx context.Context, m Monitor) (node string, err error)
	// Persistent keeps the bitmaps in a qcow2 image, so that a clean restart of
	// the machine costs a delta. Reverting such an image while its machine is off
	// leaves no trace in them: set it only where nobody does that.
	Persistent bool
}

// Options of a Tracker.
type Options struct {
	QMP   string // path of the machine's QMP socket, for the tracker alone
	Disks []Disk // more may be plugged later
	Name  cbt.ID // of the tracker's sockets; default the first volume's, of which there has to be one then
	Dir   string // for two sockets; must exist, and QEMU must be able to connect there
	// Dial replaces QMP by another way to the machine's monitor.
	Dial func(ctx context.Context) (Monitor, error)
	// Copies, if not nil, taps through a manager of the machine and not through its
	// monitor. No bitmap is used: every attachment reads the disk whole.
	Copies func(ctx context.Context) (Copier, error)
	// ReadServer is the unix socket of the NBD server that this QEMU already
	// runs, if it does. Resyncs read through it; else one is started meanwhile.
	ReadServer string

	Sink        cbt.Sink
	Memory      cbt.Memory
	Incarnation cbt.Incarnation // of the capturing process
	Gate        *Gate           // shared by all trackers of one sink; nil: its own

	// Every, if not 0, is bitmap capture: nothing lies in the guest's way, and a
	// cycle is closed, a point made, this often. Dir must have room then for what
	// changes meanwhile, and QEMU must be able to open files there.
	Every time.Duration
	Cut   *Cut // shared by trackers whose machines make points together; nil: alone
	// Still stops the guest for a moment, for a Cut of several machines; nil: the
	// machine's own stop and cont.
	Still func(ctx context.Context, m Monitor) (resume func(context.Context) error, err error)

	StallBudget time.Duration // longest a guest's write may wait for us; default 500 ms
	Rotate      time.Duration // between rotations of bitmaps; default 60 s, at least 4 stall budgets
	Granularity int64         // bytes per bit of a bitmap; default 64 KiB
	Retry       time.Duration // longest pause between attempts; default 5 s
	FillRate    int64         // bytes read from a live disk per second; 0: no limit
	FillDepth   int           // reads of a live disk in flight, 1 MiB each; default 4
	SocketMode  os.FileMode   // of the capture socket; default 0600
	SocketOwner int           // user id that the capture socket is given to; 0: nobody else

	// Heartbeat, if not nil, tells a watchdog process that the capture path is
	// alive, and WatchdogQMP is a second QMP socket for it to act through.
	Heartbeat   *Heartbeat
	WatchdogQMP string

	// Resize is asked when a disk has another size than its volume; once it
	// returns nil the tracker goes on with the new size. nil: that is an error.
	Resize func(ctx context.Context, v cbt.Volume) error

	Events Events
	Log    *slog.Logger // nil: silent

	faults faults
}

// Events report what a tracker does; nil functions are skipped. They are called
// from its goroutines and must not block.
type Events struct {
	StateChanged   func(cbt.VolumeStatus)
	DiskFound      func(v cbt.VolumeID, i Image)                          // where the machine has it open, at each attachment; may write to a disk
	BytesRead      func(v cbt.VolumeID, n int64)                          // from a live disk, by a resync
	BytesJournaled func(v cbt.VolumeID, n int64)                          // recorded by a resync
	RotationDone   func(v cbt.VolumeID, kept []string)                    // bitmaps, oldest first
	LetGo          func(v cbt.VolumeID, c cbt.Cause, err error)           // a tap ended
	RanOn          func(v cbt.VolumeID, why string) error                 // its machine may have written unseen since it was last synced; may write to a disk
	GapRecorded    func(v cbt.VolumeID, c cbt.Cause, after time.Duration) // and since when it was due
}

const granularityDefault = 64 << 10

// named is o with the name that its disks give it.
func (o Options) named() Options {
	if o.Name.IsZero() && len(o.Disks) > 0 {
		o.Name = cbt.ID(o.Disks[0].Volume.ID)
	}
	return o
}

func (o Options) withDefaults() Options {
	if o.StallBudget <= 0 {
		o.StallBudget = 500 * time.Millisecond
	}
	if o.Rotate <= 0 {
		o.Rotate = time.Minute
	}
	o.Rotate = max(o.Rotate, 4*o.StallBudget)
	if o.Granularity == 0 {
		o.Granularity = granularityDefault
	}
	if o.Retry <= 0 {
		o.Retry = 5 * time.Second
	}
	if o.FillDepth <= 0 {
		o.FillDepth = 4
	}
	if o.Gate == nil {
		o.Gate = new(Gate)
	}
	if o.Cut == nil {
		o.Cut = new(Cut)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Dial == nil {
		path := o.QMP
		o.Dial = func(ctx context.Context) (Monitor, error) { return DialQMP(ctx, path) }
	}
	return o
}

// longestSocketPath is what fits into a sockaddr_un, with its end.
const longestSocketPath = 107

func (o Options) validate() error {
	switch {
	case o.QMP == "" && o.Dial == nil && o.Copies == nil:
		return fmt.Errorf("%w: none of QMP, Dial and Copies", ErrOptions)
	case len(o.Disks) == 0 && o.Name.IsZero():
		return fmt.Errorf("%w: no disks", ErrOptions)
	case o.Sink == nil || o.Memory == nil:
		return fmt.Errorf("%w: Sink and Memory are needed", ErrOptions)
	case o.Every > 0 && o.Copies != nil:
		return fmt.Errorf("%w: bitmap cycles need the monitor", ErrOptions)
	case cbt.ID(o.Incarnation).IsZero():
		return fmt.Errorf("%w: zero incarnation", ErrOptions)
	case o.Granularity != 0 && (o.Granularity < cbt.SectorBytes || o.Granularity&(o.Granularity-1) != 0):
		return fmt.Errorf("%w: granularity %d is no power of two of at least %d", ErrOptions, o.Granularity, cbt.SectorBytes)
	}
	nodes, ids := map[string]bool{}, map[cbt.VolumeID]bool{}
	for _, d := range o.Disks {
		if d.Node == "" || nodes[d.Node] || ids[d.Volume.ID] || cbt.ID(d.Volume.ID).IsZero() {
			return fmt.Errorf("%w: disk %q (node %q): node and id must be set and differ from the others'", ErrOptions, d.Volume.Name, d.Node)
		}
		if d.Volume.Size <= 0 || d.Volume.Size%cbt.SectorBytes != 0 {
			return fmt.Errorf("%w: disk %q has %d bytes, not a positive multiple of %d", ErrOptions, d.Volume.Name, d.Volume.Size, cbt.SectorBytes)
		}
		nodes[d.Node], ids[d.Volume.ID] = true, true
	}
	// The capture socket is born in a directory beside it whose name is longer.
	if p := o.captureSocket(); len(p)+len("/.nbd1234567890/") > longestSocketPath {
		return fmt.Errorf("%w: socket path %s is too long", ErrOptions, p)
	}
	return nil
}

// The sockets bear the tracker's name, so that its next life finds what QEMU still
// serves, and two trackers can share Dir.
func (o Options) captureSocket() string { return o.socket("capture") }
func (o Options) readSocket() string    { return o.socket("reads") }
func (o Options) socket(what string) string {
	return filepath.Join(o.Dir, what+"-"+o.Name.Short())
}
