package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/novacron/afterimage/cbt/nbd"
	product "github.com/novacron/afterimage/site"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

// counter is a TCP proxy that adds what passes to bytes, both ways together.
type counter struct {
	l     net.Listener
	to    string
	held  io.Closer // the port of to
	bytes *atomic.Int64
	wg    sync.WaitGroup
	mu    sync.Mutex // guards conns
	conns []net.Conn
}

// newCounter stands before a port that nobody listens on yet.
func newCounter(bytes *atomic.Int64) (*counter, error) {
	to, held, err := heldAddress()
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, held.Close())
	}
	c := &counter{l: l, to: to, held: held, bytes: bytes}
	c.wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				_ = in.Close() // it dials again
				continue
			}
			c.mu.Lock()
			c.conns = append(c.conns, in, out)
			c.mu.Unlock()
			c.wg.Go(func() { c.pass(in, out) })
			c.wg.Go(func() { c.pass(out, in) })
		}
	})
	return c, nil
}

func (c *counter) pass(to, from net.Conn) {
	_, _ = io.Copy(to, io.TeeReader(from, c)) // an end of either is the end of both
	_ = to.Close()
	_ = from.Close()
}

func (c *counter) Write(p []byte) (int, error) {
	c.bytes.Add(int64(len(p)))
	return len(p), nil
}

func (c *counter) close() {
	_ = c.l.Close()
	c.mu.Lock()
	for _, x := range c.conns {
		_ = x.Close()
	}
	c.mu.Unlock()
	c.wg.Wait()
	_ = c.held.Close() // of an abstract socket
}

// heldAddress is a port below those that the kernel gives away, which nobody uses, and
// the abstract socket by which others who pick ports there know that it is taken.
func heldAddress() (string, io.Closer, error) {
	for range 1000 {
		port := 20000 + rand.IntN(12000)
		held, err := net.Listen("unix", fmt.Sprintf("@afterimage-test-port-%d", port))
		if err != nil {
			continue
		}
		address := fmt.Sprintf("127.0.0.1:%d", port)
		tcp, err := net.Listen("tcp", address)
		if err == nil {
			udp, udpErr := net.ListenPacket("udp", address)
			if err = errors.Join(udpErr, tcp.Close()); udpErr == nil {
				err = errors.Join(err, udp.Close())
			}
		}
		if err == nil {
			return address, held, nil
		}
		_ = held.Close() // the port is somebody's
	}
	return "", nil, errors.New("no port is free")
}

// ranSite is a site in this process.
type ranSite struct {
	*product.Site
	cfg  *config.Config
	stop func() error
}

func runSite(ctx context.Context, c *config.Config) (*ranSite, error) {
	s, err := product.Open(c, product.Options{})
	if err != nil {
		return nil, err
	}
	running, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- s.Run(running) }()
	return &ranSite{s, c, sync.OnceValue(func() error {
		cancel()
		return errors.Join(<-done, s.Close())
	})}, nil
}

func (s *ranSite) line(ctx context.Context) control.Group {
	g, err := s.Group(ctx, "web")
	if err != nil {
		return control.Group{}
	}
	return g.Group
}

// write writes bytes that do not compress, from off on.
func (s *ranSite) write(ctx context.Context, off, n int64, seed byte) error {
	c, err := nbd.Dial(ctx, "unix", s.cfg.NBD, nbd.DialOptions{Export: "web/root"})
	if err != nil {
		return err
	}
	defer c.Close()
	rng, p := rand.NewChaCha8([32]byte{seed}), make([]byte, 1<<20)
	for end := off + n; off < end; off += int64(len(p)) {
		p = p[:min(int64(len(p)), end-off)]
		_, _ = rng.Read(p) // never fails
		if err := c.WriteAt(ctx, p, off, false); err != nil {
			return err
		}
	}
	return c.Flush(ctx)
}

// Reprotect measures what crosses the wire when an old primary is protected again. Two
// sites hold the same; the first goes away, the second is promoted and written to, differ
// bytes that do not compress; then the first is back and the second is told to protect
// it. Counted is every byte of the TCP connections between the two, in both directions,
// from the first one's return until it holds all that the second has.
func Reprotect(ctx context.Context, dir string, diskBytes, differ int64) (wire int64, err error) {
	dir, err = os.MkdirTemp(dir, "br")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	var count atomic.Int64
	var before [2]*counter // each site's door
	for i := range before {
		if before[i], err = newCounter(&count); err != nil {
			return 0, err
		}
		defer before[i].close()
	}
	a, b, err := reprotectSites(dir, diskBytes, before[0], before[1])
	if err != nil {
		return 0, err
	}
	sb, err := runSite(ctx, b)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, sb.stop()) }()
	sa, err := runSite(ctx, a)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, sa.stop()) }()
	level := func(from, to func() *ranSite) error {
		return until(ctx, "both sites hold the same", func() bool {
			x, y := from().line(ctx), to().line(ctx)
			return x.State == control.StateSynced && y.Role == "replica" && x.Seq > 0 && x.Seq == y.Durable && x.EpochID == y.EpochID
		})
	}
	first, second := func() *ranSite { return sa }, func() *ranSite { return sb }
	if err := until(ctx, "the first site takes writes", func() bool { return sa.line(ctx).State == control.StateSynced }); err != nil {
		return 0, err
	}
	if err := sa.write(ctx, 0, min(64<<20, diskBytes/4), 1); err != nil {
		return 0, err
	}
	if err := level(first, second); err != nil {
		return 0, err
	}
	if err := sa.stop(); err != nil {
		return 0, err
	}
	quiet := func(control.Progress) {}
	if _, err := sb.Failover(ctx, control.FailoverRequest{Group: "web", At: "latest", Force: true, NoMachine: true}, quiet); err != nil {
		return 0, err
	}
	if err := sb.write(ctx, diskBytes/2, differ, 2); err != nil {
		return 0, err
	}
	if _, err := sb.Decide(ctx, control.DecisionRequest{Verb: control.VerbCommit, Group: "web"}, quiet); err != nil {
		return 0, err
	}
	passed := count.Load()
	back, err := runSite(ctx, a)
	if err != nil {
		return 0, err
	}
	sa = back
	if err := until(ctx, "the two have met", func() bool {
		st := sb.line(ctx).State
		return st == control.StateHalted || level1(sa.line(ctx), sb.line(ctx))
	}); err != nil {
		return 0, err
	}
	if _, err := sb.Decide(ctx, control.DecisionRequest{Verb: control.VerbReprotect, Group: "web"}, quiet); err != nil {
		return 0, err
	}
	if err := level(second, first); err != nil {
		return 0, err
	}
	return count.Load() - passed, nil
}

// level1 tells that to follows from and has all of it.
func level1(to, from control.Group) bool {
	return to.Role == "replica" && to.Durable == from.Seq && to.EpochID == from.EpochID
}

// reprotectSites are two sites that reach each other through their doors alone.
func reprotectSites(dir string, diskBytes int64, doorA, doorB *counter) (a, b *config.Config, err error) {
	parse := func(name, rest string) (*config.Config, error) {
		return config.Parse(filepath.Join(dir, name+".yml"), fmt.Appendf(nil, "site: %s\ndata: %s\n%s", name, filepath.Join(dir, name), rest))
	}
	pins := map[string]string{}
	for _, name := range []string{"a", "b"} {
		c, err := parse(name, "")
		if err == nil {
			pins[name], err = product.Pin(c)
		}
		if err != nil {
			return nil, nil, err
		}
	}
	head := func(own, other *counter, name string) string {
		return fmt.Sprintf("listen: %s\npeers: [{name: %s, pin: %q, address: %q, transport: tls}]\ngroups:\n", own.to, name, pins[name], other.l.Addr())
	}
	if a, err = parse("a", head(doorA, doorB, "b")+fmt.Sprintf("- {name: web, role: primary, peers: [b], volumes: [{name: root, size: %d, embedded: {image: root.img}}]}\n", diskBytes)); err != nil {
		return nil, nil, err
	}
	b, err = parse("b", head(doorB, doorA, "a")+"- {name: web, peers: [a]}\n")
	return a, b, err
}
