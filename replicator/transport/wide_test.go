package transport

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
)

// lots is a connection that keeps what is written, call by call, and gives what it has in
// lots of the sizes that are asked for.
type lots struct {
	net.Conn
	calls [][]byte
	fails error
	has   []byte
	reads int
}

func (l *lots) Write(p []byte) (int, error) {
	if l.fails != nil {
		return 0, l.fails
	}
	l.calls = append(l.calls, slices.Clone(p))
	return len(p), nil
}

func (l *lots) Read(p []byte) (int, error) {
	if len(l.has) == 0 {
		return 0, io.EOF
	}
	l.reads++
	n := copy(p, l.has)
	l.has = l.has[n:]
	return n, nil
}

func TestWideGathersWhatALaneWrites(t *testing.T) {
	below := &lots{}
	w := &wide{Conn: below}
	record := func(k byte) []byte { return bytes.Repeat([]byte{k}, 16<<10) }
	for k := range byte(3) { // not a lane's
		if _, err := w.Write(record(k)); err != nil {
			t.Fatal(err)
		}
	}
	if len(below.calls) != 3 {
		t.Fatalf("3 writes came as %d", len(below.calls))
	}
	var want []byte
	n, err := w.gather(func() (int, error) {
		for k := range byte(10) {
			want = append(want, record(k)...)
			if _, err := w.Write(record(k)); err != nil {
				return 0, err
			}
		}
		return 7, nil
	})
	if err != nil || n != 7 {
		t.Fatalf("gather: %d, %v", n, err)
	}
	if got := slices.Concat(below.calls[3:]...); !bytes.Equal(got, want) || len(below.calls) != 3+3 {
		t.Fatalf("10 records came as %d writes of %d bytes", len(below.calls)-3, len(got))
	}
	if n, err := w.Write(record(1)); err != nil || n != 16<<10 || len(below.calls) != 3+3+1 {
		t.Fatalf("a write behind it: %d, %v, %d calls", n, err, len(below.calls))
	}
	below.fails = errors.New("gone")
	if _, err := w.gather(func() (int, error) { return w.Write(record(1)) }); !errors.Is(err, below.fails) {
		t.Fatalf("a write that failed below gave %v", err)
	}
}

func TestWideReadsManyRecordsAtOnce(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	want := make([]byte, 1<<20)
	for i := range want {
		want[i] = byte(rng.Uint32())
	}
	below := &lots{has: want}
	w := &wide{Conn: below}
	got := make([]byte, 100)
	if _, err := io.ReadFull(w, got); err != nil || below.reads != 1 {
		t.Fatalf("%d reads, %v", below.reads, err)
	}
	w.widen()
	for at := 100; at < len(want); {
		p := make([]byte, 1+rng.IntN(16<<10))
		n, err := w.Read(p)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, p[:n]...)
		at += n
	}
	if !bytes.Equal(got, want) {
		t.Fatal("what was read differs from what there was")
	}
	if most := 2 + len(want)/wideBytes; below.reads > most {
		t.Fatalf("%d reads, want at most %d", below.reads, most)
	}
	if _, err := w.Read(got); !errors.Is(err, io.EOF) {
		t.Fatalf("at the end: %v", err)
	}
}
