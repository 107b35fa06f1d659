package port

import (
	"fmt"
	"net"
	"testing"
)

// No port is given twice while its test runs, none that somebody uses, and each can
// be bound.
func TestPortsAreOnesOwn(t *testing.T) {
	seen := make(map[int]bool)
	for range 200 {
		p := New(t)
		if seen[p] || p < first || p >= first+count {
			t.Fatalf("port %d is given, %d were", p, len(seen))
		}
		seen[p] = true
	}
	at := Address(t)
	for range 2 { // given back and taken again
		l, err := net.Listen("tcp4", at)
		if err != nil {
			t.Fatal(err)
		}
		_, text, err := net.SplitHostPort(at)
		if err != nil {
			t.Fatal(err)
		}
		p, err := net.LookupPort("tcp", text)
		if err != nil || free(p) {
			t.Errorf("port %d is in use and called free: %v", p, err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var kept int
	t.Run("inner", func(t *testing.T) { kept = New(t) })
	held, err := net.Listen("unix", fmt.Sprintf("@afterimage-test-port-%d", kept))
	if err != nil {
		t.Fatalf("a port is kept beyond its test: %v", err)
	}
	held.Close()
}
