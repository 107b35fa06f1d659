package detect

// Meter picks what is looked at of a stream of writes: one sample in about Every bytes,
// at most Most until Refill is called. How far it is from one to the next varies by a
// half, lest a pattern of writes hides behind it; where a stretch of time writes more
// than Most samples stand for, those of the next are farther apart.
type Meter struct {
	Every int64 // bytes between samples; default 128 KiB
	Most  int   // samples between two calls of Refill; default 128

	since, next  int64  // bytes: since the last sample, and from there to the next
	every, wrote int64  // bytes: between samples, and written in this stretch of time
	dice         uint64 // xorshift; never zero
	left         int
}

// Defaults of a Meter.
const (
	defaultEvery = 128 << 10
	defaultMost  = 128
)

// Pick reports whether a write of n bytes is looked at, and how many bytes it stands for.
func (m *Meter) Pick(n int64) (standsFor int64, ok bool) {
	if m.every == 0 {
		m.Refill()
	}
	m.wrote += n
	if m.since += n; m.since < m.next || m.left == 0 {
		return 0, false
	}
	standsFor, m.since = m.since, 0
	m.left--
	m.throw()
	return standsFor, true
}

// Refill begins another stretch of time. No sample of it speaks for what was written
// after the last stretch ran out of them.
func (m *Meter) Refill() {
	most, every := m.Most, m.Every
	if most == 0 {
		most = defaultMost
	}
	if every == 0 {
		every = defaultEvery
	}
	every = max(every, m.wrote/int64(most)*5/4)
	spent := m.every > 0 && m.left == 0
	m.wrote, m.left = 0, most
	if spent || m.every != every {
		m.every, m.since = every, 0
		m.throw()
	}
}

func (m *Meter) throw() {
	if m.dice == 0 {
		m.dice = 0x9e3779b97f4a7c15
	}
	m.dice ^= m.dice << 13
	m.dice ^= m.dice >> 7
	m.dice ^= m.dice << 17
	m.next = m.every/2 + int64(m.dice%uint64(m.every))
}
