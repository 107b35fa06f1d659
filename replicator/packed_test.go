package replicator

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/zeebo/blake3"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

// mixedFrame is a frame of n bytes whose blocks are random, of one letter, zero, or out
// of old.
func mixedFrame(rng *rand.Rand, n int, old [][]byte) []byte {
	b := make([]byte, n)
	for at := 0; at < n; at += blockBytes {
		block := b[at:min(at+blockBytes, n)]
		switch rng.IntN(4) {
		case 0:
			fillRandom(rng, block)
		case 1:
			copy(block, bytes.Repeat([]byte{byte(rng.Uint32())}, blockBytes))
		case 2:
			if len(old) > 0 {
				copy(block, old[rng.IntN(len(old))])
			}
		}
	}
	return b
}

func fillRandom(rng *rand.Rand, b []byte) {
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
}

// packAll is a frame as it crosses the wire.
func packAll(k *framePacker, forms uint32, frame []byte, seq journal.Seq) []byte {
	var out []byte
	k.begin(forms)
	for at := 0; at < len(frame); at += maxPartBytes {
		out = append(out, k.chunk(frame[at:min(at+maxPartBytes, len(frame))], int64(at))...)
	}
	k.end(seq)
	return out
}

// memory is a replica's side of the table, with the bytes themselves.
type memory map[blockHash][]byte

func (m memory) held(h blockHash, block []byte) error {
	b, ok := m[h]
	if !ok {
		return errNotHeld
	}
	copy(block, b)
	return nil
}

func unpackAll(u *unpacker) ([]byte, error) { return io.ReadAll(u) }

// What is packed unpacks to the same bytes, whatever it is made of and whatever the
// replica takes; blocks that came before cost a hash.
func TestPackedFramesComeOutAsTheyWere(t *testing.T) {
	const seed = 41
	rng := rand.New(rand.NewPCG(seed, seed))
	t.Logf("seed %d", seed)
	for _, forms := range []uint32{takesLZ4, takesHeld, takesLZ4 | takesHeld} {
		k, m := newFramePacker(new(sentBlocks)), memory{}
		var old [][]byte
		for seq := range 60 {
			frame := mixedFrame(rng, 1+rng.IntN(5*maxPartBytes), old)
			wire := packAll(k, forms, frame, journal.Seq(seq+1))
			news := memory{}
			u := newUnpacker(bytes.NewReader(wire), int64(len(frame)))
			u.held, u.seen = m.held, func(h blockHash, at int64) { news[h] = frame[at:][:blockBytes] }
			got, err := unpackAll(u)
			if err != nil || !bytes.Equal(got, frame) {
				t.Fatalf("forms %d, frame %d of %d bytes: %d bytes, %v", forms, seq, len(frame), len(got), err)
			}
			if most := len(frame) + (len(frame)/blockBytes+2)*partHeadBytes; len(wire) > most {
				t.Errorf("frame %d of %d bytes takes %d", seq, len(frame), len(wire))
			}
			for h, b := range news {
				m[h] = b
			}
			for at := blockBytes; at+blockBytes <= len(frame); at += blockBytes {
				old = append(old, frame[at:][:blockBytes])
			}
		}
	}
	frame := make([]byte, 8*maxPartBytes)
	fillRandom(rng, frame)
	k := newFramePacker(new(sentBlocks))
	if n := len(packAll(k, takesLZ4|takesHeld, frame, 1)); n > len(frame)+len(frame)/100 {
		t.Errorf("random bytes: %d take %d", len(frame), n)
	}
	if n := len(packAll(k, takesLZ4|takesHeld, frame, 2)); n > 2*blockBytes+len(frame)/64 {
		t.Errorf("bytes that came before: %d take %d", len(frame), n)
	}
	if n := len(packAll(newFramePacker(new(sentBlocks)), takesLZ4, bytes.Repeat([]byte("text "), 100_000), 1)); n > 500_000/50 {
		t.Errorf("text: 500000 take %d", n)
	}
}

// rawPart is a part with its head as given, false or not.
func rawPart(kind uint8, plain, wire uint32, body []byte) []byte {
	b := []byte{kind, 0, 0, 0}
	b = binary.LittleEndian.AppendUint32(b, plain)
	b = binary.LittleEndian.AppendUint32(b, wire)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	return append(b, body...)
}

// Parts that lie about their lengths, unpack to more or less than they claim, or are of
// no kind, end the frame with ErrProtocol, and take no memory for what they claim.
func TestFalsePartsAreRefused(t *testing.T) {
	zeros := make([]byte, 2*maxPartBytes)
	k := newFramePacker(new(sentBlocks))
	k.begin(takesLZ4)
	bomb := bytes.Clone(k.chunk(zeros[:maxPartBytes], 0))[partHeadBytes:] // 64 KiB of zeros
	n := uint32(len(bomb))
	const size = 2 * maxPartBytes
	for name, b := range map[string][]byte{
		"of no kind":                     rawPart(9, 4096, 4096, zeros),
		"of nothing":                     rawPart(partPlain, 0, 0, nil),
		"beyond 64 KiB":                  rawPart(partPlain, maxPartBytes+4096, maxPartBytes+4096, zeros),
		"of 4 GiB":                       rawPart(partLZ4, 1<<32-4096, 1<<31, zeros),
		"with more on the wire":          rawPart(partPlain, 4096, 8192, zeros),
		"not of whole blocks":            rawPart(partPlain, 4095, 4095, zeros),
		"packed to more than it is":      rawPart(partLZ4, 4096, 4096, zeros),
		"that unpacks to more":           rawPart(partLZ4, 4096, n, bomb),
		"that unpacks to less":           rawPart(partLZ4, maxPartBytes, n, bomb)[:0:0],
		"that does not unpack":           rawPart(partLZ4, maxPartBytes, 100, bytes.Repeat([]byte{0xff}, 100)),
		"of half a hash":                 rawPart(partHeld, 4096, 16, zeros),
		"of hashes for less than blocks": rawPart(partHeld, 4096, 64, zeros),
		"with reserved bytes":            append([]byte{partPlain, 1}, rawPart(partPlain, 4096, 4096, zeros)[2:]...),
	} {
		if len(b) == 0 {
			k.begin(takesLZ4)
			half := bytes.Clone(k.chunk(zeros[:maxPartBytes/2], 0))[partHeadBytes:]
			b = rawPart(partLZ4, maxPartBytes, uint32(len(half)), half)
		}
		if got, err := unpackAll(newUnpacker(bytes.NewReader(b), size)); !errors.Is(err, ErrProtocol) || len(got) > 0 {
			t.Errorf("a part %s: %d bytes, %v", name, len(got), err)
		}
	}
	if _, err := unpackAll(newUnpacker(bytes.NewReader(rawPart(partPlain, 8192, 8192, zeros[:8192])), 4096)); !errors.Is(err, ErrProtocol) {
		t.Errorf("a part beyond the frame: %v", err)
	}
	whole := rawPart(partPlain, 4096, 4096, zeros[:4096])
	for at := range len(whole) {
		if _, err := unpackAll(newUnpacker(bytes.NewReader(whole[:at]), 4096)); err == nil || err == io.EOF {
			t.Fatalf("a part cut after %d bytes: %v", at, err)
		}
	}
	for bit := range 8 * partHeadBytes {
		b := bytes.Clone(whole)
		b[bit/8] ^= 1 << (bit % 8)
		if _, err := unpackAll(newUnpacker(bytes.NewReader(b), 4096)); !errors.Is(err, ErrProtocol) {
			t.Fatalf("bit %d of a part's head flipped: %v", bit, err)
		}
	}
}

// A reference that cannot be followed costs the frame in full, once, and never a guess.
func TestReferencesThatAreNotHeldAreAskedFor(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	frame := make([]byte, 3*maxPartBytes)
	fillRandom(rng, frame)
	k := newFramePacker(new(sentBlocks))
	packAll(k, takesHeld, frame, 1)
	wire := packAll(k, takesHeld, frame, 2)
	if len(wire) > len(frame)/16 {
		t.Fatalf("%d bytes take %d", len(frame), len(wire))
	}
	asked := 0
	m := memory{}
	for at := blockBytes; at < maxPartBytes+5*blockBytes; at += blockBytes { // the rest was forgotten
		m[blake3.Sum256(frame[at:][:blockBytes])] = frame[at:][:blockBytes]
	}
	u := newUnpacker(bytes.NewReader(wire), int64(len(frame)))
	u.held, u.whole = m.held, func() ([]byte, error) { asked++; return frame, nil }
	if got, err := unpackAll(u); err != nil || !bytes.Equal(got, frame) || asked != 1 {
		t.Errorf("%d bytes, %v, asked %d times", len(got), err, asked)
	}
	for name, whole := range map[string]func() ([]byte, error){
		"nobody to ask": nil,
		"an error":      func() ([]byte, error) { return nil, io.ErrUnexpectedEOF },
		"another frame": func() ([]byte, error) { return frame[:maxPartBytes], nil },
	} {
		u := newUnpacker(bytes.NewReader(wire), int64(len(frame)))
		u.held, u.whole = m.held, whole
		if got, err := unpackAll(u); err == nil || len(got) > maxPartBytes {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}

// The source's table forgets what the replica may not hold.
func TestTablesForgetWhatIsNotHeld(t *testing.T) {
	var s sentBlocks
	h := func(n byte) blockHash { return blake3.Sum256([]byte{n}) }
	one, other := tableName{cbt.ID{1}, 1}, tableName{cbt.ID{2}, 1}
	s.begin(one, 0)
	s.note(h(1), 10)
	s.note(h(2), 20)
	if !s.has(h(1)) || !s.has(h(2)) || s.has(h(3)) {
		t.Fatal("it does not remember what was noted")
	}
	s.begin(one, 10)
	if !s.has(h(1)) || s.has(h(2)) {
		t.Error("a session from record 10 on: it does not remember just what is before it")
	}
	s.begin(other, 10)
	if s.has(h(1)) {
		t.Error("another life of the peer: it remembers what that one held")
	}
	s.note(h(1), 10)
	s.begin(tableName{cbt.ID{2}, 2}, 10)
	if s.has(h(1)) {
		t.Error("another table of the peer: it remembers what that one held")
	}
}

// Packing is for slow links and idle streams, and takes a quarter of the time at most.
func TestEconomy(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name string
		e    economy
		want bool
	}{
		{"nothing is known", economy{}, true},
		{"200 Mbit/s, full", economy{link: 100 * ms, bytes: 2_500_000}, true},
		{"10 Gbit/s, full", economy{link: 100 * ms, bytes: 125_000_000}, false},
		{"10 Gbit/s, mostly idle", economy{link: 40 * ms, bytes: 50_000_000, idle: 60 * ms}, true},
		{"packing takes a third", economy{link: 100 * ms, bytes: 1000, packing: 50 * ms}, false},
		{"packing takes a fifth", economy{link: 100 * ms, bytes: 1000, packing: 25 * ms}, true},
		{"off", economy{mode: PackOff, link: 100 * ms, bytes: 1000}, false},
		{"always", economy{mode: PackAlways, link: 100 * ms, bytes: 125_000_000, packing: 100 * ms}, true},
	} {
		if got := c.e.pays(); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	var e economy
	for range 1000 {
		e.wrote(1<<20, 10*ms)
		e.packed(ms)
		e.waited(time.Hour)
	}
	if total := e.link + e.idle + e.packing; total > 2*economyWindow {
		t.Errorf("it remembers %v", total)
	}
}

// FuzzUnpack: parts never give other bytes than as many as the frame has, nor panic.
func FuzzUnpack(f *testing.F) {
	rng := rand.New(rand.NewPCG(9, 9))
	k := newFramePacker(new(sentBlocks))
	old := [][]byte{bytes.Repeat([]byte("old!"), blockBytes/4)}
	n := 0
	for seq := range 10 {
		frame := mixedFrame(rng, 1+rng.IntN(10*blockBytes), old)
		wire := packAll(k, takesLZ4|takesHeld, frame, journal.Seq(seq+1))
		f.Add(uint32(len(frame)), wire)
		for range 5 {
			c := bytes.Clone(wire)
			c[rng.IntN(min(len(c), 64))] ^= byte(rng.Uint32())
			f.Add(uint32(len(frame)), c)
			n++
		}
	}
	if n < 50 {
		f.Fatalf("%d seeds, want 50", n)
	}
	f.Fuzz(func(t *testing.T, size uint32, wire []byte) {
		for i := 0; i+partHeadBytes <= len(wire); { // past the checksums of the heads
			binary.LittleEndian.PutUint32(wire[i+12:], crc32.Checksum(wire[i:i+12], castagnoli))
			i += partHeadBytes + int(min(binary.LittleEndian.Uint32(wire[i+8:]), maxPartBytes))
		}
		want := int64(size%(1<<22)) + 1
		u := newUnpacker(bytes.NewReader(wire), want)
		u.held = func(h blockHash, block []byte) error {
			if h[0]%2 == 0 {
				return errNotHeld
			}
			return nil
		}
		u.whole = func() ([]byte, error) { return make([]byte, want), nil }
		u.seen = func(_ blockHash, at int64) {
			if at <= 0 || at+blockBytes > want || at%blockBytes != 0 {
				t.Fatalf("a block at %d of %d", at, want)
			}
		}
		n, err := io.Copy(io.Discard, u)
		if n > want || err == nil && n != want {
			t.Fatalf("%d bytes of %d, %v", n, want, err)
		}
	})
}

// FuzzDelta: blocks of a delta never give more than came, nor an end that is none.
func FuzzDelta(f *testing.F) {
	rng := rand.New(rand.NewPCG(8, 8))
	n := 0
	for range 10 {
		var b []byte
		w := &deltaWriter{}
		for range rng.IntN(4) {
			p := make([]byte, 1+rng.IntN(3000))
			b = append(append(b, deltaBlock(p)...), p...)
			w.total += uint64(len(p))
		}
		b = append(b, w.tail()...)
		f.Add(b)
		for range 5 {
			c := bytes.Clone(b)
			c[rng.IntN(len(c))] ^= byte(rng.Uint32())
			f.Add(c[:rng.IntN(len(c)+1)])
			n++
		}
	}
	if n < 50 {
		f.Fatalf("%d seeds, want 50", n)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		moved := 0
		d := &deltaReader{r: bytes.NewReader(b), moved: func(n int) { moved += n }, over: func() {}}
		n, err := io.Copy(io.Discard, d)
		if n > int64(len(b)) || int(n) != moved {
			t.Fatalf("%d bytes of %d, told of %d", n, len(b), moved)
		}
		if err == nil && (!d.ended || int(n) != int(d.total)) {
			t.Fatalf("it ends after %d of %d bytes", n, d.total)
		}
	})
}

// FuzzFrameHeader: what is read of a frame's header is what was written.
func FuzzFrameHeader(f *testing.F) {
	frame := frameHeader{4096, 10, 12, someCursor(1).Epoch, someCursor(1).Chain, true}.encode()
	for i := range 60 {
		c := bytes.Clone(frame)
		if i > 0 {
			c[i%len(c)] ^= byte(i)
		}
		f.Add(c)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= frameHeaderBytes {
			seal(b[:frameHeaderBytes]) // past the checksum
		}
		if h, err := readFrameHeader(bytes.NewReader(b), 1<<30); err == nil && (!bytes.Equal(h.encode(), b[:frameHeaderBytes]) || h.bytes > 1<<30) {
			t.Fatalf("frame header %x read as %+v", b[:frameHeaderBytes], h)
		}
	})
}
