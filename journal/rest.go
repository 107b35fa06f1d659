package journal

import (
	"sync/atomic"
	"time"
)

// In SyncProcess nobody waits for the disk, nor for chain and index, unless they say so.
// Then syncLoop and finishLoop rest before each turn, so that many frames share it: done
// for each frame of a lone writer, it would take the processors that the guest, QEMU
// and the reply need. Whoever waits for what they do ends the rest (hurry); every
// received frame ends that of syncLoop, for its source waits, and so do so many bytes that
// are not durable that a segment's end would have to wait for them. Where a Stream follows,
// the rest is short: what is sent to peers is later by as much.
const (
	syncRest    = 4 * time.Millisecond
	lonelyRest  = 20 * time.Millisecond // of syncLoop where nobody follows
	followedFor = 2 * time.Second       // after a Stream has waited or was given something
	finishRest  = 4 * time.Millisecond
	restBytes   = 2 << 20 // unsynced, end the rest
)

// hurried end the rests of the two loops.
type hurried struct{ sync, finish chan struct{} }

// followed remembers who looks for more, and when somebody did last.
type followed struct {
	waiting atomic.Int32
	last    atomic.Pointer[time.Time]
}

// follow says that a Stream looks for more, until it calls end.
func (j *Journal) follow() (end func()) {
	f := &j.followed
	lonely := !f.now()
	f.waiting.Add(1)
	if lonely {
		endRest(j.urgent.sync) // it is longer than the next ones
	}
	return func() {
		now := time.Now()
		f.last.Store(&now)
		f.waiting.Add(-1)
	}
}

// now reports that somebody follows, or did so just now.
func (f *followed) now() bool {
	last := f.last.Load()
	return f.waiting.Load() > 0 || last != nil && time.Since(*last) < followedFor
}

// hurry ends rests that are under way, or the next ones.
func (j *Journal) hurry() {
	for _, c := range []chan struct{}{j.urgent.sync, j.urgent.finish} {
		endRest(c)
	}
}

// hurrySync is hurry for syncLoop alone.
func (j *Journal) hurrySync() { endRest(j.urgent.sync) }

func endRest(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// handOn gives w to finishLoop, which rests no longer once many wait for it.
func (j *Journal) handOn(w *written) {
	j.finish <- w
	if len(j.finish) > cap(j.finish)/2 {
		endRest(j.urgent.finish)
	}
}

// restOfSync is how long syncLoop rests.
func (j *Journal) restOfSync() time.Duration {
	if j.followed.now() {
		return syncRest
	}
	return j.o.lonelyRest
}

// rest waits for d in SyncProcess, or until somebody is in a hurry; true: drained.
func (j *Journal) rest(d time.Duration, urgent, drained <-chan struct{}) bool {
	if j.o.Sync != SyncProcess {
		return false
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-urgent:
	case <-drained:
		return true
	}
	return false
}
