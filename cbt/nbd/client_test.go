package nbd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
)

// asked is a request as a server by hand sees it.
type asked struct {
	cmd            uint16
	cookie, offset uint64
	length         uint32
}

// byHand serves one client: a good handshake, then answer for every request
// until it returns false. Payloads of writes are read over.
func byHand(t *testing.T, answer func(conn net.Conn, q asked) bool) *nbd.Client {
	t.Helper()
	return byHandFlags(t, 0x1ed, answer)
}

// byHandFlags is byHand with the transmission flags given.
func byHandFlags(t *testing.T, flags uint16, answer func(conn net.Conn, q asked) bool) *nbd.Client {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(socketDir(t), "h"))
	must(t, err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		hello := welcome()
		// The export of welcome has 1 MiB; these tests want 8 GiB.
		i := bytes.Index(hello, pack(uint64(fuzzSize)))
		copy(hello[i:], pack(uint64(8<<30), flags))
		conn.Write(hello)
		// Client flags and three options, whose lengths follow from their data.
		if _, err := io.CopyN(io.Discard, conn, 4); err != nil {
			return
		}
		for range 3 {
			var head [16]byte
			if _, err := io.ReadFull(conn, head[:]); err != nil {
				return
			}
			io.CopyN(io.Discard, conn, int64(binary.BigEndian.Uint32(head[12:])))
		}
		for {
			var b [28]byte
			if _, err := io.ReadFull(conn, b[:]); err != nil {
				return
			}
			q := asked{binary.BigEndian.Uint16(b[6:]), binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:]), binary.BigEndian.Uint32(b[24:])}
			if q.cmd == 1 {
				io.CopyN(io.Discard, conn, int64(q.length))
			}
			if q.cmd == 2 || !answer(conn, q) {
				return
			}
		}
	}()
	c := dial(t, "unix", l.Addr().String(), fuzzDial)
	t.Cleanup(func() {
		l.Close()
		c.Close()
		<-ended
	})
	return c
}

func chunkBytes(flags, kind uint16, cookie uint64, vs ...any) []byte {
	data := pack(vs...)
	return pack(uint32(0x668e33ef), flags, kind, cookie, uint32(len(data)), data)
}

// TestRow35 is short answers to BLOCK_STATUS, which are asked on, and those
// that break the protocol, which end the connection.
func TestRow35(t *testing.T) {
	t.Run("short answers", func(t *testing.T) {
		var got []asked
		c := byHand(t, func(conn net.Conn, q asked) bool {
			got = append(got, q)
			first := min(q.length, 300<<20)
			conn.Write(chunkBytes(1, 5, q.cookie, uint32(5), first, uint32(len(got)%2)))
			return true
		})
		es, err := c.BlockStatus(testContext(t), nbd.ContextAllocation, cbt.Extent{Offset: 512, Length: 5 << 30})
		must(t, err)
		at := int64(512)
		for _, x := range es {
			if x.Extent.Offset != at || x.Extent.Length <= 0 {
				t.Fatalf("piece %v does not follow on %d", x, at)
			}
			at = x.Extent.End()
		}
		if at != 5<<30+512 || len(got) != 18 || len(es) != 18 {
			t.Errorf("covered up to %d with %d questions in %d pieces", at, len(got), len(es))
		}
		for _, q := range got {
			if q.length > 1<<30 {
				t.Errorf("asked for %d bytes at once", q.length)
			}
		}
	})
	t.Run("last piece reaches beyond", func(t *testing.T) {
		c := byHand(t, func(conn net.Conn, q asked) bool {
			conn.Write(chunkBytes(1, 5, q.cookie, uint32(5), uint32(512), uint32(0), uint32(1<<30), uint32(3)))
			return true
		})
		es, err := c.BlockStatus(testContext(t), nbd.ContextAllocation, cbt.Extent{Length: 4096})
		must(t, err)
		want := []nbd.StatusFlags{{Extent: cbt.Extent{Length: 512}}, {Extent: cbt.Extent{Offset: 512, Length: 3584}, Flags: 3}}
		if d := cmp.Diff(want, es); d != "" {
			t.Errorf("-want +got:\n%s", d)
		}
	})
	for name, reply := range map[string]func(cookie uint64) []byte{
		"zero length": func(k uint64) []byte { return chunkBytes(1, 5, k, uint32(5), uint32(0), uint32(0)) },
		"piece after the end": func(k uint64) []byte {
			return chunkBytes(1, 5, k, uint32(5), uint32(4096), uint32(0), uint32(512), uint32(1))
		},
		"no descriptor":        func(k uint64) []byte { return chunkBytes(1, 5, k, uint32(5)) },
		"half a descriptor":    func(k uint64) []byte { return chunkBytes(1, 5, k, uint32(5), uint32(4096)) },
		"another context only": func(k uint64) []byte { return chunkBytes(1, 5, k, uint32(6), uint32(4096), uint32(0)) },
		"nothing":              func(k uint64) []byte { return chunkBytes(1, 0, k) },
		"too long a chunk":     func(k uint64) []byte { return pack(uint32(0x668e33ef), uint16(1), uint16(5), k, uint32(1<<31+4)) },
		"twice the same context": func(k uint64) []byte {
			c := chunkBytes(0, 5, k, uint32(5), uint32(512), uint32(0))
			return slices.Concat(c, c)
		},
		"a simple reply": func(k uint64) []byte { return pack(uint32(0x67446698), uint32(0), k) },
		"unknown cookie": func(k uint64) []byte { return chunkBytes(1, 5, k+1, uint32(5), uint32(4096), uint32(0)) },
	} {
		t.Run(name, func(t *testing.T) {
			c := byHand(t, func(conn net.Conn, q asked) bool {
				conn.Write(reply(q.cookie))
				return true
			})
			es, err := c.BlockStatus(testContext(t), nbd.ContextAllocation, cbt.Extent{Length: 4096})
			if !errors.Is(err, nbd.ErrProtocol) || es != nil {
				t.Errorf("got %v, %v", es, err)
			}
			<-c.Done()
		})
	}
}

// TestReadChunks are structured reads in pieces: any order is fine, a piece
// twice, missing or outside is not.
func TestReadChunks(t *testing.T) {
	data := func(k, off uint64, s string) []byte { return chunkBytes(0, 1, k, off, s) }
	done := func(k uint64) []byte { return chunkBytes(1, 0, k) }
	for name, c := range map[string]struct {
		reply func(k uint64) []byte
		want  string
	}{
		"backwards with a hole": {func(k uint64) []byte {
			return slices.Concat(data(k, 106, "cd"), chunkBytes(0, 2, k, uint64(102), uint32(4)), data(k, 100, "ab"), done(k))
		}, "ab\x00\x00\x00\x00cd"},
		"missing piece": {func(k uint64) []byte { return slices.Concat(data(k, 100, "abcdefg"), done(k)) }, ""},
		"piece twice":   {func(k uint64) []byte { return slices.Concat(data(k, 100, "abcd"), data(k, 103, "x")) }, ""},
		"before":        {func(k uint64) []byte { return data(k, 99, "abcd") }, ""},
		"behind":        {func(k uint64) []byte { return data(k, 106, "abc") }, ""},
		"huge offset":   {func(k uint64) []byte { return data(k, 1<<64-4, "abcdefgh") }, ""},
		"huge hole":     {func(k uint64) []byte { return chunkBytes(1, 2, k, uint64(100), uint32(1<<32-1)) }, ""},
		"empty piece":   {func(k uint64) []byte { return data(k, 100, "") }, ""},
		"unknown chunk": {func(k uint64) []byte { return chunkBytes(1, 77, k) }, ""},
		"long error":    {func(k uint64) []byte { return chunkBytes(1, 1<<15|1, k, uint32(5), uint16(9), "short") }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			cl := byHand(t, func(conn net.Conn, q asked) bool {
				conn.Write(c.reply(q.cookie))
				return true
			})
			p := make([]byte, 8)
			err := cl.ReadAt(testContext(t), p, 100)
			if c.want == "" && !errors.Is(err, nbd.ErrProtocol) {
				t.Errorf("got %q, %v", p, err)
			}
			if c.want != "" && (err != nil || string(p) != c.want) {
				t.Errorf("got %q, %v, want %q", p, err, c.want)
			}
		})
	}
}

// TestCancelledRead: after a cancelled call returned, its buffer stays as it is
// even when the reply comes late, and the connection goes on.
func TestCancelledRead(t *testing.T) {
	first, late := make(chan struct{}), make(chan struct{})
	c := byHand(t, func(conn net.Conn, q asked) bool {
		if q.offset == 0 {
			close(first)
			<-late
		}
		conn.Write(chunkBytes(1, 1, q.cookie, q.offset, bytes.Repeat([]byte{'x'}, int(q.length))))
		return true
	})
	ctx, cancel := context.WithCancel(context.Background())
	p, ended := make([]byte, 512), make(chan error, 1)
	go func() { ended <- c.ReadAt(ctx, p, 0) }()
	<-first
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled read: %v", err)
	}
	close(late)
	q := make([]byte, 512)
	must(t, c.ReadAt(testContext(t), q, 512))
	if !bytes.Equal(p, make([]byte, 512)) || q[0] != 'x' {
		t.Error("the late reply went to the wrong place")
	}
}

// TestStalledReceipt: a payload that stops half way must not hold a cancelled
// call for ever.
func TestStalledReceipt(t *testing.T) {
	half, never := make(chan struct{}), make(chan struct{})
	c := byHand(t, func(conn net.Conn, q asked) bool {
		conn.Write(pack(uint32(0x668e33ef), uint16(1), uint16(1), q.cookie, 8+q.length, q.offset, "half"))
		close(half)
		<-never
		return false
	})
	t.Cleanup(func() { close(never) })
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.ReadAt(ctx, make([]byte, 512), 0) }()
	<-half
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("stalled read: %v", err)
		}
	case <-time.After(testPatience):
		t.Fatal("a stalled read does not end")
	}
}

// TestStalledSend: a server that takes no bytes must not hold a write for ever.
func TestStalledSend(t *testing.T) {
	stalled, begun, never := make(chan struct{}), make(chan struct{}), make(chan struct{})
	c := byHand(t, func(conn net.Conn, _ asked) bool {
		close(stalled)
		_, _ = conn.Read(make([]byte, 1)) // of the next request
		close(begun)
		<-never
		return false
	})
	t.Cleanup(func() { close(never) })
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go c.Flush(ctx)
	<-stalled
	ctx, cancel = context.WithCancel(context.Background())
	go func() { <-begun; cancel() }()
	if err := c.WriteAt(ctx, make([]byte, 16<<20), 0, false); !errors.Is(err, context.Canceled) {
		t.Errorf("write to a server that does not listen: %v", err)
	}
	select {
	case <-c.Done(): // half a request was sent; nothing sensible can follow it
	case <-time.After(testPatience):
		t.Error("the connection goes on after half a request")
	}
}

// TestWithoutFUA: where the server has no FUA, a flush follows the change; where
// it cannot zero, zeros are written.
func TestWithoutFUA(t *testing.T) {
	var cmds []uint16
	c := byHandFlags(t, 1|4, func(conn net.Conn, q asked) bool {
		cmds = append(cmds, q.cmd) // ordered by the calls, which do not overlap
		conn.Write(pack(uint32(0x67446698), uint32(0), q.cookie))
		return true
	})
	ctx := testContext(t)
	must(t, c.WriteAt(ctx, make([]byte, 512), 0, true))
	must(t, c.WriteAt(ctx, make([]byte, 512), 0, false))
	must(t, c.Zero(ctx, cbt.Extent{Length: 3 << 20}, true, false))
	if err := c.Trim(ctx, cbt.Extent{Length: 512}, true); !errors.Is(err, nbd.ErrUnsupported) {
		t.Errorf("trim: %v", err)
	}
	if want := []uint16{1, 3, 1, 1, 1, 1, 3}; !slices.Equal(cmds, want) {
		t.Errorf("commands %v, want %v", cmds, want)
	}
}
