package main

import (
	"fmt"
	"net"
)

// listen answers whoever connects to a TCP port, from now on, as far as a browser
// wants it.
func (m *machine) listen(p params) error {
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", p.get("port", 7)))
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				m.console.say("error listen: %v", err)
				return
			}
			go answer(c)
		}
	}()
	return nil
}

// answer reads a request, so that closing does not reset what was not read.
func answer(c net.Conn) {
	defer c.Close()
	_, _ = c.Read(make([]byte, 4096)) // whatever it is
	fmt.Fprint(c, "HTTP/1.0 200 OK\r\n\r\nafterimage\n")
}
