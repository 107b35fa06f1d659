package replicator

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/novacron/afterimage/journal"
)

// bundled is some frames in a bundle, and alone.
func bundled(rng *rand.Rand, frames int) (wire, plain []byte) {
	b, k := bundle{}, newFramePacker(new(sentBlocks))
	same := bytes.Repeat([]byte{7, 1, 8}, 400)
	for i := range frames {
		frame := make([]byte, 2*blockBytes)
		copy(frame[100:], same)
		for j := range 64 {
			frame[blockBytes+j] = byte(rng.Uint32())
		}
		h := frameHeader{bytes: int64(len(frame)), first: journal.Seq(i + 1), last: journal.Seq(i + 1), epoch: journal.EpochID{1}, packed: true}
		if !b.fits(h.bytes) {
			break
		}
		b.plain = append(b.plain, h.encode()...)
		k.begin(0)
		b.plain = append(b.plain, k.chunk(frame[:blockBytes], 0)...)
		b.plain = append(b.plain, k.chunk(frame[blockBytes:], blockBytes)...)
		b.frames = append(b.frames, h.bytes)
	}
	plain = bytes.Clone(b.plain)
	return bytes.Clone(b.seal()), plain
}

// Bundles give back the frames that went in, in order, beside frames that went alone;
// what they have in common goes once.
func TestBundlesCarryFramesWhole(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	var wire, want []byte
	carried := 0
	for range 20 {
		n := 1 + rng.IntN(9)
		packed, plain := bundled(rng, n)
		want = append(want, plain...)
		if rng.IntN(3) == 0 { // as they are
			wire = append(wire, plain...)
			continue
		}
		if string(packed[:4]) != "AIB1" || n > 2 && len(packed) > len(plain)/8 {
			t.Fatalf("%d frames of %d bytes take %d", n, len(plain), len(packed))
		}
		wire = append(wire, packed...)
		carried += len(packed)
	}
	moved := 0
	u := &unbundler{r: bytes.NewReader(wire), moved: func(n int) { moved += n }}
	var got []byte
	for {
		err := u.begin()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		h := make([]byte, frameHeaderBytes)
		if _, err := io.ReadFull(u, h); err != nil {
			t.Fatal(err)
		}
		got = append(got, h...)
		f, err := readFrameHeader(bytes.NewReader(h), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		body := &bytes.Buffer{}
		if _, err := io.Copy(io.Discard, newUnpacker(io.TeeReader(u, body), f.bytes)); err != nil {
			t.Fatal(err)
		}
		got = append(got, body.Bytes()...)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%d bytes came of %d, or others", len(got), len(want))
	}
	if moved != carried {
		t.Fatalf("%d bytes of bundles were told of, %d came", moved, carried)
	}
}

// What no correct source sends is refused before it takes memory, and a frame does not
// go on behind the bundle that it lies in.
func TestBundlesThatNobodyMaySend(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	good, plain := bundled(rng, 4)
	change := func(at int, v uint32) []byte {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint32(b[at:], v)
		binary.LittleEndian.PutUint32(b[20:], crc32.Checksum(b[:20], castagnoli))
		return b
	}
	flipped := bytes.Clone(good)
	flipped[9] ^= 1
	half := bundle{plain: plain[:frameHeaderBytes+100]}
	for name, b := range map[string][]byte{
		"another version":     change(4, 9),
		"reserved bytes":      change(4, wireVersion|1<<16),
		"more reserved bytes": change(16, 1),
		"too long":            change(8, maxBundleBytes+1),
		"nothing in it":       change(8, frameHeaderBytes),
		"no bytes":            change(12, 0),
		"longer than plain":   change(12, uint32(len(plain))),
		"another length":      change(8, uint32(len(plain)+1)),
		"a flipped byte":      flipped,
		"half a frame":        bytes.Clone(half.seal()),
	} {
		u := &unbundler{r: bytes.NewReader(append(b, good...)), moved: func(int) {}}
		err := u.begin()
		if err == nil {
			var h frameHeader
			if h, err = readFrameHeader(u, 1<<20); err == nil {
				_, err = io.Copy(io.Discard, newUnpacker(u, h.bytes))
			}
		}
		if !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzBundle: a bundle never gives more than it may hold, nor panics.
func FuzzBundle(f *testing.F) {
	rng := rand.New(rand.NewPCG(9, 9))
	for n := range 10 {
		wire, _ := bundled(rng, n+1)
		f.Add(wire)
		for range 5 {
			c := bytes.Clone(wire)
			c[rng.IntN(min(len(c), 64))] ^= byte(rng.Uint32())
			f.Add(c)
		}
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		if len(wire) >= bundleHeadBytes { // past the checksum
			binary.LittleEndian.PutUint32(wire[20:], crc32.Checksum(wire[:20], castagnoli))
		}
		u := &unbundler{r: bytes.NewReader(wire), moved: func(int) {}}
		if err := u.begin(); err == nil && len(u.left) > maxBundleBytes {
			t.Fatalf("%d bytes in a bundle", len(u.left))
		}
	})
}
