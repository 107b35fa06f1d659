package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
)

var given sync.Map // ports, by number

// unusedPort is a port of loopback that is free for UDP and TCP and given but once.
// It lies below those that the kernel gives to sockets without one of their own, and
// beside those that testbed/port gives, so that it is free still when it is bound.
func unusedPort() (int, error) {
	for range 1000 {
		p := 12000 + rand.IntN(8000)
		at := fmt.Sprintf("127.0.0.1:%d", p)
		udp, err := net.ListenPacket("udp4", at)
		if err != nil {
			continue
		}
		tcp, err := net.Listen("tcp4", at)
		if err = errors.Join(err, udp.Close()); err != nil {
			continue
		}
		if err := tcp.Close(); err != nil {
			return 0, err
		}
		if _, twice := given.LoadOrStore(p, true); !twice {
			return p, nil
		}
	}
	return 0, errors.New("find a port: none is free")
}
