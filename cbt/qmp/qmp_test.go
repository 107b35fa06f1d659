package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const helloOOB = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}`

// fake is the server's end of a pipe, after the negotiation.
type fake struct {
	t    *testing.T
	conn net.Conn
	br   *bufio.Reader
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func dialFake(t *testing.T, o Options) (*Client, *fake) {
	t.Helper()
	near, far := net.Pipe()
	f := &fake{t: t, conn: far, br: bufio.NewReader(far)}
	go func() {
		fmt.Fprintln(far, helloOOB)
		cmd := f.next()
		if cmd.Execute != "qmp_capabilities" {
			t.Errorf("first command is %q", cmd.Execute)
		}
		f.send(`{"return": {}, "id": %d}`, cmd.ID)
	}()
	c, err := newClient(testContext(t), near, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); far.Close() })
	return c, f
}

func (f *fake) next() command {
	var cmd command
	line, err := f.br.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &cmd)
	}
	if err != nil {
		f.t.Errorf("fake server: %v", err)
	}
	return cmd
}

func (f *fake) send(format string, args ...any) {
	if _, err := fmt.Fprintf(f.conn, format+"\r\n", args...); err != nil {
		f.t.Errorf("fake server: %v", err)
	}
}

func TestRepliesReachTheirCallers(t *testing.T) {
	c, f := dialFake(t, Options{})
	const n = 16
	served := make(chan struct{})
	go func() {
		defer close(served)
		var cmds []command
		for range n {
			cmds = append(cmds, f.next())
		}
		for i := len(cmds) - 1; i >= 0; i-- { // in the reverse order
			f.send(`{"return": {"is": %q}, "id": %d}`, cmds[i].Execute, cmds[i].ID)
		}
	}()
	var wg sync.WaitGroup
	for i := range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			var r struct{ Is string }
			name := fmt.Sprintf("command-%d", i)
			if err := c.Execute(testContext(t), name, nil, &r); err != nil || r.Is != name {
				t.Errorf("%s: got %q, %v", name, r.Is, err)
			}
		}()
	}
	wg.Wait()
	<-served
}

func TestRefusalIsTyped(t *testing.T) {
	c, f := dialFake(t, Options{})
	go func() {
		f.send(`{"error": {"class": "DeviceNotFound", "desc": "no such disk"}, "id": %d}`, f.next().ID)
	}()
	err := c.Execute(testContext(t), "blockdev-del", map[string]any{"node-name": "x"}, nil)
	var e *Error
	if !errors.As(err, &e) || e.Class != "DeviceNotFound" || e.Desc != "no such disk" || e.Command != "blockdev-del" || !IsRefused(err) {
		t.Fatalf("got %#v", err)
	}
}

func TestOutOfBandUsesItsOwnVerb(t *testing.T) {
	c, f := dialFake(t, Options{})
	got := make(chan command, 1)
	go func() {
		cmd := f.next()
		got <- cmd
		f.send(`{"return": {}, "id": %d}`, cmd.ID)
	}()
	if err := c.ExecuteOOB(testContext(t), "yank", nil, nil); err != nil {
		t.Fatal(err)
	}
	if cmd := <-got; cmd.ExecOOB != "yank" || cmd.Execute != "" {
		t.Fatalf("sent %+v", cmd)
	}
	c.oob = false
	if err := c.ExecuteOOB(testContext(t), "yank", nil, nil); !errors.Is(err, ErrNoOOB) {
		t.Fatalf("got %v", err)
	}
}

func TestEventsKeepTheirOrderAndLossesAreTold(t *testing.T) {
	c, f := dialFake(t, Options{})
	full := c.Subscribe(3)
	all := c.Subscribe(100)
	for i := range 10 {
		f.send(`{"event": "E%d", "data": {"n": %d}, "timestamp": {"seconds": 1, "microseconds": 5}}`, i, i)
	}
	ctx := testContext(t)
	for i := range 10 {
		e, err := all.Next(ctx)
		if err != nil || e.Name != fmt.Sprintf("E%d", i) || e.Time.UnixMicro() != 1000005 {
			t.Fatalf("event %d: %+v, %v", i, e, err)
		}
	}
	for i := range 3 {
		if e, err := full.Next(ctx); err != nil || e.Name != fmt.Sprintf("E%d", i) {
			t.Fatalf("event %d: %+v, %v", i, e, err)
		}
	}
	if _, err := full.Next(ctx); !errors.Is(err, ErrOverflow) {
		t.Fatalf("the loss was not told: %v", err)
	}
	f.send(`{"event": "LATER", "timestamp": {"seconds": 1, "microseconds": 0}}`)
	if e, err := full.Next(ctx); err != nil || e.Name != "LATER" {
		t.Fatalf("after the loss: %+v, %v", e, err)
	}
	full.Close()
	f.conn.Close()
	if _, err := all.Next(ctx); err != nil { // LATER
		t.Fatal(err)
	}
	if _, err := all.Next(ctx); err == nil || err != c.Err() {
		t.Fatalf("the connection's end was not told: %v", err)
	}
	if _, err := c.Subscribe(1).Next(ctx); err == nil {
		t.Fatal("a subscription to a dead connection waits")
	}
}

func TestBadInputEndsTheConnection(t *testing.T) {
	for name, tc := range map[string]struct {
		input string
		check func(error) bool
	}{
		"not json":   {"}{\n", isProtocolError},
		"no message": {`{"hello": 1}` + "\n", isProtocolError},
		"two kinds":  {`{"return": {}, "event": "X"}` + "\n", isProtocolError},
		"two values": {`{"return": {}} {"return": {}}` + "\n", isProtocolError},
		"bad id":     {`{"return": {}, "id": "nine"}` + "\n", isProtocolError},
		"cut short":  {`{"return": {`, isProtocolError},
		"too long":   {`{"return": "` + strings.Repeat("x", 9000) + `"}` + "\n", func(err error) bool { return errors.Is(err, ErrLineTooLong) }},
		"closed":     {"", func(err error) bool { return err != nil && strings.Contains(err.Error(), "closed") }},
	} {
		t.Run(name, func(t *testing.T) {
			c, f := dialFake(t, Options{MaxLine: 8192})
			asked := make(chan error, 1)
			go func() { asked <- c.Execute(testContext(t), "query-version", nil, nil) }()
			f.next()
			io.WriteString(f.conn, tc.input)
			f.conn.Close()
			if err := <-asked; !tc.check(err) {
				t.Errorf("the caller got %v", err)
			}
			<-c.Done()
			if err := c.Err(); !tc.check(err) {
				t.Errorf("Err is %v", err)
			}
			if err := c.Execute(testContext(t), "query-version", nil, nil); !tc.check(err) {
				t.Errorf("a later caller got %v", err)
			}
		})
	}
}

func isProtocolError(err error) bool {
	var e *ProtocolError
	return errors.As(err, &e)
}

func TestCallerLeavesAndTheReplyIsForgotten(t *testing.T) {
	c, f := dialFake(t, Options{})
	ctx, cancel := context.WithCancelCause(context.Background())
	asked := make(chan error, 1)
	go func() { asked <- c.Execute(ctx, "slow", nil, nil) }()
	slow := f.next()
	why := errors.New("tired of waiting")
	cancel(why)
	if err := <-asked; !errors.Is(err, why) {
		t.Fatalf("got %v", err)
	}
	f.send(`{"return": {}, "id": %d}`, slow.ID)
	go func() { f.send(`{"return": {}, "id": %d}`, f.next().ID) }()
	if err := c.Execute(testContext(t), "next", nil, nil); err != nil {
		t.Fatal(err)
	}
}

func TestDialGivesUpOnASilentServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, path, Options{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	if _, err := Dial(testContext(t), path+"x", Options{}); err == nil {
		t.Fatal("connected to nothing")
	}
}

func TestCloseFailsWhatWaits(t *testing.T) {
	c, f := dialFake(t, Options{})
	asked := make(chan error, 1)
	go func() { asked <- c.Execute(testContext(t), "slow", nil, nil) }()
	f.next()
	c.Close()
	if err := <-asked; !errors.Is(err, ErrClosed) {
		t.Fatalf("got %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

func FuzzReadMessage(f *testing.F) {
	for _, s := range []string{helloOOB, `{"return": {}, "id": 7}`, `{"error": {"class": "a", "desc": "b"}, "id": 7}`,
		`{"event": "X", "data": {}, "timestamp": {"seconds": -1, "microseconds": 9}}`, "\r\n\r\n", `{"return": null}`, `[1]`, `"x"`} {
		f.Add([]byte(s + "\n"))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		const limit = 1 << 10
		br := bufio.NewReaderSize(strings.NewReader(string(in)), 16)
		for {
			m, err := readMessage(br, limit)
			if err != nil {
				break
			}
			if m.Greeting == nil && m.Return == nil && m.Error == nil && m.Event == "" {
				t.Fatalf("accepted a message of no kind")
			}
			m.event()
		}
	})
}
