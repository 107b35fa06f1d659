package journal

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"reflect"
	"testing"

	"github.com/zeebo/blake3"
)

// resum puts the checksum over b, with its own field at at zero, right, so that
// changes get past it.
func resum(b []byte, at int) []byte {
	b = bytes.Clone(b)
	if len(b) >= at+4 {
		binary.LittleEndian.PutUint32(b[at:], 0)
		binary.LittleEndian.PutUint32(b[at:], crc32.Checksum(b, castagnoli))
	}
	return b
}

func FuzzRunPage(f *testing.F) {
	p := runPage{Magic: runFooterMagic, Number: 7, Created: fixedTime, Body: 3 * pageBytes, Blocks: 2, Points: 3, Leaves: 1, Entries: 9, Payload: 4096, Root: Chain{0xcc}}
	seeds(f, p.encode())
	p.Magic = runMagic
	seeds(f, p.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, magic := range []string{runMagic, runFooterMagic} {
			p, err := decodeRunPage(resum(b[:min(len(b), pageBytes)], 20), magic)
			if err != nil {
				continue
			}
			if q, err := decodeRunPage(p.encode(), magic); err != nil || p != q {
				t.Fatalf("%+v became %+v, %v", p, q, err)
			}
			if magic == runFooterMagic && (p.tailBytes() < 0 || p.tailBytes() > maxTailBytes || p.fileBytes() < p.Body) {
				t.Fatalf("a tail of %d bytes in a file of %d", p.tailBytes(), p.fileBytes())
			}
		}
	})
}

func FuzzRunTail(f *testing.F) {
	b := blockPlace{pageBytes, 100, blockVersions}.encode(nil)
	b = blockPlace{2 * pageBytes, 200, blockCatalogue}.encode(b)
	b = runPoint{order: order{1, 4}, time: fixedTime, chain: Chain{1}, only: 5}.encode(b)
	b = runPoint{order: order{2, 5}, time: fixedTime, chain: Chain{2}}.encode(b)
	seeds(f, append(b, make([]byte, 32)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		page := runPage{Body: 8 * pageBytes, Blocks: 2, Leaves: 1, Root: blake3.Sum256(b)}
		page.Points = (int64(len(b)) - page.tailBytes()) / runPointBytes
		if page.Points < 0 {
			return
		}
		blocks, points, err := decodeRunTail(page, b)
		if err != nil {
			return
		}
		var again []byte
		for _, d := range blocks {
			again = d.encode(again)
		}
		for _, p := range points {
			again = p.encode(again)
		}
		was := bytes.Clone(b[:len(again)])
		for i := range points { // four bytes of each say nothing
			clear(was[len(blocks)*directoryBytes+i*runPointBytes+4:][:4])
		}
		if !bytes.Equal(again, was) {
			t.Fatalf("%x became %x", was, again)
		}
	})
}

func FuzzRunEntries(f *testing.F) {
	var d blockBuilder
	for s := Seq(9); s > 0; s-- {
		d.add(indexKey(nil, 3, node{levelCell, 40960}, 2, s), []byte{valueZero, byte(s)})
	}
	seeds(f, d.finish(blockVersions))
	f.Fuzz(func(t *testing.T, b []byte) {
		var again blockBuilder
		room := 0
		err := decodeBlock(resum(b, 4), blockVersions, func(k, v []byte) error {
			again.add(k, v)
			room += len(v)
			return nil
		})
		if err != nil {
			return
		}
		if room > len(b) {
			t.Fatalf("%d bytes of values in a block of %d", room, len(b))
		}
		type pair struct{ k, v string }
		var one, two []pair
		collect := func(ps *[]pair) func(k, v []byte) error {
			return func(k, v []byte) error { *ps = append(*ps, pair{string(k), string(v)}); return nil }
		}
		if err := decodeBlock(resum(b, 4), blockVersions, collect(&one)); err != nil {
			t.Fatal(err)
		}
		if err := decodeBlock(again.finish(blockVersions), blockVersions, collect(&two)); err != nil || !reflect.DeepEqual(one, two) {
			t.Fatalf("%d entries became %d: %v", len(one), len(two), err)
		}
	})
}

func FuzzRunState(f *testing.F) {
	m := manifest{Run: 1, Bytes: 5 * pageBytes, Root: Chain{3}, To: order{1, 9}, Out: Chain{4}, Last: Position{EpochID{1}, 9}, Points: 2, Dropped: encodeBits([]bool{true, false})}
	s := runState{Next: 2, Runs: []manifest{m}, End: frameEnd{Cursor: Cursor{Position{EpochID{1}, 9}, Chain{4}}, Segment: 3, Offset: pageBytes}}
	b, err := json.Marshal(s)
	if err != nil || s.check() != nil {
		f.Fatal(err, s.check())
	}
	seeds(f, b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var s, again runState
		if json.Unmarshal(b, &s) != nil || s.check() != nil {
			return
		}
		for _, m := range s.Runs {
			n := min(max(m.Points, 0), 1<<16)
			if bits, err := decodeBits(m.Dropped, n); err == nil {
				if back, err := decodeBits(encodeBits(bits), n); err != nil || !reflect.DeepEqual(bits, back) {
					t.Fatalf("%v became %v, %v", bits, back, err)
				}
			}
		}
		one, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(one, &again); err != nil || again.check() != nil {
			t.Fatalf("%s does not read again: %v, %v", one, err, again.check())
		}
		if two, err := json.Marshal(again); err != nil || !bytes.Equal(one, two) {
			t.Fatalf("%s became %s, %v", one, two, err)
		}
	})
}

func FuzzSample(f *testing.F) {
	seeds(f, sample{3, 8192, fixedTime, Chain{5}}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := decodeSample(b); err == nil && !bytes.Equal(s.encode(), b) {
			t.Fatalf("%x became %x", b, s.encode())
		}
	})
}

func FuzzIdentityFile(f *testing.F) {
	seeds(f, encodeBody(identityFile{1, *newIdentity()}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var one, two identityFile
		if json.Unmarshal(b, &one) != nil {
			return
		}
		if err := json.Unmarshal(encodeBody(one), &two); err != nil || one != two {
			t.Fatalf("%+v became %+v, %v", one, two, err)
		}
	})
}
