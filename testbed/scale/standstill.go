package scale

import "time"

// Standstill measures, until it is asked, for how long at a stretch a process that
// had nothing to wait for did not run: what a promise in seconds cannot be held to.
func Standstill() (longest func() time.Duration) {
	stop, told := make(chan struct{}), make(chan time.Duration)
	go func() {
		const pace = 5 * time.Millisecond
		tick := time.NewTicker(pace)
		defer tick.Stop()
		gap := time.Duration(0)
		for last := time.Now(); ; {
			select {
			case <-stop:
				told <- gap
				return
			case <-tick.C:
				now := time.Now()
				gap, last = max(gap, now.Sub(last)-pace), now
			}
		}
	}()
	return func() time.Duration { close(stop); return <-told }
}
