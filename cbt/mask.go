package cbt

import "sync"

// Mask keeps fills from overwriting newer data: a fill is a block read from the
// live disk, and every tap write that arrived since that read was issued wins
// over it. One Mask serves one volume. The zero Mask is ready.
//
// The rule is kept by registering the fill before its read is issued (Begin),
// telling the mask of every tap write before it is recorded (Wrote), and asking
// for what is left of the fill under the lock that orders both (Finish).
type Mask struct {
	mu    sync.Mutex // guards fills and every fill's masked
	fills map[*Fill]struct{}
}

// Fill is one read of the live disk under way.
type Fill struct {
	Extent
	masked []Extent
}

// Begin registers a fill of e. Call it before the read is issued.
func (m *Mask) Begin(e Extent) *Fill {
	f := &Fill{Extent: e}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fills == nil {
		m.fills = make(map[*Fill]struct{})
	}
	m.fills[f] = struct{}{}
	return f
}

// Wrote tells of a tap write to e and runs record, which must give the write its
// place in the order (it need not wait until the write is safe).
func (m *Mask) Wrote(e Extent, record func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for f := range m.fills {
		if f.Overlaps(e) {
			f.masked = append(f.masked, e)
		}
	}
	record()
}

// Finish ends f and runs record for each part of it that no tap write touched,
// in ascending order; record must give the part its place in the order.
func (m *Mask) Finish(f *Fill, record func(Extent)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.fills, f)
	for _, e := range Subtract(f.Extent, f.masked) {
		record(e)
	}
}

// Cancel forgets f.
func (m *Mask) Cancel(f *Fill) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.fills, f)
}
