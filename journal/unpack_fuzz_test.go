package journal

import (
	"bytes"
	"testing"
)

// FuzzUnpack: packed bytes that are not what was packed give an error or as many bytes as
// were asked for, and never write beyond; what is packed comes back.
func FuzzUnpack(f *testing.F) {
	p := newPacker(CompressAlways, SyncPower)
	for _, data := range [][]byte{bytes.Repeat([]byte("abcdefgh"), 2048), make([]byte, 8192), append(make([]byte, 12<<10), "the end"...)} {
		packed, err := p.pack(data, len(data))
		if err != nil || packed == nil {
			f.Fatalf("pack %d bytes: %v", len(data), err)
		}
		for n := range 40 {
			b := bytes.Clone(packed)
			if n > 0 {
				b[n*7919%len(b)] ^= byte(n)
			}
			f.Add(uint8(codecLZ4), uint16(len(data)-n%3), b)
		}
	}
	f.Add(uint8(99), uint16(0), []byte{})
	f.Fuzz(func(t *testing.T, codec uint8, n uint16, packed []byte) {
		room := bytes.Repeat([]byte{0xA5}, int(n)+64)
		err := unpack(codec, room[:n:n], packed)
		if !bytes.Equal(room[n:], bytes.Repeat([]byte{0xA5}, 64)) {
			t.Fatal("it wrote behind the payload")
		}
		if err != nil || n == 0 {
			return
		}
		again, err := p.pack(room[:n], int(n))
		if err != nil || again == nil {
			return // it does not become smaller
		}
		back := make([]byte, n)
		if err := unpack(codecLZ4, back, again); err != nil || !bytes.Equal(back, room[:n]) {
			t.Fatalf("%d bytes do not come back: %v", n, err)
		}
	})
}
