package libvirt

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"strings"
	"sync"

	rpc "github.com/digitalocean/go-libvirt"

	"github.com/novacron/afterimage/cbt/qemu"
	"github.com/novacron/afterimage/cbt/qmp"
)

// Copies taps the disks of a domain by libvirt's own block copies
// (virDomainBlockCopy): nothing of it is passed through to QEMU's monitor, so
// the domain is not tainted, and libvirtd knows of the jobs and names them to
// whoever wants to migrate the domain. Disks are named by target: vda, vdb, …
type Copies struct {
	monitor *Monitor // for its events and its end; no command is sent

	mu    sync.Mutex // guards wakes
	wakes map[string]chan struct{}
}

var _ qemu.Copier = (*Copies)(nil)

// DialCopies connects to the running domain called name; it fits
// qemu.Options.Copies. It ends as a Monitor does.
func DialCopies(ctx context.Context, uri, name string) (*Copies, error) {
	m, err := DialMonitor(ctx, uri, name)
	if err != nil {
		return nil, err
	}
	c := &Copies{monitor: m, wakes: make(map[string]chan struct{})}
	go c.hear(m.Events(256))
	return c, nil
}

// hear wakes all: libvirt names jobs after disks, but what a copy's state is, is
// asked anyway.
func (c *Copies) hear(q qemu.EventQueue) {
	defer q.Close()
	for {
		ev, err := q.Next(context.Background()) // ends with the connection
		switch {
		case errors.Is(err, qmp.ErrOverflow):
		case err != nil:
			c.wake()
			return
		case !strings.HasPrefix(ev.Name, "BLOCK_JOB_") && ev.Name != "JOB_STATUS_CHANGE":
			continue
		}
		c.wake()
	}
}

func (c *Copies) wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.wakes {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}

// Woken implements qemu.Copier.
func (c *Copies) Woken(disk string) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.wakes[disk] == nil {
		c.wakes[disk] = make(chan struct{}, 1)
	}
	return c.wakes[disk]
}

// Size implements qemu.Copier.
func (c *Copies) Size(ctx context.Context, disk string) (int64, error) {
	return c.monitor.size(ctx, disk)
}

// destination is where a copy goes (libvirt, docs/formatdomain.rst).
type destination struct {
	XMLName xml.Name `xml:"disk"`
	Type    string   `xml:"type,attr"`
	Device  string   `xml:"device,attr"`
	Driver  struct {
		Name string `xml:"name,attr"`
		Type string `xml:"type,attr"`
	} `xml:"driver"`
	Source networkSource `xml:"source"`
}

type networkSource struct {
	Protocol string `xml:"protocol,attr"`
	Name     string `xml:"name,attr"`
	Host     struct {
		Transport string `xml:"transport,attr"`
		Socket    string `xml:"socket,attr"`
	} `xml:"host"`
}

// copyFlags: every write arrives before the guest's is answered, the copy ends
// with the domain, and the destination is there already.
const copyFlags = rpc.DomainBlockCopySynchronousWrites | rpc.DomainBlockCopyTransientJob | rpc.DomainBlockCopyReuseExt

// copyBytes is most of the disk's content that QEMU has on its way to us at once.
// The guest's writes wait behind it, each within its stall budget; QEMU's own
// choice is 16 MiB.
const copyBytes = 1 << 20

// Begin implements qemu.Copier. No reconnecting is asked for, so that a server
// that has restarted is never taken for the one that holds what was acknowledged.
func (c *Copies) Begin(ctx context.Context, disk, socket, export string) error {
	to := destination{Type: "network", Device: "disk"}
	to.Driver.Name, to.Driver.Type = "qemu", "raw"
	to.Source.Protocol, to.Source.Name = "nbd", export
	to.Source.Host.Transport, to.Source.Host.Socket = "unix", socket
	text, err := xml.Marshal(to)
	if err != nil {
		return fmt.Errorf("libvirt: marshal destination: %w", err)
	}
	params := []rpc.TypedParam{{Field: rpc.DomainBlockCopyBufSize, Value: *rpc.NewTypedParamValueUllong(copyBytes)}}
	d := c.monitor.Domain
	return d.conn.Call(ctx, "copy "+disk+" of "+d.Name, func(l *rpc.Libvirt) error {
		return l.DomainBlockCopy(d.dom, disk, string(text), params, copyFlags)
	})
}

// mirror is what the live definition tells of a disk's job.
type mirror struct {
	Job    string        `xml:"job,attr"`
	Ready  string        `xml:"ready,attr"` // yes, abort, pivot; absent while it runs
	Source networkSource `xml:"source"`
}

// Copied implements qemu.Copier: the live definition names the copy's socket.
func (c *Copies) Copied(ctx context.Context, disk, socket string) (qemu.CopyState, error) {
	text, err := c.monitor.xml(ctx, 0)
	if err != nil {
		return 0, err
	}
	var def struct {
		Disks []definedDisk `xml:"devices>disk"`
	}
	if err := xml.Unmarshal([]byte(text), &def); err != nil {
		return 0, fmt.Errorf("%w: definition of %s: %w", ErrReply, c.monitor.Name, err)
	}
	for _, k := range def.Disks {
		switch {
		case k.Target.Dev != disk:
			continue
		case k.Mirror == nil:
			return qemu.CopyNone, nil
		case k.Mirror.Job == "": // it ends just now
			return qemu.CopyRuns, nil
		case k.Mirror.Job != "copy" || k.Mirror.Source.Host.Socket != socket:
			return qemu.CopyForeign, nil
		case k.Mirror.Ready == "yes":
			return qemu.CopyReady, nil
		}
		return qemu.CopyRuns, nil
	}
	return 0, fmt.Errorf("%w: %s has no disk %s", ErrNoDisk, c.monitor.Name, disk)
}

// End implements qemu.Copier.
func (c *Copies) End(ctx context.Context, disk string) error {
	d := c.monitor.Domain
	return d.conn.Call(ctx, "end copy of "+disk+" of "+d.Name, func(l *rpc.Libvirt) error {
		return l.DomainBlockJobAbort(d.dom, disk, rpc.DomainBlockJobAbortAsync)
	})
}

// Done is closed when the connection has ended, Err says why.
func (c *Copies) Done() <-chan struct{} { return c.monitor.Done() }

// Err is nil while the connection lives.
func (c *Copies) Err() error { return c.monitor.Err() }

// Close ends the connection; copies go on, and end with their server.
func (c *Copies) Close() error { return c.monitor.Close() }

// Domain is the tapped one.
func (c *Copies) Domain() *Domain { return c.monitor.Domain }
