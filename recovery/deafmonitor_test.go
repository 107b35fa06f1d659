package recovery

import (
	"encoding/json"
	"net"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// A QEMU that greets and then reads nothing more is asked over another connection, and
// the first one is closed: what it waits for may be that.
func TestADeafMonitorIsAskedAnew(t *testing.T) {
	m := emptyMachine(shortDir(t))
	m.Disks = nil
	must(t, os.MkdirAll(m.Dir, 0o700))
	id, err := m.prepare(nil)
	must(t, err)
	pid, err := os.Create(m.pidFile())
	must(t, err)
	defer pid.Close()
	_, err = pid.WriteString(strconv.Itoa(os.Getpid()))
	must(t, err)
	must(t, unix.FcntlFlock(pid.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}))
	l, err := net.Listen("unix", m.qmp())
	must(t, err)
	served := make(chan struct{})
	go func() {
		defer close(served)
		deaf, err := l.Accept()
		if err != nil {
			return
		}
		defer deaf.Close()
		if _, err := deaf.Write([]byte(greeting)); err != nil {
			t.Error(err)
		}
		for {
			c, err := l.Accept() // all that a QEMU waits for then
			if err != nil {
				return // the test is over
			}
			answers(c, id.UUID)
		}
	}()
	r, err := m.Attach(testContext(t))
	must(t, err)
	if r.PID != os.Getpid() {
		t.Errorf("process %d", r.PID)
	}
	must(t, r.Close())
	must(t, l.Close())
	<-served
}

const greeting = `{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}}` + "\n"

// answers is a monitor of a machine that runs, until its client goes.
func answers(c net.Conn, uuid string) {
	defer c.Close()
	if _, err := c.Write([]byte(greeting)); err != nil {
		return
	}
	for commands, replies := json.NewDecoder(c), json.NewEncoder(c); ; {
		var command struct {
			ID uint64 `json:"id"`
		}
		if commands.Decode(&command) != nil {
			return
		}
		if replies.Encode(map[string]any{"return": map[string]string{"UUID": uuid, "status": "running"}, "id": command.ID}) != nil {
			return
		}
	}
}
