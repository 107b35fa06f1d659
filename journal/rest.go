package journal

import "time"

// In SyncProcess nobody waits for the disk, nor for chain and index, unless they say so.
// Then syncLoop and finishLoop rest before each turn, so that many frames share it: done
// for each frame of a lone writer, it would take the processors that the guest, QEMU
// and the reply need. Whoever waits for what they do ends the rest (hurry); so does
// every received frame, for its source waits.
const (
	syncRest   = 4 * time.Millisecond // what is sent to peers is later by as much
	finishRest = time.Millisecond
)

// hurried end the rests of the two loops.
type hurried struct{ sync, finish chan struct{} }

// hurry ends rests that are under way, or the next ones.
func (j *Journal) hurry() {
	for _, c := range []chan struct{}{j.urgent.sync, j.urgent.finish} {
		select {
		case c <- struct{}{}:
		default:
		}
	}
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
