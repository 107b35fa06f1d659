package nbd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/cbt/nbd/nbdtest"
)

// The tests named Row show the rows of the failure catalogue for NBD.

// TestRow27 holds a write in the device: replies overtake each other, but
// overlapping changes reach the device and are answered in order of arrival.
func TestRow27(t *testing.T) {
	m, release, held := nbdtest.NewMemory(1<<20), make(chan struct{}), make(chan nbdtest.Op, 8)
	hang := nbdtest.HangUntil("write", release, false, held)
	f := &nbdtest.Fault{Device: m, Before: func(ctx context.Context, op nbdtest.Op) error {
		if op.Extent.Offset == 0 {
			return hang(ctx, op)
		}
		return nil
	}}
	x := m.Export("disk")
	x.Device = f
	h := shake(t, serve(t, "unix", nbd.ServerOptions{}, x))
	h.open("disk")
	h.request(0, 1, 1, 0, 1024, bytes.Repeat([]byte{1}, 1024))   // held
	h.request(0, 1, 2, 512, 1024, bytes.Repeat([]byte{2}, 1024)) // overlaps 1
	h.request(0, 6, 3, 1024, 512)                                // overlaps 2
	h.request(1, 1, 4, 4096, 512, bytes.Repeat([]byte{4}, 512))  // FUA
	h.request(0, 0, 5, 4096, 1)                                  // reads beside them
	<-held
	seen := map[uint64]bool{}
	for range 2 {
		cookie, errno := h.simple()
		if errno != 0 {
			t.Errorf("request %d: error %d", cookie, errno)
		}
		if cookie == 5 {
			h.read(1)
		}
		seen[cookie] = true
	}
	if !seen[4] || !seen[5] {
		t.Errorf("answered while the first write is held: %v, want 4 and 5", seen)
	}
	if m.Flushes() != 1 {
		t.Errorf("FUA arrived %d times", m.Flushes())
	}
	if n := f.Count("write"); n != 2 {
		t.Errorf("%d writes in the device, want the held one and the FUA one", n)
	}
	close(release)
	for want := uint64(1); want <= 3; want++ {
		if cookie, _ := h.simple(); cookie != want {
			t.Errorf("reply to %d, want %d", cookie, want)
		}
	}
	want := append(bytes.Repeat([]byte{1}, 512), bytes.Repeat([]byte{2}, 512)...)
	want = append(want, make([]byte, 512)...)
	if !bytes.Equal(m.Bytes()[:1536], want) {
		t.Error("overlapping changes were applied in another order")
	}
	h.request(0, 3, 9, 0, 0)
	if cookie, errno := h.simple(); cookie != 9 || errno != 0 || m.Flushes() != 2 {
		t.Errorf("flush: cookie %d, error %d, %d flushes", cookie, errno, m.Flushes())
	}
}

// TestRow28: MULTI_CONN is said only of exports that promise it.
func TestRow28(t *testing.T) {
	m := nbdtest.NewMemory(1 << 20)
	plain, multi := m.Export("plain"), m.Export("multi")
	multi.MultiConn = true
	s := serve(t, "unix", nbd.ServerOptions{}, plain, multi)
	for name, want := range map[string]bool{"plain": false, "multi": true} {
		if got := s.dial(t, nbd.DialOptions{Export: name}).Info().CanMultiConn; got != want {
			t.Errorf("export %s: multi-conn %v", name, got)
		}
	}
}

// TestRow29: WRITE_ZEROES and TRIM reach the device as what they are, in
// constant memory whatever their length; both read back as zeros.
func TestRow29(t *testing.T) {
	m := nbdtest.NewMemory(8 << 30)
	var last atomic.Pointer[nbdtest.Op]
	f := &nbdtest.Fault{Device: m, Before: func(_ context.Context, op nbdtest.Op) error {
		last.Store(&op)
		return nil
	}}
	x := m.Export("disk")
	x.Device = f
	s := serve(t, "unix", nbd.ServerOptions{}, x)
	h, ctx := shake(t, s), testContext(t)
	h.open("disk")
	for _, cmd := range []uint16{6, 4} {
		must(t, m.WriteAt(ctx, bytes.Repeat([]byte{9}, 4096), 1<<30, false))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		h.request(1, cmd, 1, 512, math.MaxUint32)
		if _, errno := h.simple(); errno != 0 {
			t.Fatalf("command %d: error %d", cmd, errno)
		}
		runtime.ReadMemStats(&after)
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 1<<20 {
			t.Errorf("command %d of 4 GiB took %d bytes of memory", cmd, grown)
		}
		op := last.Load()
		if kind := map[uint16]string{6: "zero", 4: "trim"}[cmd]; op.Kind != kind || op.Extent != (cbt.Extent{Offset: 512, Length: math.MaxUint32}) || !op.FUA {
			t.Errorf("command %d arrived as %+v", cmd, op)
		}
		p := make([]byte, 4096)
		must(t, m.ReadAt(ctx, p, 1<<30))
		if !bytes.Equal(p, make([]byte, 4096)) {
			t.Errorf("command %d does not read back as zeros", cmd)
		}
	}
}

// TestRow30 sends what must be refused, and that the connection goes on.
func TestRow30(t *testing.T) {
	const size = 64 << 20
	m := nbdtest.NewMemory(size)
	f := &nbdtest.Fault{Device: m}
	x, ro, tap := m.Export("disk"), m.Export("ro"), m.Export("tap")
	x.Device, ro.Device, tap.Device = f, f, f
	ro.ReadOnly, tap.NoFlush = true, true
	s := serve(t, "tcp", nbd.ServerOptions{}, x, ro, tap)
	const eperm, einval, enospc = 1, 22, 28
	for _, c := range []struct {
		name       string
		export     string
		flags, cmd uint16
		offset     uint64
		length     uint32
		want       uint32
	}{
		{"read above 32 MiB", "disk", 0, 0, 0, 32<<20 + 1, einval},
		{"read of 4 GiB", "disk", 0, 0, 0, math.MaxUint32, einval},
		{"read beyond the end", "disk", 0, 0, size - 1, 2, einval},
		{"read with overflow", "disk", 0, 0, math.MaxUint64 - 1, 4, einval},
		{"read at a negative offset", "disk", 0, 0, 1 << 63, 1, einval},
		{"read with NO_HOLE", "disk", 2, 0, 0, 1, einval},
		{"read with DF, not structured", "disk", 4, 0, 0, 1, einval},
		{"read with an unknown flag", "disk", 1 << 15, 0, 0, 1, einval},
		{"write above 32 MiB", "disk", 0, 1, 0, 32<<20 + 1, einval},
		{"write beyond the end", "disk", 0, 1, size - 1, 2, enospc},
		{"write with overflow", "disk", 0, 1, math.MaxUint64 - 1, 4, enospc},
		{"write with REQ_ONE", "disk", 8, 1, 0, 4, einval},
		{"write with PAYLOAD_LEN", "disk", 32, 1, 0, 4, einval},
		{"zero beyond the end", "disk", 0, 6, size, 1, enospc},
		{"zero with FAST_ZERO", "disk", 16, 6, 0, 1, einval},
		{"trim beyond the end", "disk", 0, 4, size, 1, einval},
		{"trim with NO_HOLE", "disk", 2, 4, 0, 1, einval},
		{"flush with a length", "disk", 0, 3, 0, 1, einval},
		{"flush with an offset", "disk", 0, 3, 1, 0, einval},
		{"cache", "disk", 0, 5, 0, 1, einval},
		{"status without context", "disk", 0, 7, 0, 1, einval},
		{"resize", "disk", 0, 8, 0, 1, einval},
		{"unknown command", "disk", 0, 999, 0, 1, einval},
		{"write, read-only", "ro", 0, 1, 0, 4, eperm},
		{"zero, read-only", "ro", 0, 6, 0, 4, eperm},
		{"trim, read-only", "ro", 0, 4, 0, 4, eperm},
		{"flush, not offered", "tap", 0, 3, 0, 0, einval},
		{"FUA, not offered", "tap", 1, 1, 0, 4, einval},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := shake(t, s)
			h.open(c.export)
			h.request(c.flags, c.cmd, 7, c.offset, c.length)
			if c.cmd == 1 {
				h.write(make([]byte, c.length))
			}
			if cookie, errno := h.simple(); cookie != 7 || errno != c.want {
				t.Errorf("cookie %d, error %d, want %d", cookie, errno, c.want)
			}
			h.request(0, 0, 8, size-1, 1)
			if cookie, errno := h.simple(); cookie != 8 || errno != 0 {
				t.Errorf("next request: cookie %d, error %d", cookie, errno)
			}
			h.read(1)
		})
	}
	for _, kind := range []string{"write", "zero", "trim", "flush"} {
		if n := f.Count(kind); n != 0 {
			t.Errorf("%d bad requests of kind %s reached the device", n, kind)
		}
	}
	t.Run("32 MiB at an odd offset is fine", func(t *testing.T) {
		c := s.dial(t, nbd.DialOptions{Export: "disk"})
		p := bytes.Repeat([]byte{3}, 32<<20)
		must(t, c.WriteAt(testContext(t), p, 1001, false))
		if n := f.Count("write"); n != 1 || !bytes.Equal(m.Bytes()[1001:][:len(p)], p) {
			t.Errorf("arrived as %d writes, or not as sent", n)
		}
	})
	t.Run("a bad magic ends the connection", func(t *testing.T) {
		h := shake(t, s)
		h.open("disk")
		h.write(make([]byte, 28))
		h.hungUp()
	})
}

// TestRow31 exceeds every bound of the haggling; no export is opened meanwhile.
func TestRow31(t *testing.T) {
	var opened, released atomic.Int32
	m := nbdtest.NewMemory(1 << 20)
	o := nbd.ServerOptions{
		HandshakeTimeout: 300 * time.Millisecond, MaxConnections: 3,
		Lookup: func(_ context.Context, name string) (*nbd.Export, error) {
			if name != "disk" {
				return nil, fmt.Errorf("%w: %q", nbd.ErrUnknownExport, name)
			}
			opened.Add(1)
			x := m.Export(name)
			x.Release = func() { released.Add(1) }
			return x, nil
		},
	}
	s := serve(t, "unix", o)
	cases := map[string]func(h *hand){
		"too many options": func(h *hand) {
			for range 32 {
				h.expect(-1, 999)
			}
			h.hungUp()
		},
		"option of 4 GiB": func(h *hand) {
			h.write("IHAVEOPT", uint32(7), uint32(math.MaxUint32))
			h.hungUp()
		},
		"option too long": func(h *hand) {
			h.expect(-9, 7, make([]byte, 70<<10))
			h.expect(-6, 6, uint32(1), "x", uint16(0))
		},
		"name too long":             func(h *hand) { h.expect(-3, 7, uint32(4097), make([]byte, 4097), uint16(0)) },
		"name longer than data":     func(h *hand) { h.expect(-3, 7, uint32(math.MaxUint32), "disk", uint16(0)) },
		"data behind the end":       func(h *hand) { h.expect(-3, 7, uint32(4), "disk", uint16(0), "x") },
		"more requests than data":   func(h *hand) { h.expect(-3, 7, uint32(4), "disk", uint16(9), uint16(0)) },
		"too many queries":          func(h *hand) { h.expect(1, 8); h.expect(-9, 10, uint32(0), uint32(math.MaxUint32)) },
		"list with data":            func(h *hand) { h.expect(-3, 3, "x") },
		"structured with data":      func(h *hand) { h.expect(-3, 8, "x") },
		"name with NUL":             func(h *hand) { h.expect(-6, 7, uint32(2), "d\x00", uint16(0)) },
		"bad magic":                 func(h *hand) { h.write("IHAVEOPX", uint32(3), uint32(0)); h.hungUp() },
		"EXPORT_NAME, unknown":      func(h *hand) { h.option(1, "none"); h.hungUp() },
		"EXPORT_NAME, too long":     func(h *hand) { h.option(1, make([]byte, 5000)); h.hungUp() },
		"slow haggling":             func(h *hand) { h.hungUp() },
		"abort":                     func(h *hand) { h.expect(1, 2); h.hungUp() },
		"unknown export":            func(h *hand) { h.expect(-6, 7, uint32(4), "none", uint16(0)) },
		"list":                      func(h *hand) { h.expect(1, 3) },
		"meta before structured":    func(h *hand) { h.expect(-3, 10, uint32(4), "disk", uint32(0)) },
		"meta contexts of any name": func(h *hand) { h.expect(1, 8); h.expect(1, 10, uint32(4), "none", uint32(0)) },
	}
	for name, f := range cases {
		t.Run(name, func(t *testing.T) {
			h := shake(t, s)
			f(h)
			h.conn.Close()
		})
	}
	if n := opened.Load(); n != 0 {
		t.Errorf("%d exports were opened", n)
	}
	t.Run("INFO releases what it opened", func(t *testing.T) {
		h := shake(t, s)
		h.expect(1, 6, uint32(4), "disk", uint16(0))
		waitFor(t, "release", func() bool { return opened.Load() == 1 && released.Load() == 1 })
	})
	t.Run("too many connections", func(t *testing.T) {
		var cs []*nbd.Client
		waitFor(t, "room for three", func() bool {
			c, err := nbd.Dial(testContext(t), "unix", s.address, nbd.DialOptions{Export: "disk"})
			if err == nil {
				cs = append(cs, c)
			}
			return len(cs) == 3
		})
		if _, err := nbd.Dial(testContext(t), "unix", s.address, nbd.DialOptions{Export: "disk"}); err == nil {
			t.Error("a fourth connection was let in")
		}
		for _, c := range cs {
			must(t, c.Close())
		}
		waitFor(t, "every export to be released", func() bool { return opened.Load() == released.Load() })
	})
}

// TestRow32 and row 33: STARTTLS is refused, so that no state crosses into an
// encrypted phase; what was sent behind it is read as plain options, and
// contexts negotiated for one export do not count for another.
func TestRow32(t *testing.T) {
	m := nbdtest.NewMemory(1 << 20)
	s := serve(t, "unix", nbd.ServerOptions{}, m.Export("one"), m.Export("two"))
	h := shake(t, s)
	h.option(5)
	h.option(8) // pipelined
	for _, want := range []uint32{5, 8} {
		b := h.read(20)
		if code := binary.BigEndian.Uint32(b[8:]); code != want {
			t.Fatalf("reply to option %d, want %d", code, want)
		}
		kind := binary.BigEndian.Uint32(b[12:])
		if want == 5 && kind != 1<<31|1 || want == 8 && kind != 1 {
			t.Errorf("option %d: reply %#x", want, kind)
		}
		h.read(int(binary.BigEndian.Uint32(b[16:])))
	}
	as := h.expect(1, 10, uint32(3), "one", uint32(1), uint32(15), "base:allocation")
	if len(as) != 2 || as[0].kind != 4 {
		t.Fatalf("meta context was not granted: %v", as)
	}
	h.open("two")
	h.request(0, 7, 1, 0, 4096)
	if _, kind, _, payload := h.chunk(); kind != 1<<15|1 || binary.BigEndian.Uint32(payload) != 22 {
		t.Errorf("status with another export's context: chunk %d, %q", kind, payload)
	}
	h = shake(t, s)
	h.expect(1, 8)
	h.expect(1, 10, uint32(3), "one", uint32(1), uint32(15), "base:allocation")
	h.expect(-3, 10, uint32(3), "one", uint32(1), uint32(99), "short")
	h.open("one")
	h.request(0, 7, 1, 0, 4096)
	if _, kind, _, _ := h.chunk(); kind != 1<<15|1 {
		t.Errorf("status after a failed SET_META_CONTEXT: chunk %d", kind)
	}
}

// TestRow33: a unix socket is closed to others by mode and by user.
func TestRow33(t *testing.T) {
	m := nbdtest.NewMemory(1 << 20)
	s := serve(t, "unix", nbd.ServerOptions{PeerUIDs: []uint32{4_000_000_000}}, m.Export("disk"))
	if _, err := nbd.Dial(testContext(t), "unix", s.address, nbd.DialOptions{Export: "disk"}); err == nil {
		t.Error("a user who is not allowed was let in")
	}
	if got := modeOf(t, s.address); got != 0o600 {
		t.Errorf("socket mode %o", got)
	}
}

// TestRow34 ends a server with requests in flight: those that finish within the
// grace are answered, those that obey the context and those that do not get
// ESHUTDOWN, all within a bound.
func TestRow34(t *testing.T) {
	for _, c := range []struct {
		name     string
		obedient bool
		finish   bool
		want     uint32
		stuck    bool
	}{
		{"ends within the grace", false, true, 0, false},
		{"obeys the context", true, false, 108, false},
		{"never returns", false, false, 108, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, hold, held, released := nbdtest.NewMemory(1<<20), make(chan struct{}), make(chan nbdtest.Op, 1), make(chan struct{})
			x := m.Export("disk")
			x.Device = &nbdtest.Fault{Device: m, Before: nbdtest.HangUntil("write", hold, c.obedient, held)}
			x.Release = func() { close(released) }
			o := nbd.ServerOptions{Grace: 100 * time.Millisecond, Drain: 100 * time.Millisecond}
			if c.finish {
				o.Grace = testPatience
			}
			s := serve(t, "unix", o, x)
			h := shake(t, s)
			h.open("disk")
			h.request(0, 1, 1, 0, 4, "held")
			<-held
			s.cancel()
			if c.finish {
				// A request that comes while we drain is refused.
				waitFor(t, "refusal of new requests", func() bool {
					h.request(0, 3, 2, 0, 0)
					_, errno := h.simple()
					return errno == 108
				})
				close(hold)
			}
			if cookie, errno := h.simple(); cookie != 1 || errno != c.want {
				t.Errorf("cookie %d, error %d, want %d", cookie, errno, c.want)
			}
			h.hungUp()
			if err := s.wait(); errors.Is(err, nbd.ErrStuck) != c.stuck {
				t.Errorf("serve: %v", err)
			}
			if c.stuck {
				select {
				case <-released:
					t.Error("export was released under a running request")
				default:
				}
				close(hold)
			}
			select {
			case <-released:
			case <-time.After(testPatience):
				t.Error("export was not released")
			}
		})
	}
}

// TestDeviceErrors: the errno on the wire is the device's choice, and the text
// travels with structured replies.
func TestDeviceErrors(t *testing.T) {
	m := nbdtest.NewMemory(1 << 20)
	var fault atomic.Pointer[error]
	x := m.Export("disk")
	x.Device = &nbdtest.Fault{Device: m, Before: func(context.Context, nbdtest.Op) error { return *fault.Load() }}
	s := serve(t, "unix", nbd.ServerOptions{}, x)
	c := s.dial(t, nbd.DialOptions{Export: "disk", MetaContexts: []string{nbd.ContextAllocation}})
	ctx := testContext(t)
	for _, errno := range []nbd.Errno{nbd.EIO, nbd.EPERM, nbd.ENOSPC, nbd.EINVAL, nbd.ESHUTDOWN} {
		err := fmt.Errorf("journal says no: %w", errno)
		fault.Store(&err)
		if err := c.WriteAt(ctx, make([]byte, 8), 0, false); !errors.Is(err, errno) || !strings.Contains(err.Error(), "journal says no") {
			t.Errorf("write: %v, want %v", err, errno)
		}
	}
	other := errors.New("something else")
	fault.Store(&other)
	for what, err := range map[string]error{
		"read": c.ReadAt(ctx, make([]byte, 8), 0), "zero": c.Zero(ctx, cbt.Extent{Length: 8}, false, false),
		"trim": c.Trim(ctx, cbt.Extent{Length: 8}, false), "flush": c.Flush(ctx),
	} {
		if !errors.Is(err, nbd.EIO) {
			t.Errorf("%s: %v, want EIO", what, err)
		}
	}
	if _, err := c.BlockStatus(ctx, nbd.ContextAllocation, cbt.Extent{Length: 8}); !errors.Is(err, nbd.EIO) {
		t.Errorf("status: %v, want EIO", err)
	}
}

// TestStructured looks at the chunks: DF, REQ_ONE, reads of nothing.
func TestStructured(t *testing.T) {
	m := nbdtest.NewMemory(1 << 20)
	must(t, m.WriteAt(testContext(t), []byte("data"), 0, false))
	h := shake(t, serve(t, "unix", nbd.ServerOptions{}, m.Export("disk")))
	h.expect(1, 8)
	h.expect(1, 10, uint32(4), "disk", uint32(1), uint32(15), "base:allocation")
	h.open("disk")
	h.request(4, 0, 1, 0, 4)
	if flags, kind, cookie, p := h.chunk(); flags != 1 || kind != 1 || cookie != 1 || string(p) != "\x00\x00\x00\x00\x00\x00\x00\x00data" {
		t.Errorf("read: flags %d, kind %d, cookie %d, %q", flags, kind, cookie, p)
	}
	h.request(0, 0, 2, 0, 0)
	if flags, kind, _, p := h.chunk(); flags != 1 || kind != 0 || len(p) != 0 {
		t.Errorf("read of nothing: flags %d, kind %d, %q", flags, kind, p)
	}
	for _, c := range []struct{ flags, descriptors uint16 }{{0, 2}, {8, 1}} {
		h.request(c.flags, 7, 3, 0, 1<<20)
		flags, kind, _, p := h.chunk()
		if flags != 1 || kind != 5 || len(p) != 4+8*int(c.descriptors) || binary.BigEndian.Uint32(p[4:]) != 64<<10 {
			t.Errorf("status with flags %d: chunk flags %d, kind %d, %x", c.flags, flags, kind, p)
		}
	}
	h.request(0, 1, 4, 0, 4, "DATA")
	if cookie, errno := h.simple(); cookie != 4 || errno != 0 {
		t.Errorf("write: cookie %d, error %d", cookie, errno)
	}
	h.request(0, 2, 0, 0, 0)
	h.hungUp()
}
