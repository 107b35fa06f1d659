package journal

// patientLock is a mutex whose holder may take long: it syncs a disk. Who waits waits for a
// channel, not in sync.Mutex, which a bubble of testing/synctest does not take for waiting:
// its clock would stand still, and a disk that is slow by that clock would never be done.
type patientLock chan struct{}

func newPatientLock() patientLock { return make(patientLock, 1) }

func (l patientLock) lock() { l <- struct{}{} }

// tryLock reports whether l was free, and is held now.
func (l patientLock) tryLock() bool {
	select {
	case l <- struct{}{}:
		return true
	default:
		return false
	}
}

func (l patientLock) unlock() { <-l }
