package cbttest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/novacron/afterimage/cbt"
)

// ErrBroken is what a Recorder that was told to Break returns.
var ErrBroken = errors.New("the recorder is broken")

// Recorder is a Sink in memory.
type Recorder struct {
	mu      sync.Mutex // guards what follows
	sizes   map[cbt.VolumeID]int64
	placed  map[cbt.VolumeID][]byte // with all that has its place
	safe    map[cbt.VolumeID][]byte // with all that is safe: what ReadHead shows
	log     []cbt.Event
	unsafe  []*pending // in order; they become safe in that order only
	err     error      // what Record returns, nil while it works
	held    chan struct{}
	stopped chan struct{} // while not nil, Record waits for it before it gives a place
	waiting int           // calls of Record that wait for stopped
	delay   time.Duration
	late    time.Duration // of gaps, before they get their place
	changed chan struct{} // closed and replaced at every change
}

var _ cbt.Prompt = (*Recorder)(nil)

// NewRecorder keeps the given volumes.
func NewRecorder(vs ...cbt.Volume) *Recorder {
	r := &Recorder{
		sizes: make(map[cbt.VolumeID]int64), placed: make(map[cbt.VolumeID][]byte),
		safe: make(map[cbt.VolumeID][]byte), changed: make(chan struct{}),
	}
	for _, v := range vs {
		r.AddVolume(v)
	}
	return r
}

// AddVolume adds v or gives it another size.
func (r *Recorder) AddVolume(v cbt.Volume) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sizes[v.ID] = v.Size
	for _, m := range []map[cbt.VolumeID][]byte{r.placed, r.safe} {
		image := make([]byte, v.Size)
		copy(image, m[v.ID])
		m[v.ID] = image
	}
}

// pending is an event that has its place.
type pending struct {
	r     *Recorder
	ev    cbt.Event
	delay time.Duration
	safe  chan struct{}
}

// Wait implements cbt.Pending.
func (p *pending) Wait(ctx context.Context) error {
	if p.delay > 0 {
		t := time.NewTimer(p.delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	select {
	case <-p.safe:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Record implements cbt.Sink.
func (r *Recorder) Record(ctx context.Context, ev cbt.Event) (cbt.Pending, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ev.Kind == cbt.EventGap && r.late > 0 {
		late := time.NewTimer(r.late)
		defer late.Stop()
		r.mu.Unlock()
		select {
		case <-late.C:
		case <-ctx.Done():
		}
		r.mu.Lock()
	}
	for r.stopped != nil {
		stopped := r.stopped
		r.waiting++
		r.notify()
		r.mu.Unlock()
		select {
		case <-stopped:
			r.mu.Lock()
			r.waiting--
		case <-ctx.Done():
			r.mu.Lock()
			r.waiting--
			return nil, context.Cause(ctx)
		}
	}
	return r.place(ev)
}

// RecordNow implements cbt.Prompt: while nothing makes the recorder wait or fail.
func (r *Recorder) RecordNow(ev cbt.Event) (cbt.Pending, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.held != nil || r.stopped != nil || r.delay > 0 {
		return nil, false
	}
	p, err := r.place(ev)
	return p, err == nil
}

// Commit implements cbt.Prompt: what RecordNow took is safe already.
func (r *Recorder) Commit() {}

// place gives ev its place; r.mu is held.
func (r *Recorder) place(ev cbt.Event) (cbt.Pending, error) {
	if r.err != nil {
		return nil, r.err
	}
	if err := r.check(ev); err != nil {
		return nil, err
	}
	// A caller may reuse nothing before Wait returns; the copy is for our log.
	ev.Data = slices.Clone(ev.Data)
	r.log = append(r.log, ev)
	apply(r.placed[ev.Volume], ev)
	p := &pending{r: r, ev: ev, delay: r.delay, safe: make(chan struct{})}
	r.unsafe = append(r.unsafe, p)
	if r.held == nil {
		r.settle()
	}
	r.notify()
	return p, nil
}

// check holds a tracker to the contract of cbt.Event.
func (r *Recorder) check(ev cbt.Event) error {
	size, ok := r.sizes[ev.Volume]
	if !ok {
		return fmt.Errorf("record: unknown volume %s", ev.Volume)
	}
	hasData := ev.Kind == cbt.EventWrite || ev.Kind == cbt.EventFill
	switch {
	case ev.Kind == cbt.EventSynced || ev.Kind == cbt.EventGap:
		return nil
	case !ev.Extent.Aligned() || !ev.Extent.Within(size) || ev.Extent.Length == 0:
		return fmt.Errorf("record: extent %v of a volume of %d bytes", ev.Extent, size)
	case hasData && (int64(len(ev.Data)) != ev.Extent.Length || ev.Extent.Length > cbt.MaxWriteBytes):
		return fmt.Errorf("record: %d bytes of data for %v", len(ev.Data), ev.Extent)
	case !hasData && ev.Data != nil:
		return fmt.Errorf("record: data with kind %d", ev.Kind)
	}
	return nil
}

func apply(image []byte, ev cbt.Event) {
	switch ev.Kind {
	case cbt.EventWrite, cbt.EventFill:
		copy(image[ev.Extent.Offset:], ev.Data)
	case cbt.EventZero, cbt.EventTrim:
		clear(image[ev.Extent.Offset:ev.Extent.End()])
	}
}

// settle makes all that has its place safe; r.mu is held.
func (r *Recorder) settle() {
	for _, p := range r.unsafe {
		apply(r.safe[p.ev.Volume], p.ev)
		close(p.safe)
	}
	r.unsafe = nil
}

func (r *Recorder) notify() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// ReadHead implements cbt.Sink; it shows what is safe and nothing else.
func (r *Recorder) ReadHead(_ context.Context, v cbt.VolumeID, off int64, p []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := cbt.Extent{Offset: off, Length: int64(len(p))}
	if size, ok := r.sizes[v]; !ok || !e.Within(size) || !e.Aligned() {
		return fmt.Errorf("read head: extent %v of volume %s", e, v)
	}
	copy(p, r.safe[v][off:])
	return nil
}

// WaitDurable implements cbt.Sink.
func (r *Recorder) WaitDurable(ctx context.Context) error {
	r.mu.Lock()
	if r.err != nil {
		defer r.mu.Unlock()
		return r.err
	}
	last := (*pending)(nil)
	if n := len(r.unsafe); n > 0 {
		last = r.unsafe[n-1]
	}
	r.mu.Unlock()
	if last == nil {
		return nil
	}
	select {
	case <-last.safe:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Hold keeps what is recorded from becoming safe until Release.
func (r *Recorder) Hold() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.held == nil {
		r.held = make(chan struct{})
	}
}

// Stop makes Record wait before it gives anything a place, until Release.
func (r *Recorder) Stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped == nil {
		r.stopped = make(chan struct{})
	}
}

// Release ends Hold and Stop.
func (r *Recorder) Release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = nil
	r.settle()
	if r.stopped != nil {
		close(r.stopped)
		r.stopped = nil
	}
	r.notify()
}

// Delay makes every later event safe for its waiter only after d.
func (r *Recorder) Delay(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.delay = d
}

// DelayGaps makes every later gap wait for d before it gets its place.
func (r *Recorder) DelayGaps(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.late = d
}

// Break makes Record and WaitDurable return err until Break(nil).
func (r *Recorder) Break(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
	r.notify()
}

// Waiting is how many calls of Record wait since Stop.
func (r *Recorder) Waiting() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.waiting
}

// Unsafe is how many events have their place and are not safe.
func (r *Recorder) Unsafe() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.unsafe)
}

// Image is a copy of v with all that has its place.
func (r *Recorder) Image(v cbt.VolumeID) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.placed[v])
}

// Log is a copy of all events so far, in order.
func (r *Recorder) Log() []cbt.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.log)
}

// Synced reports whether the interval of v is open.
func (r *Recorder) Synced(v cbt.VolumeID) bool { return Synced(r.Log(), v) }

// Synced reports whether the interval of v is open at the end of log.
func Synced(log []cbt.Event, v cbt.VolumeID) bool {
	for i := len(log) - 1; i >= 0; i-- {
		if log[i].Volume == v && (log[i].Kind == cbt.EventSynced || log[i].Kind == cbt.EventGap) {
			return log[i].Kind == cbt.EventSynced
		}
	}
	return false
}

// Gaps is the causes of v's gaps, oldest first.
func (r *Recorder) Gaps(v cbt.VolumeID) []cbt.Cause {
	var out []cbt.Cause
	for _, ev := range r.Log() {
		if ev.Volume == v && ev.Kind == cbt.EventGap {
			out = append(out, ev.Cause)
		}
	}
	return out
}

// Until waits until ok holds, asking after every change.
func (r *Recorder) Until(ctx context.Context, ok func() bool) error {
	for {
		r.mu.Lock()
		changed := r.changed
		r.mu.Unlock()
		if ok() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
