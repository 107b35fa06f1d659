package detect

// Meter picks what is looked at of a stream of writes: one sample in Every bytes, at
// most Most until Refill is called.
type Meter struct {
	Every int64 // bytes between samples; default 128 KiB
	Most  int   // samples between two calls of Refill; default 128

	since int64
	left  int
	begun bool
}

// Defaults of a Meter.
const (
	defaultEvery = 128 << 10
	defaultMost  = 128
)

// Pick reports whether a write of n bytes is looked at, and how many bytes it stands for.
func (m *Meter) Pick(n int64) (standsFor int64, ok bool) {
	if !m.begun {
		m.Refill()
	}
	every := m.Every
	if every == 0 {
		every = defaultEvery
	}
	if m.since += n; m.since < every || m.left == 0 {
		return 0, false
	}
	standsFor, m.since = m.since, 0
	m.left--
	return standsFor, true
}

// Refill begins another stretch of time.
func (m *Meter) Refill() {
	m.begun = true
	if m.left = m.Most; m.left == 0 {
		m.left = defaultMost
	}
}
