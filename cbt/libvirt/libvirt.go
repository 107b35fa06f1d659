package libvirt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	rpc "github.com/digitalocean/go-libvirt"
)

const systemSocket = "/var/run/libvirt/libvirt-sock"

// Conn is a connection to a libvirtd.
type Conn struct {
	client *rpc.Libvirt
	conn   *watched
}

// watched is a net.Conn that tells when it has ended; the RPC client's own sign
// of that is not safe to ask while it connects. Nor is it safe to be given: an end that
// comes while the client takes its connection for made races with that, so its reader
// learns of one when connecting has settled, or could not go on for want of an answer.
type watched struct {
	net.Conn
	once    sync.Once
	err     error         // set before gone is closed
	gone    chan struct{} // closed at the end
	settled chan struct{} // closed when the client has connected, or failed to
}

// settlePatience is how long a client that connects may wait for an answer that will not
// come any more.
const settlePatience = time.Second

func (w *watched) end(err error) {
	w.once.Do(func() {
		w.err = err
		close(w.gone)
	})
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if err != nil {
		w.end(err)
		select {
		case <-w.settled:
		case <-time.After(settlePatience):
		}
	}
	return n, err
}

// A write may meet the end before the reader does.
func (w *watched) Write(p []byte) (int, error) {
	n, err := w.Conn.Write(p)
	if err != nil {
		w.end(err)
	}
	return n, err
}

// ready is a dialer for a connection that is there already.
type ready struct{ net.Conn }

func (r ready) Dial() (net.Conn, error) { return r.Conn, nil }

// Connect opens uri: qemu:///system or qemu:///session, through the unix socket
// of its ?socket= parameter or libvirt's usual one.
func Connect(ctx context.Context, uri string) (*Conn, error) {
	driver, socket, err := parseURI(uri)
	if err != nil {
		return nil, err
	}
	nc, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConnection, err)
	}
	w := &watched{Conn: nc, gone: make(chan struct{}), settled: make(chan struct{})}
	c := &Conn{client: rpc.NewWithDialer(ready{w}), conn: w}
	err = c.Call(ctx, "connect", func(l *rpc.Libvirt) error {
		defer close(w.settled)
		return l.ConnectToURI(rpc.ConnectURI(driver))
	})
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("connect %s: %w", uri, err)
	}
	return c, nil
}

// parseURI splits uri into what libvirtd is asked for and the socket to ask at.
// Source: libvirt's docs/uri.rst.
func parseURI(uri string) (driver, socket string, err error) {
	u, err := url.Parse(uri)
	if err != nil {
		return "", "", fmt.Errorf("%w: %w", ErrURI, err)
	}
	if (u.Scheme != "qemu" && u.Scheme != "qemu+unix") || u.Host != "" || (u.Path != "/system" && u.Path != "/session") {
		return "", "", fmt.Errorf("%w %q: want qemu:///system or qemu:///session", ErrURI, uri)
	}
	socket = u.Query().Get("socket")
	switch {
	case socket != "":
	case u.Path == "/system":
		socket = systemSocket
	case os.Getenv("XDG_RUNTIME_DIR") != "":
		socket = filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "libvirt", "libvirt-sock")
	default:
		return "", "", fmt.Errorf("%w %q: XDG_RUNTIME_DIR is not set, and there is no ?socket=", ErrURI, uri)
	}
	return "qemu://" + u.Path, socket, nil
}

// Call runs f with the RPC client. It returns when f has, or ctx or the
// connection has ended; f then goes on alone, so what it keeps must be read
// only after a nil error. A refusal is an *Error.
func (c *Conn) Call(ctx context.Context, op string, f func(*rpc.Libvirt) error) error {
	done := make(chan error, 1)
	go func() { done <- f(c.client) }()
	select {
	case err := <-done:
		if err == nil {
			return nil
		}
		if e := c.Err(); e != nil {
			return fmt.Errorf("libvirt: %s: %w", op, e)
		}
		return classify(op, err)
	case <-c.conn.gone:
		return fmt.Errorf("libvirt: %s: %w", op, c.Err())
	case <-ctx.Done():
		return fmt.Errorf("libvirt: %s: %w", op, context.Cause(ctx))
	}
}

// Done is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { return c.conn.gone }

// Err is nil while the connection lives, then wraps ErrConnection.
func (c *Conn) Err() error {
	select {
	case <-c.conn.gone:
		return fmt.Errorf("%w: %w", ErrConnection, c.conn.err)
	default:
		return nil
	}
}

// Close drops the connection; calls under way return. It asks nothing of
// libvirtd, so it does not wait for one that hangs.
func (c *Conn) Close() error {
	err := c.conn.Close()
	c.conn.end(net.ErrClosed)
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
