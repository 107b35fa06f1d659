package nbd_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// hand speaks the protocol byte by byte, from constants of its own: what the
// client of the package would never send has to be refused all the same.
type hand struct {
	t    testing.TB
	conn net.Conn
}

type answer struct {
	kind uint32
	data []byte
}

func shake(t testing.TB, s *served) *hand {
	t.Helper()
	conn, err := net.Dial(s.network, s.address)
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	must(t, conn.SetDeadline(time.Now().Add(testPatience)))
	h := &hand{t, conn}
	if g := h.read(18); string(g[:16]) != "NBDMAGICIHAVEOPT" || g[17] != 3 {
		t.Fatalf("greeting %q", g)
	}
	h.write(uint32(3))
	return h
}

func (h *hand) write(vs ...any) {
	h.t.Helper()
	var b bytes.Buffer
	for _, v := range vs {
		if s, ok := v.(string); ok {
			v = []byte(s)
		}
		must(h.t, binary.Write(&b, binary.BigEndian, v))
	}
	_, err := h.conn.Write(b.Bytes())
	must(h.t, err)
}

func (h *hand) read(n int) []byte {
	h.t.Helper()
	p := make([]byte, n)
	if _, err := io.ReadFull(h.conn, p); err != nil {
		h.t.Fatalf("read %d bytes: %v", n, err)
	}
	return p
}

// hungUp fails unless the server ends the connection and says nothing more.
func (h *hand) hungUp() {
	h.t.Helper()
	if n, err := io.Copy(io.Discard, h.conn); n > 0 || errors.Is(err, net.ErrClosed) {
		h.t.Errorf("server says %d more bytes: %v", n, err)
	} else if e := net.Error(nil); errors.As(err, &e) && e.Timeout() {
		h.t.Error("server does not hang up")
	}
}

func (h *hand) option(code uint32, data ...any) {
	h.t.Helper()
	var b bytes.Buffer
	for _, v := range data {
		if s, ok := v.(string); ok {
			v = []byte(s)
		}
		must(h.t, binary.Write(&b, binary.BigEndian, v))
	}
	h.write("IHAVEOPT", code, uint32(b.Len()), b.Bytes())
}

// ask sends an option and collects the replies up to the last.
func (h *hand) ask(code uint32, data ...any) []answer {
	h.t.Helper()
	h.option(code, data...)
	var as []answer
	for {
		head := h.read(20)
		if binary.BigEndian.Uint64(head) != 0x3e889045565a9 || binary.BigEndian.Uint32(head[8:]) != code {
			h.t.Fatalf("option reply %x", head)
		}
		kind := binary.BigEndian.Uint32(head[12:])
		as = append(as, answer{kind, h.read(int(binary.BigEndian.Uint32(head[16:])))})
		if kind == 1 || kind>>31 == 1 {
			return as
		}
	}
}

// verdict is the kind of the last reply; errors are -1, -2, … as numbered there.
func verdict(as []answer) int {
	k := as[len(as)-1].kind
	if k>>31 == 1 {
		return -int(k &^ (1 << 31))
	}
	return int(k)
}

func (h *hand) expect(want int, code uint32, data ...any) []answer {
	h.t.Helper()
	as := h.ask(code, data...)
	if v := verdict(as); v != want {
		h.t.Errorf("option %d: verdict %d (%q), want %d", code, v, as[len(as)-1].data, want)
	}
	return as
}

// open goes to the transmission phase.
func (h *hand) open(export string) {
	h.t.Helper()
	h.expect(1, 7, uint32(len(export)), export, uint16(0))
}

func (h *hand) request(flags, cmd uint16, cookie, offset uint64, length uint32, payload ...any) {
	h.t.Helper()
	h.write(append([]any{uint32(0x25609513), flags, cmd, cookie, offset, length}, payload...)...)
}

// simple reads a simple reply: the cookie and the error.
func (h *hand) simple() (uint64, uint32) {
	h.t.Helper()
	b := h.read(16)
	if binary.BigEndian.Uint32(b) != 0x67446698 {
		h.t.Fatalf("no simple reply: %x", b)
	}
	return binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint32(b[4:])
}

// chunk reads a chunk of a structured reply.
func (h *hand) chunk() (flags, kind uint16, cookie uint64, payload []byte) {
	h.t.Helper()
	b := h.read(20)
	if binary.BigEndian.Uint32(b) != 0x668e33ef {
		h.t.Fatalf("no structured reply: %x", b)
	}
	return binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:]), binary.BigEndian.Uint64(b[8:]),
		h.read(int(binary.BigEndian.Uint32(b[16:])))
}
