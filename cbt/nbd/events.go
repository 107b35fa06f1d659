package nbd

import (
	"time"

	"github.com/novacron/afterimage/cbt"
)

// Events are what a Server tells about its work; nil functions are skipped.
// They are called from the goroutines of connections and must not block.
type Events struct {
	// Refused: a connection ended before an export was opened for it.
	Refused func(remote string, err error)
	// Opened: a client has opened an export.
	Opened func(remote, export string)
	// Closed: its connection has ended; err is nil after a farewell, wraps
	// ErrDisconnected when the client just went, ErrShutdown when we closed.
	Closed func(remote, export string, err error)
	// Request: the device has returned.
	Request func(RequestInfo)
}

// RequestInfo describes one request that reached a device.
type RequestInfo struct {
	Export   string
	Command  string // read, write, zero, trim, flush, status
	Extent   cbt.Extent
	Duration time.Duration // inside the device
	Err      error
}
