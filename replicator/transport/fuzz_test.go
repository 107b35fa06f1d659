package transport

import (
	"bytes"
	"testing"
)

func FuzzJoin(f *testing.F) {
	f.Add(secret{1, 2}.join(purposeLane))
	f.Add(make([]byte, joinBytes))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, purpose, err := readJoin(bytes.NewReader(b))
		if err == nil && !bytes.Equal(s.join(purpose), b[:joinBytes]) {
			t.Fatalf("%x became %x", b[:joinBytes], s.join(purpose))
		}
	})
}

func FuzzSign(f *testing.F) {
	f.Add(sign{signAlive, 0, ""}.encode())
	f.Add(sign{signEnd, 17, "that is why"}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := readSign(bytes.NewReader(b))
		if err != nil {
			return
		}
		if got := s.encode(); len(s.text) > maxText || !bytes.Equal(got, b[:len(got)]) {
			t.Fatalf("%x became %x", b, got)
		}
	})
}
