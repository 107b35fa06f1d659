package nbdtest

import (
	"context"
	"sync"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
)

const pageBytes = 64 << 10

// Memory is a sparse disk in memory. Pages that were never written, or were
// zeroed or trimmed whole, are holes.
type Memory struct {
	size int64

	mu      sync.RWMutex // guards pages and flushes
	pages   map[int64]*[pageBytes]byte
	flushes int
}

// NewMemory is an empty disk of size bytes.
func NewMemory(size int64) *Memory {
	return &Memory{size: size, pages: make(map[int64]*[pageBytes]byte)}
}

// Export offers m under name, with Size set.
func (m *Memory) Export(name string) *nbd.Export {
	return &nbd.Export{Name: name, Size: m.size, Device: m}
}

// Size is in bytes.
func (m *Memory) Size() int64 { return m.size }

// Flushes counts the calls of Flush and the changes with fua.
func (m *Memory) Flushes() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.flushes
}

// Bytes is a copy of the whole content.
func (m *Memory) Bytes() []byte {
	p := make([]byte, m.size)
	if err := m.ReadAt(context.Background(), p, 0); err != nil {
		panic(err) // ReadAt has no errors
	}
	return p
}

// each calls f for every page's part of e.
func each(e cbt.Extent, f func(page int64, from, to int, at int64)) {
	for at := e.Offset; at < e.End(); {
		page, from := at/pageBytes, at%pageBytes
		n := min(pageBytes-from, e.End()-at)
		f(page, int(from), int(from+n), at-e.Offset)
		at += n
	}
}

// ReadAt implements nbd.Device.
func (m *Memory) ReadAt(_ context.Context, p []byte, off int64) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	each(cbt.Extent{Offset: off, Length: int64(len(p))}, func(page int64, from, to int, at int64) {
		if b := m.pages[page]; b != nil {
			copy(p[at:], b[from:to])
		} else {
			clear(p[at : at+int64(to-from)])
		}
	})
	return nil
}

// WriteAt implements nbd.Device.
func (m *Memory) WriteAt(_ context.Context, p []byte, off int64, fua bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	each(cbt.Extent{Offset: off, Length: int64(len(p))}, func(page int64, from, to int, at int64) {
		b := m.pages[page]
		if b == nil {
			b = new([pageBytes]byte)
			m.pages[page] = b
		}
		copy(b[from:to], p[at:])
	})
	m.count(fua)
	return nil
}

// Zero implements nbd.Device.
func (m *Memory) Zero(_ context.Context, e cbt.Extent, fua, noHole bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.zero(e, noHole)
	m.count(fua)
	return nil
}

// Trim implements nbd.Device; trimmed ranges read as zeros.
func (m *Memory) Trim(_ context.Context, e cbt.Extent, fua bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.zero(e, false)
	m.count(fua)
	return nil
}

// zero walks the pages that exist when e spans more pages than that.
func (m *Memory) zero(e cbt.Extent, noHole bool) {
	clearPart := func(page int64, from, to int, _ int64) {
		switch b := m.pages[page]; {
		case to-from == pageBytes && !noHole:
			delete(m.pages, page)
		case b != nil:
			clear(b[from:to])
		case noHole:
			m.pages[page] = new([pageBytes]byte)
		}
	}
	if noHole || e.Length/pageBytes <= int64(len(m.pages)) {
		each(e, clearPart)
		return
	}
	for page := range m.pages {
		from, to := max(page*pageBytes, e.Offset), min((page+1)*pageBytes, e.End())
		if from < to {
			clearPart(page, int(from-page*pageBytes), int(to-page*pageBytes), 0)
		}
	}
}

func (m *Memory) count(fua bool) {
	if fua {
		m.flushes++
	}
}

// Flush implements nbd.Device.
func (m *Memory) Flush(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flushes++
	return nil
}

// Status implements nbd.Device.
func (m *Memory) Status(_ context.Context, e cbt.Extent) ([]nbd.StatusExtent, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var out []nbd.StatusExtent
	each(e, func(page int64, from, to int, _ int64) {
		hole := m.pages[page] == nil
		n := int64(to - from)
		if k := len(out) - 1; k >= 0 && out[k].Hole == hole {
			out[k].Length += n
			return
		}
		out = append(out, nbd.StatusExtent{Length: n, Hole: hole, Zero: hole})
	})
	return out, nil
}
