package qemu

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/novacron/afterimage/cbt/qmp"
)

// machine is one session with a QEMU: its commands, its job events, and the NBD
// server through which its disks are read.
type machine struct {
	commands
	opts *Options

	mu     sync.Mutex               // guards what follows
	wakers map[string]chan struct{} // by job; signalled when something happened to it
	errs   map[string]string        // by job: the newest error it told of

	copies aside       // copies aside
	bare   atomic.Bool // it has no quorum driver

	readMu  sync.Mutex // guards readers, held while the server starts and stops
	readers int
}

func newMachine(mon Monitor, o *Options) *machine {
	return &machine{commands: commands{mon}, opts: o, wakers: make(map[string]chan struct{}), errs: make(map[string]string)}
}

// hear passes job events on until ctx or the connection ends. Events only wake:
// what a job's state is, is asked.
func (m *machine) hear(ctx context.Context) {
	q := m.Events(256)
	defer q.Close()
	for {
		ev, err := q.Next(ctx)
		switch {
		case errors.Is(err, qmp.ErrOverflow):
			m.copies.failed("", "events were lost")
			m.wake("")
		case err != nil:
			m.wake("")
			return
		case strings.HasPrefix(ev.Name, "BLOCK_JOB_") || ev.Name == "JOB_STATUS_CHANGE":
			var data struct {
				Device string `json:"device"`
				ID     string `json:"id"`
				Error  string `json:"error"`
				Status string `json:"status"`
			}
			if json.Unmarshal(ev.Data, &data) != nil {
				m.wake("")
				continue
			}
			if data.Status == "pending" {
				m.copies.isPending(data.ID)
			}
			id := data.Device + data.ID // an event has one of them
			if data.Error != "" {
				m.mu.Lock()
				m.errs[id] = data.Error
				m.mu.Unlock()
			}
			m.wake(id)
		case ev.Name == "QUORUM_REPORT_BAD":
			var data struct {
				Node  string `json:"node-name"`
				Error string `json:"error"`
			}
			if json.Unmarshal(ev.Data, &data) != nil || data.Node == "" {
				m.copies.failed("", "an event of a failure is not understood")
				continue
			}
			m.copies.failed(data.Node, cmp.Or(data.Error, "an error without a name"))
		}
	}
}

// wake signals job's waiter, all of them for "".
func (m *machine) wake(job string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, w := range m.wakers {
		if job == "" || id == job {
			signal(w)
		}
	}
}

// listen returns a channel that is signalled when something happened to job.
func (m *machine) listen(job string) (woken <-chan struct{}, leave func()) {
	w := make(chan struct{}, 1)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wakers[job] = w
	return w, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.wakers, job)
		delete(m.errs, job)
	}
}

func (m *machine) jobError(job string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.errs[job]
}

// endJob cancels a job whose target answers or has gone, and waits until it is
// no more. A target that is silent must be yanked first: draining would freeze
// QEMU's main loop.
func (m *machine) endJob(ctx context.Context, id string) error {
	const look, unready = 5 * time.Millisecond, time.Second
	asked, began := false, time.Now()
	for {
		j, err := m.job(ctx, id)
		if err != nil || j == nil {
			return err
		}
		// Before it is ready a mirror takes even a soft cancel for a hard one.
		if !asked && (j.Ready || j.Type != "mirror" || time.Since(began) > unready) {
			if err := m.cancelJob(ctx, id); err != nil && !qmp.IsRefused(err) {
				return err
			}
			asked = true
			continue
		}
		if !rest(ctx, m.Done(), look) {
			return errors.Join(context.Cause(ctx), m.Err())
		}
	}
}

// openReads returns the socket of an NBD server inside QEMU, which is started
// for the first reader and stopped after the last: other tools need it too.
func (m *machine) openReads(ctx context.Context) (socket string, release func(context.Context), err error) {
	if m.opts.ReadServer != "" {
		return m.opts.ReadServer, func(context.Context) {}, nil
	}
	socket = m.opts.readSocket()
	m.readMu.Lock()
	defer m.readMu.Unlock()
	if m.readers == 0 {
		switch err := m.startNBD(ctx, socket); {
		case qmp.IsRefused(err):
			// An earlier life of ours may have left its server running.
			c, dialErr := net.Dial("unix", socket)
			if dialErr != nil {
				return "", nil, errors.Join(ErrNBDServerBusy, err)
			}
			c.Close()
		case err != nil:
			return "", nil, err
		}
	}
	m.readers++
	return socket, m.closeReads, nil
}

func (m *machine) closeReads(ctx context.Context) {
	m.readMu.Lock()
	defer m.readMu.Unlock()
	if m.readers--; m.readers == 0 {
		if err := m.stopNBD(ctx); err != nil {
			m.opts.Log.Warn("stop nbd server", "error", err)
		}
	}
}
