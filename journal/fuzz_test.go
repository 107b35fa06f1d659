package journal

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/novacron/afterimage/cbt"
)

// seeds adds b and variations of it, at least 50 in all.
func seeds(f *testing.F, b []byte) {
	rng := rand.New(rand.NewPCG(1, uint64(len(b))))
	f.Add(b)
	f.Add([]byte{})
	for i := range 50 {
		c := bytes.Clone(b)
		if len(c) > 0 {
			c[rng.IntN(len(c))] ^= byte(1 + rng.IntN(255))
			c = c[:len(c)-i%2*rng.IntN(len(c))]
		}
		f.Add(c)
	}
}

func FuzzFrame(f *testing.F) {
	_, frame := fixedFrame()
	seeds(f, frame)
	for i := range 60 { // lengths and places at their limits
		b := bytes.Clone(frame)
		binary.LittleEndian.PutUint64(b[(20+4*i)%(len(b)/8)*8:], ^uint64(0)>>(i%64))
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= 32 { // let changes get past the checksum
			if n := int(binary.LittleEndian.Uint32(b[20:])); n >= 32 && n <= len(b) {
				b = bytes.Clone(b)
				sealMeta(b[:n])
			}
		}
		h, meta, recs, err := readMeta(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		head := make([]byte, frameHeaderBytes)
		h.encode(head)
		if h2, err := decodeFrameHeader(head); err != nil || !reflect.DeepEqual(h, h2) {
			t.Fatalf("header: %v, %v, %v", h, h2, err)
		}
		room := 0
		for _, r := range recs {
			room += len(r.cells)*cellEntryBytes + len(r.body)
			if r.kind > KindSame {
				continue
			}
			enc := r.encode(nil)
			r2, n, err := decodeRecord(h, enc)
			if err != nil || n != len(enc) {
				t.Fatalf("record %+v: %d of %d bytes, %v", r, n, len(enc), err)
			}
			if len(r.body) == 0 {
				r.body, r2.body = nil, nil
			}
			if !reflect.DeepEqual(*r, r2) {
				t.Fatalf("record %+v became %+v", *r, r2)
			}
		}
		if room > len(meta) {
			t.Fatalf("%d bytes decoded out of %d", room, len(meta))
		}
		if _, _, err := frameScan(h, recs, meta, Chain{}, bytes.NewReader(b[len(meta):]), false, func([]byte, int64) error { return nil }); err != nil {
			return
		}
	})
}

func FuzzSegmentPage(f *testing.F) {
	p := segmentPage{Magic: segmentMagic, Number: 7, Epoch: EpochID{1}, EpochNum: 3, Seq: 41, ChainSeq: 40, Chain: Chain{0xcc}, Time: fixedTime}
	seeds(f, p.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := decodeSegmentPage(b, segmentMagic)
		if err != nil {
			return
		}
		q, err := decodeSegmentPage(p.encode(), segmentMagic)
		if err != nil || p != q {
			t.Fatalf("%+v became %+v, %v", p, q, err)
		}
	})
}

func FuzzSiteEntry(f *testing.F) {
	b, _ := encodeSiteEntry(siteEntry{Key: "cursor/b", Value: []byte(`{"seq":41}`)}, Chain{1})
	seeds(f, b)
	f.Fuzz(func(t *testing.T, b []byte) {
		e, n, chain := decodeSiteEntry(b, Chain{1})
		if n == 0 {
			return
		}
		c, again := encodeSiteEntry(e, Chain{1})
		e2, n2, chain2 := decodeSiteEntry(c, Chain{1})
		if n > len(b) || n2 != len(c) || chain2 != again || e2.Key != e.Key || chain == again != (string(c[40:]) == string(b[40:n])) {
			t.Fatalf("%+v became %+v", e, e2)
		}
	})
}

func FuzzParseAt(f *testing.F) {
	for _, s := range []string{"latest", "latest-app", "-5m", "-1h30m", "--5m", "-", "2026-11-22T10:00:00+01:00", "2026-11-22T10:00:00.123456789Z", "name:X", "name:", "before:X", "before:", "#1", "#0", "#1.2", "#0.2", "#1.0", "#1.2.3", "#-1", "#18446744073709551616", "", "#", "yesterday"} {
		f.Add(s)
	}
	for i := range 40 {
		f.Add(fmt.Sprintf("#%d.%d", 1<<i, i))
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAt(s)
		if err != nil {
			return
		}
		if b, err := ParseAt(a.String()); err != nil || a != b {
			t.Fatalf("%q: %+v became %+v, %v", s, a, b, err)
		}
		if a.kind == atSeq && a.seq == 0 {
			t.Fatalf("%q names record 0", s)
		}
	})
}

func FuzzIndexKey(f *testing.F) {
	seeds(f, indexKey(nil, 3, node{levelCell, 40960}, 2, 41))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := decodeIndexKey(b)
		if err != nil || e.node.offset < 0 || e.node.offset/nodeBytes(e.node.level) != int64(binary.BigEndian.Uint64(b[6:])) {
			return // no offset of a volume
		}
		if k := indexKey(nil, e.volume, e.node, e.ordinal, e.seq); !bytes.Equal(k, b) {
			t.Fatalf("%x became %x", b, k)
		}
	})
}

func FuzzIndexValue(f *testing.F) {
	r := &record{kind: KindWrite, volume: 1, extent: cbt.Extent{Offset: 512, Length: 4096 * 3}, cells: make([]uint32, 4)}
	if err := indexRecord(r, 1, 9, 5, 4096, func(_, v []byte) error { seeds(f, v); return nil }); err != nil {
		f.Fatal(err)
	}
	for _, r := range []*record{
		{flags: flagSealed, key: 3, nonce: [12]byte{1, 2, 3}, tags: make([]byte, 4*sealedTagBytes), cells: make([]uint32, 4)},
		{flags: flagPacked, codec: codecLZ4, stored: 700, cells: make([]uint32, 1)},
		{flags: flagPacked | flagSealed, codec: codecLZ4, stored: 700, key: 3, tags: make([]byte, sealedTagBytes), cells: make([]uint32, 1)},
	} {
		r.kind, r.volume, r.extent = KindFill, 1, cbt.Extent{Offset: 512, Length: 4096 * 3}
		if err := indexRecord(r, 1, 9, 5, 4096, func(_, v []byte) error { seeds(f, v); return nil }); err != nil {
			f.Fatal(err)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for l := range maxLevel + 1 {
			p, err := decodePlace(b, l)
			if err != nil {
				continue
			}
			q, err := decodePlace(p.encode(nil), l)
			if err != nil || !reflect.DeepEqual(p, q) {
				t.Fatalf("level %d: %+v became %+v, %v", l, p, q, err)
			}
		}
	})
}
