package replicator

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/pierrec/lz4/v4"

	"github.com/novacron/afterimage/journal"
)

// Small frames that follow each other cross the wire in bundles, of up to 64 KiB: what
// they have in common, their headers first of all, goes once, and so does what they cost
// beside their bytes. A bundle stands where a frame header could:
//
//	 0  "AIB1"
//	 4  version u8 | reserved u24
//	 8  plain u32
//	12  wire u32
//	16  reserved u32
//	20  CRC32C u32 over 0..20
//	24  wire bytes: an LZ4 block, which unpacks to exactly plain bytes: whole frames
//	    with their headers, packed as ever but for LZ4
//
// A source makes bundles of frames that are there at once and waits for none; a replica
// that takes them says so (takes).
const (
	bundleHeadBytes = 24
	maxBundleBytes  = 64 << 10
	// bundledFrame is the largest frame that goes into one.
	bundledFrame = 32 << 10
	// frameRoom is what a bundled frame takes beside its bytes, at most: its header, and
	// a head for every block.
	frameRoom = frameHeaderBytes + (bundledFrame/blockBytes+1)*partHeadBytes

	takesBundles = uint32(1) << 2
)

// bundle is what waits at the source for more frames.
type bundle struct {
	plain  []byte
	wire   []byte
	frames []int64 // their lengths in the journal
	lz     lz4.Compressor
}

// fits reports that a frame of n bytes may be added.
func (b *bundle) fits(n int64) bool {
	return n <= bundledFrame && len(b.plain)+int(n)+frameRoom <= maxBundleBytes
}

// seal gives what crosses the wire: a bundle or, where LZ4 gains little, the frames.
func (b *bundle) seal() []byte {
	if b.wire == nil {
		b.wire = make([]byte, bundleHeadBytes+maxBundleBytes)
	}
	room := b.wire[bundleHeadBytes:][:max(len(b.plain)-bundleHeadBytes-len(b.plain)/lz4Gain, 0)]
	n, err := b.lz.CompressBlock(b.plain, room)
	if err != nil || n == 0 {
		return b.plain
	}
	h := b.wire[:bundleHeadBytes]
	clear(h)
	copy(h, "AIB1")
	h[4] = wireVersion
	binary.LittleEndian.PutUint32(h[8:], uint32(len(b.plain)))
	binary.LittleEndian.PutUint32(h[12:], uint32(n))
	seal(h)
	return b.wire[:bundleHeadBytes+n]
}

func (b *bundle) reset() { b.plain, b.frames = b.plain[:0], b.frames[:0] }

// readBundleHead checks a bundle's head.
func readBundleHead(h []byte) (plain, wire int, err error) {
	p, w := binary.LittleEndian.Uint32(h[8:]), binary.LittleEndian.Uint32(h[12:])
	switch {
	case crc32.Checksum(h[:bundleHeadBytes-crcBytes], castagnoli) != binary.LittleEndian.Uint32(h[bundleHeadBytes-crcBytes:]):
		err = fmt.Errorf("read bundle: checksum differs: %w", ErrProtocol)
	case h[4] != wireVersion || h[5]|h[6]|h[7] != 0 || binary.LittleEndian.Uint32(h[16:]) != 0:
		err = fmt.Errorf("read bundle: reserved bytes are set: %w", ErrProtocol)
	case p <= frameHeaderBytes || p > maxBundleBytes || w == 0 || w >= p:
		err = fmt.Errorf("read bundle: %d bytes for %d: %w", w, p, ErrProtocol)
	}
	return int(p), int(w), err
}

// unbundler gives what an opening carries as if there were no bundles. One goroutine
// uses it.
type unbundler struct {
	r     io.Reader
	moved func(n int) // told of the bytes of bundles

	left        []byte // was read or unpacked and is yet to be given
	inside      bool   // left is of a bundle, which ends with it
	head        [bundleHeadBytes]byte
	plain, wire []byte
}

// begin stands before each frame header, where a bundle may begin.
func (u *unbundler) begin() error {
	if len(u.left) > 0 {
		return nil
	}
	u.inside = false
	h := u.head[:]
	if _, err := io.ReadFull(u.r, h); err != nil {
		return err
	}
	if string(h[:4]) != "AIB1" {
		u.left = h
		return nil
	}
	plain, wire, err := readBundleHead(h)
	if err != nil {
		return err
	}
	if u.plain == nil {
		u.plain, u.wire = make([]byte, maxBundleBytes), make([]byte, maxBundleBytes)
	}
	if _, err := io.ReadFull(u.r, u.wire[:wire]); err != nil {
		return noEnd(err)
	}
	u.moved(bundleHeadBytes + wire)
	n, err := lz4.UncompressBlock(u.wire[:wire], u.plain[:plain])
	if err != nil || n != plain {
		return fmt.Errorf("read bundle: it unpacks to %d bytes, not %d (%v): %w", n, plain, err, ErrProtocol)
	}
	u.left, u.inside = u.plain[:plain], true
	return nil
}

func (u *unbundler) Read(p []byte) (int, error) {
	if len(u.left) > 0 {
		n := copy(p, u.left)
		u.left = u.left[n:]
		return n, nil
	}
	if u.inside {
		return 0, fmt.Errorf("read bundle: it ends within a frame: %w", ErrProtocol)
	}
	return u.r.Read(p)
}

// bundles reports that a frame goes into a bundle: more follow it at once, or it is the
// last of those that did.
func (k *packing) bundles(forms uint32, bytes int64, more bool) bool {
	return forms&takesBundles != 0 && bytes <= bundledFrame && (more || len(k.bundle.frames) > 0)
}

// add puts a frame, packed but for LZ4, into the bundle; a full one goes before it. Of a
// frame that cannot be read nothing stays in it.
func (k *packing) add(ctx context.Context, data io.Writer, f frameHeader, r io.Reader, forms uint32) error {
	b := &k.bundle
	if !b.fits(f.bytes) {
		if err := k.flush(ctx, data); err != nil {
			return err
		}
	}
	before := len(b.plain)
	b.plain = append(b.plain, f.encode()...)
	err := k.pack(f, r, forms&^takesLZ4, func(wire []byte) error {
		b.plain = append(b.plain, wire...)
		return nil
	})
	if err != nil {
		b.plain = b.plain[:before]
		return err
	}
	b.frames = append(b.frames, f.bytes)
	return nil
}

// flush sends the frames that wait in the bundle.
func (k *packing) flush(ctx context.Context, data io.Writer) error {
	b := &k.bundle
	if len(b.frames) == 0 {
		return nil
	}
	began := k.s.r.o.Now()
	wire := b.seal()
	k.economy.packed(k.s.r.o.Now().Sub(began))
	err := k.write(ctx, data, wire)
	if err == nil {
		for _, n := range b.frames {
			k.o.group.progress.frame(n)
		}
	}
	b.reset()
	return err
}

// deliver brings what lies before an unreadable frame to the replica: what waits in the
// bundle, and in the flow, which goes with the opening. It returns once the replica holds
// the record last durably, or the opening ends; that it takes nothing ends the session.
func (k *packing) deliver(ctx context.Context, data *flow, last journal.Seq) error {
	if err := k.flush(ctx, data); err != nil {
		return err
	}
	data.push()
	for k.o.group.progress.durable().Seq < last {
		select {
		case <-k.o.acked:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}
