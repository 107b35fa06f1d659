// Command init is process 1 of the testbed's guest: it inserts the modules of the
// initramfs, opens the virtio disks vda, vdb, … as volumes 0, 1, …, and obeys
// orders, one a line. They come from the kernel command line
// (afterimage="order;order", run first) and then from the serial port ttyS0, where
// the answers go.
//
//	ping                                        pong
//	stamp [rate=N] [slots=N] [count=N] [first=K]  stamped K …: one line a durable stamp
//	files [slots=N] [count=N]                   stamped K …: one line a durable file (files.go)
//	wait                                        waited last=K: the stamping of count ended
//	pause                                       paused last=K
//	verify [upto=K] [slots=N]                   volume 0 max=… for each, then verified max=…
//	listen [port=N]                             greets who connects to the TCP port
//	open [slots=N]                              opened volumes=N: the disks that there are now
//	attack [offset=B] [length=B] [seed=N]       attacked bytes=N
//	system                                      started bytes=N: the system on volume 0 (system.go)
//	workload kind=1|2 [mib=N]                   worked …: the program on volume 0 (workload.go)
//	poweroff                                    bye
//
// A disk that open finds gets the stamps that volume 0 holds: as if it had been there.
// At the start it prints "ready volumes=N". What goes wrong is a line "error …".
// rate is in stamps a second (0: as fast as the disks are), slots in stamps; without
// first a load goes on after the highest stamp on the disks. Every write is direct
// and durable before the next; stamp K is on volume 0 before it goes to volume 1.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// port is the serial port; lines of different goroutines do not mix.
type port struct {
	mu sync.Mutex // guards w
	w  io.Writer
}

func (p *port) say(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, format+"\n", args...)
}

func main() {
	if filepath.Base(os.Args[0]) == "shutdown" { // the agent was asked to end the guest
		if err := unix.Kill(1, unix.SIGTERM); err != nil {
			fmt.Printf("error shutdown: %v\n", err)
		}
		return
	}
	ending := make(chan os.Signal, 1)
	signal.Notify(ending, unix.SIGTERM)
	tty, err := boot()
	if err != nil {
		fmt.Printf("error boot: %v\n", err)
		poweroff()
	}
	console := &port{w: tty}
	volumes, err := openDisks()
	if err != nil {
		console.say("error disks: %v", err)
		poweroff()
	}
	if err := startAgent(); err != nil {
		console.say("error agent: %v", err)
	}
	m := &machine{console: console, volumes: volumes}
	console.say("ready volumes=%d", len(volumes))
	for order := range strings.SplitSeq(os.Getenv("afterimage"), ";") {
		m.obey(order)
	}
	lines := make(chan string)
	go func() {
		defer close(lines)
		s := bufio.NewScanner(tty)
		for s.Scan() {
			lines <- s.Text()
		}
		console.say("error console: %v", s.Err())
	}()
	for {
		select {
		case line, open := <-lines:
			if !open {
				poweroff()
			}
			m.obey(line)
		case <-ending:
			m.obey("poweroff")
		}
	}
}

// poweroff does not return.
func poweroff() {
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Printf("error poweroff: %v\n", err)
	}
	select {}
}
