package journal

import (
	"math/bits"
	"sync"
	"unsafe"
)

// Memory for reads past the page cache, which want buffers that begin at a multiple
// of 4096 in memory. Pools keep one size each, a power of two; what is larger than
// the largest is made anew each time.
const (
	minPagesShift = 12 // 4 KiB
	maxPagesShift = 22 // 4 MiB
)

var pagePools [maxPagesShift - minPagesShift + 1]sync.Pool // of *pages

// pages is a buffer that begins at a multiple of pageBytes in memory.
type pages struct {
	b    []byte
	pool int // -1: none
}

// takePages gives a buffer of n bytes of unknown content, to be given back with free.
func takePages(n int64) *pages {
	i := max(bits.Len64(uint64(max(n, 1)-1))-minPagesShift, 0)
	if i >= len(pagePools) {
		return &pages{alignedBytes(n), -1}
	}
	p, _ := pagePools[i].Get().(*pages)
	if p == nil {
		p = &pages{alignedBytes(pageBytes << i), i}
	}
	p.b = p.b[:n]
	return p
}

func (p *pages) free() {
	if p != nil && p.pool >= 0 {
		pagePools[p.pool].Put(p)
	}
}

// alignedBytes is n zeros that begin at a multiple of pageBytes.
func alignedBytes(n int64) []byte {
	b := make([]byte, n+pageBytes)
	skip := -int64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (pageBytes - 1)
	return b[skip : skip+n : skip+n]
}

// pageAligned reports that p can be read into past the page cache.
func pageAligned(p []byte) bool {
	return len(p)%pageBytes == 0 && uintptr(unsafe.Pointer(unsafe.SliceData(p)))%pageBytes == 0
}
