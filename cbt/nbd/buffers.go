package nbd

import (
	"math/bits"
	"sync"
)

// Payload buffers come in powers of two from 4 KiB to maxPayloadBytes.
const (
	smallestBufferBits = 12
	bufferClasses      = 25 - smallestBufferBits + 1
)

// bufferPool recycles payload buffers. Only a buffer that nobody else can hold
// may be put back.
type bufferPool struct {
	classes [bufferClasses]sync.Pool
}

type buffer struct {
	bytes []byte // as long as was asked for
	class int
}

// get returns a buffer of n bytes, at most maxPayloadBytes, with any content.
func (p *bufferPool) get(n int) *buffer {
	class := max(bits.Len(uint(max(n, 1)-1))-smallestBufferBits, 0)
	b, _ := p.classes[class].Get().(*buffer)
	if b == nil {
		b = &buffer{bytes: make([]byte, 1<<(class+smallestBufferBits)), class: class}
	}
	b.bytes = b.bytes[:n]
	return b
}

// put takes b back; nil is allowed.
func (p *bufferPool) put(b *buffer) {
	if b != nil {
		p.classes[b.class].Put(b)
	}
}
