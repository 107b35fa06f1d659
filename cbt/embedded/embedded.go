package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
)

// Place is a record's name in the history, as History gives it.
type Place struct {
	Epoch string `json:"epoch"`
	Seq   uint64 `json:"seq"`
}

// History is what the volume asks of its journal besides the Sink.
type History interface {
	// Head is the newest record's place.
	Head() Place
	// Holds reports whether a place is in the current history, and with it all that
	// was written behind it before the next epoch began: what a volume that stood
	// there may hold beside.
	Holds(Place) bool
	// Changed lists where the volume at the head may differ from what it was at any
	// moment from a place on, in the history that the place belongs to. It never
	// leaves out what differs; where nobody can tell it is an error.
	Changed(ctx context.Context, from Place, v cbt.VolumeID) ([]cbt.Extent, error)
	// Replay yields the data events of the current history after a place that it
	// holds, in order.
	Replay(ctx context.Context, after Place, each func(cbt.Event) error) error
}

// ErrThinned is what Replay says where events after the place are not there any more
// one by one: the image is then made anew from the head.
var ErrThinned = errors.New("history after that place was thinned")

// ErrImage says that a file stands where the image should be, that this journal
// knows nothing of it, and that the volume has content: neither may overwrite the other.
var ErrImage = errors.New("the image file is not known to the journal, and the volume already has content; move the file away to have it made anew")

// Options of New.
type Options struct {
	Volume     cbt.Volume
	Image      string        // raw file; made sparse when it is not there
	Device     bool          // Image is a block device instead, of at least the volume's size
	Sink       cbt.Sink      // the epoch's writer
	History    History       // the same journal
	Memory     cbt.Memory    // keeps the image's place
	Key        string        // under which; default "embedded/VOLUME"
	Checkpoint time.Duration // between checkpoints and resync attempts; default 5 s
	Boot       string        // names the host's run; default the kernel's boot id
	Log        *slog.Logger  // default: discarded
	// Progress, which may be nil, is told while an image is brought to the head: what of
	// it was compared, of how much, and then what was read back.
	Progress func(step string, done, total int64)
	// Settle, which may be nil, makes it durable that the disk lies in Image: Move calls
	// it when the image is durable and known to Memory, and before any write is taken
	// that the journal may lack.
	Settle func() error
}

// Device is one embedded volume.
type Device struct {
	o     Options
	store store
	locks ranges
	gate  sync.RWMutex // read-held from a write's record to its image; a checkpoint takes it whole

	mu          sync.Mutex // guards below
	unprotected bool       // writes reach the image only
	marked      bool       // the memo says so
	synced      bool
	torn        error // a write is in the journal and not in the image: the memo stays where it is
	wake        chan struct{}
	moved       chan struct{} // closed once a disk of the journal alone lies in an image; nil of others
}

var _ nbd.Device = (*Device)(nil)

// memo is what Memory keeps of a volume.
type memo struct {
	Place       Place `json:"place"`       // the image holds every write up to it
	Unprotected bool  `json:"unprotected"` // the image holds writes that the journal lacks
	// Boot is the host's run in which that was so, and Ended that nothing was written
	// to the image afterwards. A host that went down before may have written back
	// pages of records that the journal lost with it.
	Boot  string `json:"boot,omitempty"`
	Ended bool   `json:"ended,omitempty"`
}

func (d *Device) key() string {
	if d.o.Key != "" {
		return d.o.Key
	}
	return keyOf(d.o.Volume.ID)
}

func keyOf(v cbt.VolumeID) string { return "embedded/" + v.String() }

// CheckpointedAs is Checkpointed of an image with a key of its own.
func CheckpointedAs(m cbt.Memory, key string) (Place, bool, error) {
	var was memo
	ok, err := m.Recall(key, &was)
	if err != nil {
		return Place{}, false, fmt.Errorf("recall checkpoint %s: %w", key, err)
	}
	return was.Place, ok && was.Place != Place{}, nil
}

// Checkpointed is up to where a volume's image holds every write, as Memory has it:
// an opening replays what the journal has after it. There is none before the first
// opening.
func Checkpointed(m cbt.Memory, v cbt.VolumeID) (Place, bool, error) {
	return CheckpointedAs(m, keyOf(v))
}

// New opens the image and brings it to the journal's head, or the journal to an
// image that holds more: when it returns, image and head are equal. It opens the
// volume's interval. It starts nothing.
func New(ctx context.Context, o Options) (*Device, error) {
	o.Checkpoint = checkpointOr(o.Checkpoint)
	if o.Boot == "" {
		o.Boot = bootOf()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	open := openImage
	if o.Device {
		open = openDevice
	}
	img, err := open(o.Image, o.Volume.Size)
	if err != nil {
		return nil, fmt.Errorf("open embedded volume %s: %w", o.Volume.Name, err)
	}
	d := &Device{o: o, store: img, wake: make(chan struct{}, 1)}
	if err := d.catchUp(ctx, img); err != nil {
		return nil, errors.Join(fmt.Errorf("open embedded volume %s: %w", o.Volume.Name, err), img.close())
	}
	return d, nil
}

func checkpointOr(d time.Duration) time.Duration {
	if d == 0 {
		return 5 * time.Second
	}
	return d
}

// catchUp makes image and head equal and opens the interval.
func (d *Device) catchUp(ctx context.Context, img *image) error {
	var m memo
	known, err := d.o.Memory.Recall(d.key(), &m)
	if err != nil {
		return err
	}
	switch {
	case img.fresh: // also where an image was known: what lay in it is gone
		if known {
			d.o.Log.Error("the image is gone; made anew from the head", "volume", d.o.Volume.Name, "image", d.o.Image, "held_more", m.Unprotected)
		}
		err = d.rebuild(ctx)
	case !known:
		err = d.adopt(ctx, true)
	case !d.o.History.Holds(m.Place):
		err = d.changeBranch(ctx, m)
	case m.Unprotected:
		err = d.adopt(ctx, false)
	case m.crashed(d.o.Boot):
		d.o.Log.Warn("the host went down while the image was in use; all of it is compared with the head", "volume", d.o.Volume.Name)
		_, err = d.level(ctx, d.whole())
	default:
		err = d.o.History.Replay(ctx, m.Place, func(ev cbt.Event) error {
			if ev.Volume != d.o.Volume.ID {
				return nil
			}
			return applyTo(img, ev)
		})
		if errors.Is(err, ErrThinned) {
			d.o.Log.Warn("history since the image's checkpoint was thinned; image made anew from the head", "volume", d.o.Volume.Name)
			err = d.rebuild(ctx)
		}
	}
	if errors.Is(err, cbt.ErrDiskFull) {
		d.o.Log.Warn("journal is full; the volume is served unprotected", "volume", d.o.Volume.Name)
		return d.setUnprotected()
	}
	if err == nil {
		err = d.checkpoint(ctx, false)
	}
	if err == nil {
		err = d.record(ctx, cbt.Event{Kind: cbt.EventSynced, Volume: d.o.Volume.ID})
	}
	if err == nil {
		d.mu.Lock()
		d.synced, d.unprotected = true, false
		d.mu.Unlock()
	}
	return err
}

// Protected reports whether every write is in the journal.
func (d *Device) Protected() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.synced && !d.unprotected
}

// Run keeps checkpoints and, after the journal had no room, brings it back level.
// It returns nil when ctx ends, after a last checkpoint. A disk that lives in the journal
// alone needs neither, until it is moved.
func (d *Device) Run(ctx context.Context) error {
	if d.moved != nil {
		select {
		case <-d.moved:
		case <-ctx.Done():
			return nil
		}
	}
	t := time.NewTicker(d.o.Checkpoint)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			if !d.Protected() {
				return nil
			}
			return d.checkpoint(context.WithoutCancel(ctx), false)
		case <-t.C:
		case <-d.wake:
			continue // a break was noted; the next tick tries again
		}
		if err := d.tick(ctx); err != nil && ctx.Err() == nil {
			d.o.Log.Warn("embedded volume", "volume", d.o.Volume.Name, "err", err)
		}
	}
}

func (d *Device) tick(ctx context.Context) error {
	if d.Protected() {
		return d.checkpoint(ctx, false)
	}
	return d.resync(ctx)
}

// resync ends an unprotected stretch: from here writes are recorded again, and the
// whole image is compared with the head under the extents' locks.
func (d *Device) resync(ctx context.Context) error {
	d.mu.Lock()
	d.unprotected = false
	d.mu.Unlock()
	err := d.adopt(ctx, false)
	if err == nil {
		err = d.checkpoint(ctx, false)
	}
	if err == nil {
		d.gate.Lock() // no write is between journal and image when the interval opens
		d.mu.Lock()
		broken := d.unprotected
		d.mu.Unlock()
		if !broken {
			err = d.record(ctx, cbt.Event{Kind: cbt.EventSynced, Volume: d.o.Volume.ID})
		}
		d.gate.Unlock()
		if broken {
			return nil
		}
	}
	if err != nil {
		return errors.Join(fmt.Errorf("resync: %w", err), d.setUnprotected())
	}
	d.mu.Lock()
	d.synced = true
	d.mu.Unlock()
	return nil
}

// adopt records what of the image differs from the head. An image that the journal
// does not know yet may add to an empty head only.
func (d *Device) adopt(ctx context.Context, unknown bool) error {
	const step = 1 << 20
	have, want := make([]byte, step), make([]byte, step)
	for off := int64(0); off < d.o.Volume.Size; off += step {
		n := min(step, d.o.Volume.Size-off)
		if err := d.adoptPart(ctx, off, have[:n], want[:n], unknown); err != nil {
			return fmt.Errorf("compare image with head at %d: %w", off, err)
		}
	}
	return nil
}

func (d *Device) adoptPart(ctx context.Context, off int64, have, want []byte, unknown bool) error {
	unlock, err := d.locks.lock(ctx, cbt.Extent{Offset: off, Length: int64(len(have))})
	if err != nil {
		return err
	}
	defer unlock()
	if err := d.store.readAt(ctx, have, off); err != nil {
		return err
	}
	if err := d.o.Sink.ReadHead(ctx, d.o.Volume.ID, off, want); err != nil {
		return err
	}
	for _, e := range differing(have, want) {
		if unknown && !isZero(want) {
			return ErrImage
		}
		data := append([]byte(nil), have[e.Offset:e.End()]...)
		ev := cbt.Event{Kind: cbt.EventFill, Volume: d.o.Volume.ID, Extent: cbt.Extent{Offset: off + e.Offset, Length: e.Length}, Data: data}
		if err := d.record(ctx, ev); err != nil {
			return err
		}
	}
	return nil
}

// rebuild writes the head over the whole image.
func (d *Device) rebuild(ctx context.Context) error {
	const step = 1 << 20
	buf := make([]byte, step)
	for off := int64(0); off < d.o.Volume.Size; off += step {
		p := buf[:min(step, d.o.Volume.Size-off)]
		if err := d.o.Sink.ReadHead(ctx, d.o.Volume.ID, off, p); err != nil {
			return fmt.Errorf("rebuild image at %d: %w", off, err)
		}
		ev := cbt.Event{Kind: cbt.EventWrite, Extent: cbt.Extent{Offset: off, Length: int64(len(p))}, Data: p}
		if isZero(p) {
			ev.Kind = cbt.EventZero
		}
		if err := applyTo(d.store, ev); err != nil {
			return fmt.Errorf("rebuild image at %d: %w", off, err)
		}
	}
	return nil
}

// Checkpoint makes the image durable up to now, so that an opening needs no history
// before. Run does it by itself every few seconds.
func (d *Device) Checkpoint(ctx context.Context) error { return d.checkpoint(ctx, false) }

// checkpoint makes the image durable and remembers up to where it holds every write;
// ended: that there will be no other.
func (d *Device) checkpoint(ctx context.Context, ended bool) error {
	d.gate.Lock()
	at := d.o.History.Head()
	d.gate.Unlock()
	if err := d.store.sync(ctx); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	d.gate.Lock()
	defer d.gate.Unlock()
	d.mu.Lock()
	broken, torn := d.unprotected, d.torn
	if !broken && torn == nil {
		d.marked = false
	}
	d.mu.Unlock()
	if torn != nil {
		return fmt.Errorf("checkpoint: the image lacks a write: %w", torn)
	}
	if broken {
		return nil
	}
	if err := d.o.Memory.Remember(d.key(), memo{Place: at, Boot: d.o.Boot, Ended: ended}); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return nil
}

// setUnprotected marks, durably and before the image gets a write that the journal
// lacks, that the image is ahead; and closes the interval.
func (d *Device) setUnprotected() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.unprotected {
		return nil
	}
	if !d.marked { // an attempt that failed takes no room where there is none
		if err := d.o.Memory.Remember(d.key(), memo{Place: d.o.History.Head(), Unprotected: true, Boot: d.o.Boot}); err != nil {
			return fmt.Errorf("mark volume unprotected: %w", err)
		}
	}
	d.unprotected, d.marked, d.synced = true, true, false
	// The sink owes the gap already where it refused the write; this one is for a
	// sink that only then has room for it.
	_, _ = d.o.Sink.Record(context.Background(), cbt.Event{Kind: cbt.EventGap, Volume: d.o.Volume.ID, Cause: cbt.CauseDiskFull, Detail: "the volume is served unprotected"})
	select {
	case d.wake <- struct{}{}:
	default:
	}
	return nil
}

// record returns once ev is safe.
func (d *Device) record(ctx context.Context, ev cbt.Event) error {
	p, err := d.o.Sink.Record(ctx, ev)
	if err != nil {
		return err
	}
	return p.Wait(ctx)
}

// Close frees the image. Call it after Run has returned and the export is gone, and
// no request is under way: then the image is known to hold what its journal does.
func (d *Device) Close() error {
	var err error
	if d.store.standsAlone() && d.Protected() {
		err = d.checkpoint(context.Background(), true)
	}
	return errors.Join(err, d.store.close())
}
