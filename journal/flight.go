package journal

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// In SyncPower the frames of several writers are under way to the disk at once: while
// one is written and flushed the next is formed and handed over, so that neither the
// device nor the writers wait for each other.
//
//	commitLoop: gather ─► launch: write begun ─► flights: at most fewFlights, of full frames maxFlights
//	landLoop:   the oldest flight is durable ─► it counts as written, and is answered
//
// A frame that landed is durable, and so is all before it: they land in the order of
// their seqs, whichever the disk had first. Before that it counts for nobody: no read,
// no chain, no point. A crash may leave a later flight whole and an earlier one torn;
// the header of the later says that the earlier was not durable (Durable), so the end
// of the log is where the earlier began.
//
// Where the file takes it, the kernel writes and flushes while nobody waits in a call
// (deepwrite.go). Elsewhere, in memory too, the committer writes, and the landing
// syncs: the order is the same.
//
// Before anything that rests on the end of the log, all flights land: the end of a
// segment, a refusal, the end of Run. One that fails is the end of the journal; those
// behind it land unanswered, for their memory is the kernel's until then.

// Frames that are under way together are best neither many and small, for each costs a
// flush and the way through the kernel, nor few and large: then all land at once, and
// the disk waits while their writers come back.
const (
	maxFlights   = 7        // frames under way to the disk
	fewFlights   = 3        // with so many, another one waits until it is full
	groupBytes   = 21 << 14 // of payloads, with room for each record, that make a frame full
	groupRecords = 24       // with payload, that do
)

// full reports that nothing is gained by waiting for more.
func (c *commit) full() bool { return c.bytes >= groupBytes || c.payloads >= groupRecords }

// flight is a frame under way to the disk.
type flight struct {
	c    *commit
	w    *written
	file vfs.File
	deep *deepWrite // nil: it is written, and to be synced
}

// flies reports that c is not to be waited for: others write beside it, or did when
// it was formed. A lone writer is answered soonest by whoever writes.
func (j *Journal) flies(c *commit) bool {
	if j.o.Sync != SyncPower {
		return false
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.aloft > 0 {
		return true
	}
	return len(j.awaiting) == 0 && (len(c.recs) > 1 || len(j.queue) > 0)
}

// launch begins to write c's frame.
func (j *Journal) launch(c *commit) error {
	j.fileMu.Lock()
	defer j.fileMu.Unlock()
	f := &flight{c: c}
	w, err := j.putFrame(c, func(image []byte) error {
		if f.file = j.out.file; j.out.deep {
			f.deep = j.writes.begin(f.file, image, j.out.at)
		}
		if f.deep != nil {
			return nil
		}
		return writeDirect(f.file, image, j.out.at)
	})
	if err != nil {
		return err
	}
	f.w = w
	j.mu.Lock()
	j.aloft++
	j.mu.Unlock()
	j.flights <- f
	return nil
}

// awaitFlights returns once at most so many flights are left.
func (j *Journal) awaitFlights(most int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.aloft > most {
		j.landed.Wait()
	}
}

// landLoop takes flights down in their order until the committer has ended.
func (j *Journal) landLoop(drained <-chan struct{}) error {
	var failed error
	for {
		select {
		case f := <-j.flights:
			j.syncing.lock()
			err := j.comeDown(f)
			j.syncing.unlock()
			if err != nil && failed == nil {
				failed = j.fail(err)
			}
			j.touchDown(f)
		case <-drained: // all have landed
			return failed
		}
	}
}

// comeDown makes f durable. syncing is held.
func (j *Journal) comeDown(f *flight) error {
	var err error
	if f.deep != nil {
		err = j.writes.wait(f.deep)
	} else {
		err = f.file.SyncData()
	}
	if err != nil {
		return fmt.Errorf("write and sync segment: %w", err)
	}
	j.mu.Lock()
	u := j.unsynced
	j.unsynced.retired = nil
	j.mu.Unlock()
	return j.settle(u)
}

// touchDown makes f's frame the newest one, unless the journal has failed, and answers it.
func (j *Journal) touchDown(f *flight) {
	j.mu.Lock()
	err := j.err
	j.pending -= f.c.bytes
	if err == nil {
		j.arriveLocked(f.w)
		j.synced = max(j.synced, f.w.h.Last)
		j.trimChainedLocked()
	}
	j.broadcastLocked()
	j.mu.Unlock()
	if err == nil {
		j.finish <- f.w // before the answer: whoever is woken last runs first
	}
	if f.c.err = err; !j.o.faults.replyEarly {
		close(f.c.done)
	}
	j.mu.Lock()
	j.aloft--
	j.landed.Broadcast()
	waiting := len(j.queue) > 0
	j.mu.Unlock()
	if waiting { // for fewer flights, perhaps
		j.wakeCommitter()
	}
}
