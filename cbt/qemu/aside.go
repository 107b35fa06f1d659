package qemu

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/novacron/afterimage/cbt"
)

// aside is what events tell of the copies aside that are under way. QEMU's answers do
// not say that one has failed, for the guest is not to hear of it. Of one copy that event
// comes before the one which tells that the job is pending, so only a job of which that
// was heard is believed. The zero aside is ready.
type aside struct {
	mu   sync.Mutex // guards jobs
	jobs map[string]*asideNews
}

// asideNews is what was heard of one job.
type asideNews struct {
	file    string // node of the file that is written to
	pending bool
	bad     string // why a write to it failed
}

func (c *aside) begin(job, file string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.jobs == nil {
		c.jobs = make(map[string]*asideNews)
	}
	c.jobs[job] = &asideNews{file: file}
}

func (c *aside) end(job string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.jobs, job)
}

// isPending notes that a job has copied all.
func (c *aside) isPending(job string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := c.jobs[job]; n != nil {
		n.pending = true
	}
}

// failed notes that a write to a node failed; to any, for "".
func (c *aside) failed(file, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.jobs {
		if file == "" || n.file == file {
			n.bad = why
		}
	}
}

// whole reports whether all that a job copied is in its file.
func (c *aside) whole(job string) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.jobs[job]
	switch {
	case n == nil:
		return true, nil // the bare file: the job itself has failed then
	case n.bad == "":
		return n.pending, nil
	}
	cause := cbt.CauseTapError
	if strings.Contains(n.bad, "space") {
		cause = cbt.CauseDiskFull
	}
	return false, breakage(cause, fmt.Errorf("%w: %s", errNotAside, n.bad))
}

// errNotAside means that what the guest overwrote was not copied before.
var errNotAside = errors.New("a copy aside failed")
