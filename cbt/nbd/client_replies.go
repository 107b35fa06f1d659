package nbd

import (
	"fmt"
	"io"

	"github.com/novacron/afterimage/cbt"
)

// Bounds on what a server may send for one request. A status of 16 MiB holds
// two million descriptors; at most one is being asked for at a time.
const (
	maxStatusBytes = 16 << 20
	maxErrorBytes  = maxStringBytes + 64
	maxFragments   = 1024 // separate pieces of one read
)

// receive reads one reply or one chunk of one.
func (c *Client) receive() error {
	var head [chunkBytes]byte
	if _, err := io.ReadFull(c.r, head[:4]); err != nil {
		return fmt.Errorf("read reply: %w", err)
	}
	switch m := be.Uint32(head[:]); {
	case m == magicSimple:
		if _, err := io.ReadFull(c.r, head[4:simpleBytes]); err != nil {
			return fmt.Errorf("read reply: %w", err)
		}
		return c.simple(Errno(be.Uint32(head[4:])), be.Uint64(head[8:]))
	case m == magicStructured && c.info.Structured:
		if _, err := io.ReadFull(c.r, head[4:]); err != nil {
			return fmt.Errorf("read reply: %w", err)
		}
		return c.chunk(be.Uint16(head[4:]), be.Uint16(head[6:]), be.Uint64(head[8:]), be.Uint32(head[16:]))
	default:
		return violation("reply magic %#x", m)
	}
}

func (c *Client) simple(errno Errno, cookie uint64) error {
	cl, err := c.find(cookie)
	if err != nil {
		return err
	}
	if c.info.Structured && (cl.cmd == cmdRead || cl.cmd == cmdBlockStatus && errno == 0) {
		return violation("simple reply to %s", commandName(cl.cmd))
	}
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if errno != 0 {
		cl.err = &RemoteError{Command: commandName(cl.cmd), Errno: errno}
	} else if cl.cmd == cmdRead {
		if err := cl.fill(c.r, cl.extent); err != nil {
			return err
		}
	}
	c.complete(cookie, cl)
	return nil
}

func (c *Client) chunk(flags, kind uint16, cookie uint64, length uint32) error {
	cl, err := c.find(cookie)
	if err != nil {
		return err
	}
	if flags&^chunkDone != 0 {
		return violation("chunk flags %#x", flags)
	}
	cl.mu.Lock()
	defer cl.mu.Unlock()
	switch {
	case kind == chunkNone:
		if flags&chunkDone == 0 || length != 0 {
			return violation("chunk of nothing with %d bytes, flags %#x", length, flags)
		}
	case kind == chunkOffsetData:
		err = c.offsetData(cl, length)
	case kind == chunkOffsetHole:
		err = c.offsetHole(cl, length)
	case kind == chunkBlockStatus:
		err = c.blockStatus(cl, length)
	case kind&chunkErrBit != 0:
		err = c.errorChunk(cl, kind, length)
	default:
		return violation("chunk type %d", kind)
	}
	if err != nil {
		return err
	}
	if flags&chunkDone != 0 {
		if err := cl.whole(); err != nil {
			return err
		}
		c.complete(cookie, cl)
	}
	return nil
}

// whole checks that a good reply left nothing open.
func (cl *call) whole() error {
	switch {
	case cl.err != nil:
	case cl.cmd == cmdRead && cl.extent.Length > 0 && (len(cl.got) != 1 || cl.got[0] != cl.extent):
		return violation("read of %v answered by %v", cl.extent, cl.got)
	case cl.cmd == cmdBlockStatus && !cl.described:
		return violation("status without descriptors")
	}
	return nil
}

// offsetData takes a piece of a read.
func (c *Client) offsetData(cl *call, length uint32) error {
	if length <= 8 {
		return violation("data chunk of %d bytes", length)
	}
	var b [8]byte
	if _, err := io.ReadFull(c.r, b[:]); err != nil {
		return fmt.Errorf("read data chunk: %w", err)
	}
	e, err := cl.piece(be.Uint64(b[:]), length-8)
	if err != nil {
		return err
	}
	return cl.fill(c.r, e)
}

// offsetHole takes a piece of a read that is zeros.
func (c *Client) offsetHole(cl *call, length uint32) error {
	var b [12]byte
	if length != uint32(len(b)) {
		return violation("hole chunk of %d bytes", length)
	}
	if _, err := io.ReadFull(c.r, b[:]); err != nil {
		return fmt.Errorf("read hole chunk: %w", err)
	}
	e, err := cl.piece(be.Uint64(b[:]), be.Uint32(b[8:]))
	if err != nil {
		return err
	}
	if !cl.abandoned {
		clear(cl.into[e.Offset-cl.extent.Offset:][:e.Length])
	}
	return nil
}

// piece notes that [offset, +length) of a read has come: inside of what was
// asked for, and for the first time.
func (cl *call) piece(offset uint64, length uint32) (cbt.Extent, error) {
	e := cbt.Extent{Offset: int64(offset), Length: int64(length)}
	rel := cbt.Extent{Offset: e.Offset - cl.extent.Offset, Length: e.Length}
	if cl.cmd != cmdRead || e.Length == 0 || e.Offset < cl.extent.Offset || !rel.Within(cl.extent.Length) {
		return e, violation("data chunk %v for %s of %v", e, commandName(cl.cmd), cl.extent)
	}
	for _, g := range cl.got {
		if g.Overlaps(e) {
			return e, violation("data chunk %v overlaps %v", e, g)
		}
	}
	if cl.got = append(cl.got, e); len(cl.got) > 1 {
		cl.got = cbt.Union(cl.got)
	}
	if len(cl.got) > maxFragments {
		return e, violation("read answered in more than %d fragments", maxFragments)
	}
	return e, nil
}

// fill reads e's data to where the caller wants it, or to nowhere.
func (cl *call) fill(r io.Reader, e cbt.Extent) error {
	if cl.abandoned {
		return discard(r, e.Length)
	}
	if _, err := io.ReadFull(r, cl.into[e.Offset-cl.extent.Offset:][:e.Length]); err != nil {
		return fmt.Errorf("read data of reply: %w", err)
	}
	return nil
}

// blockStatus takes the descriptors of one meta context.
func (c *Client) blockStatus(cl *call, length uint32) error {
	if cl.cmd != cmdBlockStatus {
		return violation("status chunk for %s", commandName(cl.cmd))
	}
	if length < 12 || (length-4)%8 != 0 || length > maxStatusBytes+4 {
		return violation("status chunk of %d bytes", length)
	}
	var b [4]byte
	if _, err := io.ReadFull(c.r, b[:]); err != nil {
		return fmt.Errorf("read status chunk: %w", err)
	}
	if be.Uint32(b[:]) != cl.context {
		return discard(c.r, int64(length-4))
	}
	if cl.described {
		return violation("two status chunks of one context")
	}
	if cl.abandoned {
		cl.described = true
		return discard(c.r, int64(length-4))
	}
	// Memory follows what has really come, not what was announced.
	p, err := io.ReadAll(io.LimitReader(c.r, int64(length-4)))
	if err == nil && len(p) != int(length-4) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("read status chunk: %w", err)
	}
	cl.status, cl.described = p, true
	return nil
}

// errorChunk takes an error; the first one of a reply counts. Unknown kinds of
// errors begin like the known ones.
func (c *Client) errorChunk(cl *call, kind uint16, length uint32) error {
	if length < 6 || length > maxErrorBytes {
		return violation("error chunk of %d bytes", length)
	}
	p := make([]byte, length)
	if _, err := io.ReadFull(c.r, p); err != nil {
		return fmt.Errorf("read error chunk: %w", err)
	}
	d := cut(p)
	errno := Errno(d.u32())
	text := d.take(int(d.u16()))
	if kind == chunkErrorOffset {
		d.u64()
	}
	known := kind == chunkError || kind == chunkErrorOffset
	if !d.ok || known && !d.done() {
		return violation("malformed error chunk")
	}
	if errno == 0 {
		errno = EIO
	}
	if cl.err == nil {
		cl.err = &RemoteError{Command: commandName(cl.cmd), Errno: errno, Message: string(text)}
	}
	return nil
}
