package site

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/site/fault"
)

// requestEvents are the events of an NBD server that logs, with its code, what a
// disk or a view could not do: the client sees no more than an input/output error.
// What repeats the last one is logged once, for clients try again and again.
func (s *Site) requestEvents(log *slog.Logger) nbd.Events {
	var mu sync.Mutex // guards last
	var last string
	return nbd.Events{
		Refused: func(_ string, err error) {
			if !errors.Is(err, nbd.ErrUnknownExport) && s.meters != nil {
				s.meters.failed(fault.Unexpected)
			}
		},
		Request: func(i nbd.RequestInfo) {
			if i.Err == nil || errors.Is(i.Err, nbd.EPERM) || isOurEnd(i.Err) {
				return
			}
			f := fault.Of(explain(i.Command+" "+i.Export, i.Err))
			mu.Lock()
			known := last == f.Why
			last = f.Why
			mu.Unlock()
			if known {
				return
			}
			log.Error("request failed", "export", i.Export, "request", i.Command, "at", i.Extent.String(), "code", f.Code, "err", i.Err)
			if s.meters != nil { // a site that only reads has none
				s.meters.failed(f.Code)
			}
		},
	}
}

// diskEvents are those of the server of disks, which counts their clients too.
func (s *Site) diskEvents(log *slog.Logger) nbd.Events {
	e := s.requestEvents(log)
	e.Opened = func(_, export string) { s.clients.count(export, 1) }
	e.Closed = func(_, export string, _ error) { s.clients.count(export, -1) }
	return e
}

// clients counts the connections to disks, by export.
type clients struct {
	mu sync.Mutex // guards n
	n  map[string]int
}

func (c *clients) count(export string, by int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	if c.n[export] += by; c.n[export] == 0 {
		delete(c.n, export)
	}
}

func (c *clients) of(export string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[export]
}

// isOurEnd reports that a request failed because what it was for is being closed.
func isOurEnd(err error) bool {
	for _, e := range []error{errStopping, errDetached, errClosed, context.Canceled, nbd.ErrShutdown} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
