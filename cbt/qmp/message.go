package qmp

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Event is one asynchronous message of QEMU.
type Event struct {
	Name string          // BLOCK_JOB_READY, …
	Data json.RawMessage // its "data", may be empty
	Time time.Time       // QEMU's clock
}

// message is any line that a server sends.
type message struct {
	Greeting *greeting       `json:"QMP"`
	Return   json.RawMessage `json:"return"`
	Error    *wireError      `json:"error"`
	ID       *uint64         `json:"id"`
	Event    string          `json:"event"`
	Data     json.RawMessage `json:"data"`
	Time     *stamp          `json:"timestamp"`
}

type greeting struct {
	Version struct {
		QEMU Version `json:"qemu"`
	} `json:"version"`
	Capabilities []string `json:"capabilities"`
}

// Version of the QEMU at the other end.
type Version struct {
	Major int `json:"major"`
	Minor int `json:"minor"`
	Micro int `json:"micro"`
}

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

type wireError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

type stamp struct {
	Seconds      int64 `json:"seconds"`
	Microseconds int64 `json:"microseconds"`
}

// command is any line that we send.
type command struct {
	Execute string `json:"execute,omitempty"`
	ExecOOB string `json:"exec-oob,omitempty"`
	Args    any    `json:"arguments,omitempty"`
	ID      uint64 `json:"id"`
}

var errKind = errors.New("neither greeting, reply nor event")

// readMessage reads the next line of at most limit bytes. Errors of the
// connection come back as they are, a line that is no message as *ProtocolError.
func readMessage(r *bufio.Reader, limit int) (message, error) {
	var m message
	line, err := readLine(r, limit)
	if err != nil {
		return m, err
	}
	dec := json.NewDecoder(bytes.NewReader(line))
	if err := dec.Decode(&m); err != nil {
		return m, protocolError(line, err)
	}
	if dec.InputOffset() < int64(len(bytes.TrimRight(line, " \t\r\n"))) {
		return m, protocolError(line, errors.New("more than one value"))
	}
	kinds := 0
	for _, is := range []bool{m.Greeting != nil, m.Return != nil, m.Error != nil, m.Event != ""} {
		if is {
			kinds++
		}
	}
	if kinds != 1 {
		return m, protocolError(line, errKind)
	}
	return m, nil
}

// readLine skips empty lines and never holds more than limit bytes plus the reader's buffer.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > limit {
			return nil, ErrLineTooLong
		}
		line = append(line, part...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err == io.EOF && len(bytes.TrimSpace(line)) > 0:
			return nil, protocolError(line, io.ErrUnexpectedEOF)
		case err != nil:
			return nil, err
		}
		if len(bytes.TrimSpace(line)) > 0 {
			return line, nil
		}
		line = line[:0]
	}
}

func protocolError(line []byte, cause error) *ProtocolError {
	return &ProtocolError{Line: string(line[:min(len(line), 120)]), Cause: cause}
}

func (m message) event() Event {
	e := Event{Name: m.Event, Data: m.Data}
	if m.Time != nil {
		e.Time = time.Unix(m.Time.Seconds, m.Time.Microseconds*1000)
	}
	return e
}
