package qemu

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// Heartbeat is the capturing process's end of the pipe to its watchdog. Its
// methods never wait for longer than a moment: a watchdog that does not read
// loses beats, not the guest. A nil Heartbeat does nothing. Safe for concurrent use.
//
// Each beat is one line of JSON that tells everything the watchdog has to know,
// so that a lost one is made good by the next.
type Heartbeat struct {
	mu sync.Mutex // serialises writes
	w  heartbeatPipe
}

type heartbeatPipe interface {
	io.Writer
	SetWriteDeadline(time.Time) error
}

// NewHeartbeat writes to w, the writing end of an os.Pipe whose other end the
// watchdog process inherits.
func NewHeartbeat(w *os.File) *Heartbeat { return &Heartbeat{w: w} }

// beat is one line.
type beat struct {
	Key   string   `json:"key"`             // of the tracker
	QMP   string   `json:"qmp,omitempty"`   // the watchdog's own QMP socket to its machine
	Nodes []string `json:"nodes,omitempty"` // capture nodes to yank
	Still bool     `json:"still,omitempty"` // the guest may be stopped by us, to be resumed
	Gone  bool     `json:"gone,omitempty"`  // the tracker has ended in order
	// Patience is how long beats of this tracker may be missing, in nanoseconds; 0: as
	// long as the watchdog was told for all.
	Patience time.Duration `json:"patience,omitempty"`
}

// Beat says that the capture path of the tracker called key is alive, through
// which QMP socket the watchdog reaches its machine, which nodes are ours there, and for
// how long it may be silent; 0: as long as any.
func (h *Heartbeat) Beat(key, qmpSocket string, nodes []string, patience time.Duration) {
	h.send(beat{Key: key, QMP: qmpSocket, Nodes: nodes, Patience: patience})
}

// Still is Beat for a guest that may be stopped by us just now.
func (h *Heartbeat) Still(key, qmpSocket string, nodes []string, patience time.Duration) {
	h.send(beat{Key: key, QMP: qmpSocket, Nodes: nodes, Still: true, Patience: patience})
}

// Gone says that the tracker has ended and needs no watching.
func (h *Heartbeat) Gone(key string) { h.send(beat{Key: key, Gone: true}) }

func (h *Heartbeat) send(b beat) {
	if h == nil {
		return
	}
	line, err := json.Marshal(b)
	if err != nil {
		return // strings and booleans always marshal
	}
	const moment = 20 * time.Millisecond
	h.mu.Lock()
	defer h.mu.Unlock()
	// A file without deadlines is a regular one, which does not block.
	_ = h.w.SetWriteDeadline(time.Now().Add(moment))
	_, _ = h.w.Write(append(line, '\n'))
}

// longestBeat bounds a line; a machine has some hundred disks at most.
const longestBeat = 64 << 10

var errBeat = errors.New("watchdog: bad beat")

// readBeats calls each for every line of r until its end, which means that the
// capturing process has gone. A line cut short by a full pipe is skipped.
func readBeats(r io.Reader, each func(beat)) error {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 4096), longestBeat)
	for s.Scan() {
		var b beat
		if json.Unmarshal(s.Bytes(), &b) == nil && b.Key != "" {
			each(b)
		}
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("%w: %w", errBeat, err)
	}
	return nil
}
