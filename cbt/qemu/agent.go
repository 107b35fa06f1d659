package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"
)

// ErrAgent means that no guest agent answers; ErrAgentRefused that one did, with an error.
var (
	ErrAgent        = errors.New("guest agent")
	ErrAgentRefused = errors.New("it refused")
)

// Agent talks to qemu-guest-agent through the host's end of its channel, a unix
// socket, one connection for each call (qapi/qga: qga/qapi-schema.json).
type Agent struct{ Socket string }

// longestReply bounds a line of an agent: it is run by the guest, which may say
// anything.
const longestReply = 64 << 10

// Freeze makes the guest flush and freeze its file systems, and returns how many.
// A caller whose context ends must thaw: the call may yet succeed.
func (a Agent) Freeze(ctx context.Context) (int, error) {
	return a.count(ctx, "guest-fsfreeze-freeze")
}

// Thaw undoes Freeze and returns how many file systems were still frozen.
func (a Agent) Thaw(ctx context.Context) (int, error) {
	return a.count(ctx, "guest-fsfreeze-thaw")
}

func (a Agent) count(ctx context.Context, command string) (n int, err error) {
	return n, a.Execute(ctx, command, nil, &n)
}

// Execute runs a command of the agent and reads what it returns into result.
func (a Agent) Execute(ctx context.Context, command string, arguments map[string]any, result any) (err error) {
	c, err := new(net.Dialer).DialContext(ctx, "unix", a.Socket)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrAgent, err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = fmt.Errorf("%w: %s: %w", ErrAgent, command, context.Cause(ctx))
		}
	}()
	// What an earlier caller left unread comes before the answer to our number.
	number := rand.Int64N(1 << 50)
	if err := send(c, "guest-sync", map[string]any{"id": number}); err != nil {
		return err
	}
	r := bufio.NewReaderSize(c, longestReply)
	for {
		var id int64
		if err := reply(r, &id); err != nil && !errors.Is(err, ErrAgentRefused) && !errors.Is(err, errGarbled) {
			return fmt.Errorf("%w: %s: %w", ErrAgent, command, err)
		} else if err == nil && id == number {
			break
		}
	}
	if err := send(c, command, arguments); err != nil {
		return err
	}
	if err := reply(r, result); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrAgent, command, err)
	}
	return nil
}

func send(c net.Conn, command string, arguments map[string]any) error {
	in := map[string]any{"execute": command}
	if arguments != nil {
		in["arguments"] = arguments
	}
	line, err := json.Marshal(in)
	if err == nil {
		_, err = c.Write(append(line, '\n'))
	}
	if err != nil {
		return fmt.Errorf("%w: send %s: %w", ErrAgent, command, err)
	}
	return nil
}

// errGarbled is a line that says nothing of whether the agent did what it was told.
var errGarbled = errors.New("it answered something else")

// reply reads one line into result.
func reply(r *bufio.Reader, result any) error {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return err
	}
	var out struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Desc string `json:"desc"`
		} `json:"error"`
	}
	if err := json.Unmarshal(line, &out); err != nil {
		return fmt.Errorf("%w: %w", errGarbled, err)
	}
	if out.Error != nil {
		return fmt.Errorf("%w: %s", ErrAgentRefused, out.Error.Desc)
	}
	if err := json.Unmarshal(out.Return, result); err != nil {
		return fmt.Errorf("%w: %w", errGarbled, err)
	}
	return nil
}
