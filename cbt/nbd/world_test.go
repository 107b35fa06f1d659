package nbd_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt/nbd"
)

const testPatience = time.Minute

// served is a running server of some exports.
type served struct {
	network, address string
	cancel           context.CancelFunc
	ended            chan error
}

// serve runs a server until the test ends, on a unix socket or on loopback.
func serve(t testing.TB, network string, o nbd.ServerOptions, exports ...*nbd.Export) *served {
	t.Helper()
	if o.Lookup == nil {
		o.Lookup = func(_ context.Context, name string) (*nbd.Export, error) {
			for _, x := range exports {
				if x.Name == name {
					return x, nil
				}
			}
			return nil, nbd.ErrUnknownExport
		}
	}
	if o.List == nil {
		o.List = func() []string {
			var names []string
			for _, x := range exports {
				names = append(names, x.Name)
			}
			return names
		}
	}
	var l net.Listener
	var err error
	if network == "unix" {
		l, err = nbd.ListenUnix(filepath.Join(socketDir(t), "s"), 0)
	} else {
		l, err = net.Listen("tcp", "127.0.0.1:0")
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &served{network: network, address: l.Addr().String(), cancel: cancel, ended: make(chan error, 1)}
	go func() { s.ended <- nbd.NewServer(o).Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := s.wait(); err != nil && !errors.Is(err, nbd.ErrStuck) {
			t.Errorf("serve: %v", err)
		}
	})
	return s
}

// wait is Serve's result; it may be called again.
func (s *served) wait() error {
	select {
	case err := <-s.ended:
		s.ended <- err
		return err
	case <-time.After(testPatience):
		return errors.New("server does not end")
	}
}

// uri is how libnbd and QEMU name an export.
func (s *served) uri(export string) string {
	if s.network == "unix" {
		return "nbd+unix:///" + export + "?socket=" + s.address
	}
	return "nbd://" + s.address + "/" + export
}

func (s *served) dial(t testing.TB, o nbd.DialOptions) *nbd.Client {
	t.Helper()
	return dial(t, s.network, s.address, o)
}

func dial(t testing.TB, network, address string, o nbd.DialOptions) *nbd.Client {
	t.Helper()
	c, err := nbd.Dial(testContext(t), network, address, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testPatience)
	t.Cleanup(cancel)
	return ctx
}

// socketDir has a path short enough for a unix socket.
func socketDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ai")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// waitFor polls until cond holds.
func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick, late := time.NewTicker(5*time.Millisecond), time.After(testPatience)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: did not happen in %v", what, testPatience)
		}
	}
}

func modeOf(t testing.TB, path string) os.FileMode {
	t.Helper()
	fi, err := os.Stat(path)
	must(t, err)
	return fi.Mode().Perm()
}
