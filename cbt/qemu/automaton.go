package qemu

import "github.com/novacron/afterimage/cbt"

// progress is where a disk stands; step is pure.
type progress struct {
	state cbt.State
	told  cbt.Cause // of the newest gap since the volume was last synced, or ""
}

type stepKind uint8

const (
	stepAttach stepKind = iota // the tap is being put in
	stepTapped                 // every write arrives
	stepSynced                 // EventSynced is safe
	stepBreak                  // the attachment or the attempt at one ended
	stepDetach                 // the tracker has left
)

// step is the next progress, and whether a gap has to be recorded: always when
// the volume's interval was open, else only when there is something new to say.
func (p progress) step(kind stepKind, cause cbt.Cause, open bool) (next progress, gap bool) {
	switch kind {
	case stepAttach:
		p.state = cbt.StateAttaching
	case stepTapped:
		p.state = cbt.StateSyncing
	case stepSynced:
		p.state, p.told = cbt.StateSynced, ""
	case stepBreak:
		gap = open || cause != p.told
		p.state, p.told = cbt.StateBroken, cause
	case stepDetach:
		gap = open
		p.state = cbt.StateDetached
	}
	return p, gap
}
