// Package port gives tests ports of loopback that nobody else binds.
//
// A port that the kernel picked, and that is closed to be bound again by the program
// under test, may be given to somebody else in between: every socket without a port
// of its own takes one of that range. These lie below the range. Tests that run at
// the same time, in this process or another, do not get the same one: for as long as
// a test runs it holds an abstract socket with the port's number. The package imports
// nothing of ours. Safe for concurrent use.
package port

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
)

// The range is below the kernel's own (32768 and up), and above what services use.
const (
	first = 20000
	count = 12000
)

// New is a port that is free for TCP and UDP on 127.0.0.1, and t's until it ends.
func New(t testing.TB) int {
	t.Helper()
	for range 1000 {
		p := first + rand.IntN(count)
		held, err := net.Listen("unix", fmt.Sprintf("@afterimage-test-port-%d", p))
		if err != nil {
			continue // another test's
		}
		if !free(p) {
			held.Close()
			continue
		}
		t.Cleanup(func() { held.Close() })
		return p
	}
	t.Fatal("no port is free")
	return 0
}

// Address is 127.0.0.1 with a port of its own.
func Address(t testing.TB) string {
	t.Helper()
	return address(New(t))
}

func address(p int) string { return fmt.Sprintf("127.0.0.1:%d", p) }

func free(p int) bool {
	tcp, err := net.Listen("tcp4", address(p))
	if err != nil {
		return false
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp4", address(p))
	if err != nil {
		return false
	}
	defer udp.Close()
	return true
}
