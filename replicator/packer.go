package replicator

import (
	"encoding/binary"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/novacron/afterimage/journal"
)

const (
	maxNameBytes = 255
	maxTextBytes = 4096
	// maxBranches bounds a history on the wire. Longer ones lose their oldest
	// epochs: their lineage is then refused, never guessed at.
	maxBranches = 4096
	// minBranchBytes is the shortest a branch can be.
	minBranchBytes = 8 + 16 + cursorBytes + 2 + 8 + cursorBytes
	cursorBytes    = 16 + 8 + 32
)

// packer appends fields to a message body; the first error sticks.
type packer struct {
	b   []byte
	err error
}

func (p *packer) u16(v uint16)     { p.b = binary.LittleEndian.AppendUint16(p.b, v) }
func (p *packer) u32(v uint32)     { p.b = binary.LittleEndian.AppendUint32(p.b, v) }
func (p *packer) u64(v uint64)     { p.b = binary.LittleEndian.AppendUint64(p.b, v) }
func (p *packer) raw(v []byte)     { p.b = append(p.b, v...) }
func (p *packer) nanos(v int64)    { p.u64(uint64(v)) }
func (p *packer) time(v time.Time) { p.nanos(timeNanos(v)) }

func (p *packer) text(s string, limit int) {
	if len(s) > limit || !utf8.ValidString(s) {
		p.err = fmt.Errorf("text of %d bytes, want valid UTF-8 of at most %d", len(s), limit)
		return
	}
	p.u16(uint16(len(s)))
	p.raw([]byte(s))
}

func (p *packer) position(v journal.Position) {
	p.raw(v.Epoch[:])
	p.u64(uint64(v.Seq))
}

func (p *packer) cursor(c journal.Cursor) {
	p.position(c.Position)
	p.raw(c.Chain[:])
}

func (p *packer) branches(bs []journal.Branch) {
	bs = bs[max(0, len(bs)-maxBranches):]
	p.u32(uint32(len(bs)))
	for _, b := range bs {
		p.u64(b.Number)
		p.raw(b.ID[:])
		p.cursor(b.Parent)
		p.text(b.Site, maxNameBytes)
		p.time(b.Begun)
		p.cursor(b.Last)
	}
}

// parser takes fields off a message body; after the first error all are zero.
type parser struct {
	b   []byte
	err error
}

// take is the next n bytes; a slice of zeros once there was an error.
func (p *parser) take(n int) []byte {
	if p.err == nil && len(p.b) < n {
		p.err = fmt.Errorf("body ends %d bytes early", n-len(p.b))
	}
	if p.err != nil {
		return make([]byte, n)
	}
	v := p.b[:n]
	p.b = p.b[n:]
	return v
}

func (p *parser) u16() uint16 { return binary.LittleEndian.Uint16(p.take(2)) }
func (p *parser) u32() uint32 { return binary.LittleEndian.Uint32(p.take(4)) }
func (p *parser) u64() uint64 { return binary.LittleEndian.Uint64(p.take(8)) }
func (p *parser) nanos() int64 {
	return int64(p.u64())
}

func (p *parser) time() time.Time {
	v := p.nanos()
	if v == 0 {
		return time.Time{}
	}
	return time.Unix(0, v).UTC()
}

func (p *parser) text(limit int) string {
	n := int(p.u16())
	if p.err == nil && n > limit {
		p.err = fmt.Errorf("text of %d bytes, at most %d", n, limit)
	}
	if p.err != nil {
		return ""
	}
	s := string(p.take(n))
	if p.err == nil && !utf8.ValidString(s) {
		p.err = fmt.Errorf("text is not UTF-8")
	}
	if p.err != nil {
		return ""
	}
	return s
}

func (p *parser) position() journal.Position {
	var v journal.Position
	copy(v.Epoch[:], p.take(16))
	v.Seq = journal.Seq(p.u64())
	return v
}

func (p *parser) cursor() journal.Cursor {
	c := journal.Cursor{Position: p.position()}
	copy(c.Chain[:], p.take(32))
	return c
}

func (p *parser) branches() []journal.Branch {
	n := int(p.u32())
	if p.err == nil && (n > maxBranches || n*minBranchBytes > len(p.b)) {
		p.err = fmt.Errorf("history of %d epochs in %d bytes, at most %d epochs", n, len(p.b), maxBranches)
	}
	if p.err != nil || n == 0 {
		return nil
	}
	bs := make([]journal.Branch, 0, n)
	for range n {
		var b journal.Branch
		b.Number = p.u64()
		copy(b.ID[:], p.take(16))
		b.Parent = p.cursor()
		b.Site = p.text(maxNameBytes)
		b.Begun = p.time()
		b.Last = p.cursor()
		if p.err != nil {
			return nil
		}
		bs = append(bs, b)
	}
	return bs
}

// timeNanos is t on the wire: Unix nanoseconds, 0 for the zero time.
func timeNanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
