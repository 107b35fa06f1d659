package site

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/qemu"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// longestPause bounds how long a group may be left without protection by one order.
const longestPause = 7 * 24 * time.Hour

// pauseKey is where a group's journal remembers that it is paused, so that a
// restart neither ends a pause early nor forgets to end it.
const pauseKey = "site/pause"

// pause is a time in which the machine of a group is left alone.
type pause struct {
	Since  time.Time `json:"since"`
	Until  time.Time `json:"until"` // zero: not paused
	Reason string    `json:"reason"`
}

func (p pause) at(now time.Time) bool { return now.Before(p.Until) }

func (p pause) Error() string {
	return fmt.Sprintf("paused until %s: %s", p.Until.Format(time.RFC3339), p.Reason)
}

// tapping runs trackers of one machine, one after the other: none while the group
// is paused. Each comes back by itself with what the bitmaps tell.
type tapping struct {
	make     func() (cbt.Tracker, error)
	remember func(pause) error
	now      func() time.Time

	mu      sync.Mutex // guards what follows
	tracker cbt.Tracker
	pause   pause
	held    bool          // nothing is tapped, for the life of an order (hold)
	turn    chan struct{} // closed when pause or held changes
	idle    chan struct{} // closed while no tracker runs
}

// newTapping makes the first tracker, so that options that cannot work are told at once.
func newTapping(p pause, now func() time.Time, remember func(pause) error, maker func() (cbt.Tracker, error)) (*tapping, error) {
	t, err := maker()
	if err != nil {
		return nil, err
	}
	idle := make(chan struct{})
	close(idle)
	return &tapping{make: maker, remember: remember, now: now, tracker: t, pause: p, turn: make(chan struct{}), idle: idle}, nil
}

// Status is the tracker's; while paused it says so.
func (t *tapping) Status() []cbt.VolumeStatus {
	t.mu.Lock()
	tracker, p := t.tracker, t.pause
	t.mu.Unlock()
	out := tracker.Status()
	if p.at(t.now()) {
		for i := range out {
			out[i].Cause, out[i].Detail = cbt.CauseDetached, p.Error()
			out[i].Mode, out[i].ModeSince, out[i].ModeWhy = cbt.ModeReleased, p.Since, p.Reason
		}
	}
	return out
}

// plugging is a tracker of machines whose disks may come and go.
type plugging interface {
	Plug(guest string, d qemu.Disk) error
	Unplug(ctx context.Context, v cbt.VolumeID, farewell func(context.Context) error) error
}

// plug has a disk of a machine captured from now on; what makes the next tracker knows
// of it by then.
func (t *tapping) plug(guest string, d qemu.Disk) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p, ok := t.tracker.(plugging); ok {
		return p.Plug(guest, d)
	}
	return fmt.Errorf("plug %s: the tracker takes no more disks", d.Volume.Name)
}

// statusOf is Status of one machine's disks.
func (t *tapping) statusOf(guest string) []cbt.VolumeStatus {
	t.mu.Lock()
	tracker := t.tracker
	t.mu.Unlock()
	f, ok := tracker.(*fleet)
	if !ok {
		return t.Status()
	}
	if one := f.of(guest); one != nil {
		return one.Status()
	}
	return nil
}

// guestOf is the machine that has a volume; empty: it has no name.
func (t *tapping) guestOf(v cbt.VolumeID) string {
	t.mu.Lock()
	tracker := t.tracker
	t.mu.Unlock()
	if f, ok := tracker.(*fleet); ok {
		return f.guestOf(v)
	}
	return ""
}

// unplug ends that of a disk that has gone, with what farewell records.
func (t *tapping) unplug(ctx context.Context, v cbt.VolumeID, farewell func(context.Context) error) error {
	t.mu.Lock()
	tracker := t.tracker
	t.mu.Unlock()
	if p, ok := tracker.(plugging); ok {
		return p.Unplug(ctx, v, farewell)
	}
	return nil
}

// atPoint runs do where what it records is part of a point.
func (t *tapping) atPoint(ctx context.Context, do func(context.Context) error) error {
	t.mu.Lock()
	tracker := t.tracker
	t.mu.Unlock()
	if k, ok := tracker.(interface {
		AtPoint(ctx context.Context, do func(context.Context) error) error
	}); ok {
		return k.AtPoint(ctx, do)
	}
	return do(ctx)
}

// Run taps until ctx ends, but not during pauses. Its errors are such that no
// retry of a tracker cures.
func (t *tapping) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		t.mu.Lock()
		p, held, turn, tracker := t.pause, t.held, t.turn, t.tracker
		if !held && !p.at(t.now()) {
			t.idle = make(chan struct{})
		}
		t.mu.Unlock()
		if held {
			select {
			case <-turn:
			case <-ctx.Done():
			}
			continue
		}
		if left := p.Until.Sub(t.now()); left > 0 {
			t.rest(ctx, tracker, left, turn)
			continue
		}
		if err := t.tap(ctx, tracker, turn); err != nil {
			return err
		}
	}
	return nil
}

// waking is a tracker whose machine an earlier life may have left stopped: it runs, also
// while it is left alone.
type waking interface{ WakeLeft(context.Context) error }

// rest waits for the end of a pause.
func (t *tapping) rest(ctx context.Context, tracker cbt.Tracker, left time.Duration, turn <-chan struct{}) {
	waits, over := context.WithTimeout(ctx, left)
	defer over()
	var beside sync.WaitGroup
	defer beside.Wait()
	defer over()
	if w, ok := tracker.(waking); ok {
		beside.Go(func() {
			for wait := askFirst; w.WakeLeft(waits) != nil && pauseFor(waits, wait) == nil; wait = min(2*wait, askLast) {
			}
		})
	}
	select {
	case <-waits.Done():
	case <-turn:
	}
}

// tap runs tracker until the group is paused, and prepares the next one.
func (t *tapping) tap(ctx context.Context, tracker cbt.Tracker, turn <-chan struct{}) error {
	run, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	go func() {
		select {
		case <-turn:
			cancel(t.why())
		case <-ended:
			cancel(nil)
		}
	}()
	err := tracker.Run(run)
	close(ended)
	if err == nil && ctx.Err() == nil {
		tracker, err = t.make()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.idle)
	if err == nil && tracker != nil {
		t.tracker = tracker
	}
	return err
}

// errEndRead is why nothing is tapped while hold lasts.
var errEndRead = errors.New("the disks of the machine, which is off, are being read")

// why is the reason for which a tracker ends that nobody else has ended.
func (t *tapping) why() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.held {
		return errEndRead
	}
	return t.pause
}

// hold ends the tapping until release: on return nothing of the tracker has a place in
// the order to come any more. Another tracker taps then, which has seen nothing yet.
func (t *tapping) hold(ctx context.Context) (release func(), err error) {
	idle := t.holds(true)
	release = sync.OnceFunc(func() { t.holds(false) })
	select {
	case <-idle:
		return release, nil
	case <-ctx.Done():
		release()
		return nil, context.Cause(ctx)
	}
}

func (t *tapping) holds(on bool) (idle <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.held = on
	close(t.turn)
	t.turn = make(chan struct{})
	return t.idle
}

func (t *tapping) holding() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.held
}

func (t *tapping) paused() pause {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.pause
}

// set pauses, or resumes with the zero pause. It returns once no tracker runs,
// or one may.
func (t *tapping) set(ctx context.Context, p pause) error {
	if p.at(t.now()) && t.holding() { // else nobody would tell that the machine may run unseen
		return fault.Wrap(fault.OperationBusy, "pause", errEndRead)
	}
	if err := t.remember(p); err != nil {
		return err
	}
	t.mu.Lock()
	t.pause = p
	close(t.turn)
	t.turn = make(chan struct{})
	idle := t.idle
	t.mu.Unlock()
	if !p.at(t.now()) {
		return nil
	}
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// tapped finds what taps the machine of a group that is primary here.
func (s *Site) tapped(ctx context.Context, what, name string) (*life, *tapping, func(), error) {
	g, err := s.group(name)
	if err != nil {
		return nil, nil, nil, err
	}
	if !s.running() {
		return nil, nil, nil, fault.New(fault.NeedsDaemon, what, "the daemon taps the machine")
	}
	l, release, err := g.await(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	r := l.reignOf(ctx)
	switch {
	case r != nil && r.tracker != nil:
		return l, r.tracker, release, nil
	case r != nil:
		err = fault.New(fault.Usage, what, "no machine is tapped: this site serves the group's disks itself")
	case l.roleNow().Role.Captures():
		err = fault.New(fault.GroupFailed, what, "its disks are being opened").Advise("Try again in a moment.")
	default:
		err = fault.New(fault.NotPrimary, what, "the group is %s here", l.roleNow().Role)
	}
	release()
	return nil, nil, nil, err
}

// Pause implements control.API.
func (s *Site) Pause(ctx context.Context, q control.PauseRequest) (control.Paused, error) {
	what := "pause " + q.Group
	span := time.Duration(q.Seconds * float64(time.Second))
	switch {
	case span <= 0 || span > longestPause:
		return control.Paused{}, fault.New(fault.Usage, what, "a pause lasts up to %s and ends by itself; this one would last %s", longestPause, span)
	case q.Reason == "":
		return control.Paused{}, fault.New(fault.Usage, what, "without a reason nobody can judge later why points are missing")
	}
	l, t, release, err := s.tapped(ctx, what, q.Group)
	if err != nil {
		return control.Paused{}, err
	}
	defer release()
	now := s.o.Now()
	p := pause{Since: now, Until: now.Add(span), Reason: q.Reason}
	if old := t.paused(); old.at(now) { // prolonged or shortened
		p.Since = old.Since
	}
	s.o.Log.Warn("group is paused", "group", l.cfg.Ref(), "until", p.Until, "reason", p.Reason)
	return *pausedTold(p), explain(what, t.set(ctx, p))
}

// Resume implements control.API.
func (s *Site) Resume(ctx context.Context, q control.ResumeRequest) (control.Paused, error) {
	what := "resume " + q.Group
	l, t, release, err := s.tapped(ctx, what, q.Group)
	if err != nil {
		return control.Paused{}, err
	}
	defer release()
	was := t.paused()
	if !was.at(s.o.Now()) {
		return control.Paused{}, fault.New(fault.Usage, what, "it is not paused")
	}
	s.o.Log.Info("group is resumed", "group", l.cfg.Ref())
	return *pausedTold(was), explain(what, t.set(ctx, pause{}))
}

func pausedTold(p pause) *control.Paused {
	return &control.Paused{Since: p.Since, Until: p.Until, Reason: p.Reason}
}

// tellPause makes a line say loudly that its group is paused, if it is.
func (l *life) tellPause(line *control.Group) {
	r := l.reigning()
	if r == nil || r.tracker == nil {
		return
	}
	p := r.tracker.paused()
	if !p.at(l.site.o.Now()) {
		return
	}
	line.State, line.Detail, line.Paused = control.StatePaused, p.Error(), pausedTold(p)
	line.Notices = append([]control.Notice{{Level: control.Alarm,
		Text: fmt.Sprintf("not protected: paused since %s, until %s (%s); no points are made", p.Since.Format(time.RFC3339), p.Until.Format(time.RFC3339), p.Reason),
		Hint: "group resume " + l.cfg.Ref() + " ends it early"}}, line.Notices...)
}
