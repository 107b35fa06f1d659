package nbd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/cbt/nbd/nbdtest"
)

// pack writes values big-endian, strings as their bytes.
func pack(vs ...any) []byte {
	var b bytes.Buffer
	for _, v := range vs {
		if s, ok := v.(string); ok {
			v = []byte(s)
		}
		if err := binary.Write(&b, binary.BigEndian, v); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

func packOption(code uint32, vs ...any) []byte {
	data := pack(vs...)
	return pack("IHAVEOPT", code, uint32(len(data)), data)
}

const fuzzSize = 1 << 20

// runScript serves in to its end and returns what the server said.
func runScript(t *testing.T, m nbd.Device, in []byte) []byte {
	conn := script(in)
	l := hand1(conn)
	var opened, released atomic.Int32
	gone := make(chan struct{}, 1)
	s := nbd.NewServer(nbd.ServerOptions{
		Lookup: func(_ context.Context, name string) (*nbd.Export, error) {
			if name != "d" {
				return nil, nbd.ErrUnknownExport
			}
			opened.Add(1)
			return &nbd.Export{Name: "d", Size: fuzzSize, Device: m, Release: func() { released.Add(1) }}, nil
		},
		List: func() []string { return []string{"d"} },
		Events: nbd.Events{
			Refused: func(string, error) { gone <- struct{}{} },
			Closed:  func(string, string, error) { gone <- struct{}{} },
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	<-gone
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("serve: %v", err)
	}
	if opened.Load() != released.Load() {
		t.Errorf("%d exports opened, %d released", opened.Load(), released.Load())
	}
	return conn.out.Bytes()
}

func FuzzServerHandshake(f *testing.F) {
	s := &seeds{f: f}
	flags := pack(uint32(3))
	meta := packOption(10, uint32(1), "d", uint32(1), uint32(15), "base:allocation")
	for _, in := range [][]byte{
		slices.Concat(flags, packOption(7, uint32(1), "d", uint16(1), uint16(3))),
		slices.Concat(flags, packOption(8), meta, packOption(7, uint32(1), "d", uint16(0))),
		slices.Concat(flags, packOption(3), packOption(6, uint32(1), "d", uint16(2), uint16(1), uint16(2)), packOption(2)),
		slices.Concat(pack(uint32(1)), packOption(1, "d")),
		slices.Concat(flags, packOption(5), packOption(11), packOption(9, uint32(1), "d", uint32(0))),
		slices.Concat(flags, bytes.Repeat(packOption(99), 40)),
		slices.Concat(flags, pack("IHAVEOPT", uint32(7), uint32(1<<32-1))),
	} {
		s.mangle(in, 8)
	}
	s.enough()
	f.Fuzz(func(t *testing.T, in []byte) {
		m := nbdtest.NewMemory(fuzzSize)
		// What follows a handshake may be requests of up to 64 MiB in flight.
		limit := uint64(2<<20 + 40*len(in))
		if bytes.Contains(in, []byte{0x25, 0x60, 0x95, 0x13}) {
			limit += 100 << 20
		}
		bounded(t, limit, func() { runScript(t, m, in) })
	})
}

// FuzzServerRequests decodes its input to requests (or sends it raw) and checks
// that each gets one well-formed reply with its cookie, and that the disk ends
// as a model that does the good ones in order.
func FuzzServerRequests(f *testing.F) {
	s := &seeds{f: f}
	r := rand.New(rand.NewPCG(1, 2))
	for mode := range 4 {
		for n := range 20 {
			in := []byte{byte(mode)}
			for range n * 10 {
				in = append(in, byte(r.Uint32()))
			}
			if mode >= 2 {
				in = []byte{byte(mode)}
				for i := range n {
					in = append(in, pack(uint32(0x25609513), uint16(i%4), uint16(i%9), uint64(i), uint64(i*1000), uint32(i*64))...)
					if i%9 == 1 {
						in = append(in, make([]byte, i*64)...)
					}
				}
			}
			s.add(in)
		}
	}
	s.enough()
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) == 0 || len(in) > 4096 {
			return
		}
		structured, raw := in[0]&1 != 0, in[0]&2 != 0
		requests := in[1:]
		if !raw {
			requests = requestsFrom(requests)
		}
		hello := pack(uint32(3))
		if structured {
			hello = append(hello, packOption(8)...)
			hello = append(hello, packOption(10, uint32(1), "d", uint32(1), uint32(15), "base:allocation")...)
		}
		hello = append(hello, packOption(7, uint32(1), "d", uint16(0))...)
		m, model := nbdtest.NewMemory(fuzzSize), make([]byte, fuzzSize)
		silent := len(runScript(t, m, hello))
		var out []byte
		bounded(t, 256<<20, func() { out = runScript(t, m, append(hello, requests...)) })
		want := play(requests, model)
		got := cookies(t, out[silent:], want)
		var wanted []uint64
		for c, q := range want {
			for range q.count {
				wanted = append(wanted, c)
			}
		}
		slices.Sort(got)
		slices.Sort(wanted)
		if !slices.Equal(got, wanted) {
			t.Errorf("replies to %v, want %v", got, wanted)
		}
		if !bytes.Equal(m.Bytes(), model) {
			t.Error("disk and model differ")
		}
	})
}

// requestsFrom makes a request of every eight bytes: mostly good ones.
func requestsFrom(b []byte) []byte {
	var out []byte
	for i := uint64(1); len(b) >= 8; i, b = i+1, b[8:] {
		cmd, flags := uint16(b[0]%9), uint16(0)
		if b[1]%4 == 0 {
			flags = uint16(b[1] >> 2)
		}
		offset, length := uint64(binary.BigEndian.Uint32(b[1:])%(fuzzSize+5000)), uint32(binary.BigEndian.Uint16(b[5:]))
		if cmd == 2 && b[7] < 250 {
			cmd = 1
		}
		if cmd == 3 && b[7] < 200 {
			offset, length = 0, 0
		}
		if b[7] == 255 {
			offset, length = offset<<44, length<<16
		}
		out = append(out, pack(uint32(0x25609513), flags, cmd, i, offset, length)...)
		if cmd == 1 {
			if length > 1<<20 {
				return out
			}
			out = append(out, bytes.Repeat([]byte{b[7] | 1}, int(length))...)
		}
	}
	return out
}

type expected struct {
	count int
	reads []uint32 // lengths of good reads, when replies are simple
}

// play is the oracle: which cookies are answered, and what the disk becomes.
func play(in, model []byte) map[uint64]*expected {
	want := make(map[uint64]*expected)
	for len(in) >= 28 && binary.BigEndian.Uint32(in) == 0x25609513 {
		flags, cmd := binary.BigEndian.Uint16(in[4:]), binary.BigEndian.Uint16(in[6:])
		cookie, offset, length := binary.BigEndian.Uint64(in[8:]), binary.BigEndian.Uint64(in[16:]), binary.BigEndian.Uint32(in[24:])
		in = in[28:]
		if cmd == 2 {
			break
		}
		fits := offset <= fuzzSize && uint64(length) <= fuzzSize-offset
		var payload []byte
		if cmd == 1 {
			if uint64(len(in)) < uint64(length) {
				break
			}
			payload, in = in[:length], in[length:]
		}
		if want[cookie] == nil {
			want[cookie] = &expected{}
		}
		want[cookie].count++
		switch {
		case cmd == 0 && fits && flags&^5 == 0:
			want[cookie].reads = append(want[cookie].reads, length)
		case cmd == 1 && fits && flags&^1 == 0:
			copy(model[offset:], payload)
		case cmd == 6 && fits && flags&^3 == 0, cmd == 4 && fits && flags&^1 == 0:
			clear(model[offset:][:length])
		}
	}
	return want
}

// cookies takes replies apart.
func cookies(t *testing.T, out []byte, want map[uint64]*expected) []uint64 {
	var got []uint64
	for len(out) > 0 {
		switch magic := binary.BigEndian.Uint32(pad(out)); magic {
		case 0x67446698:
			if len(out) < 16 {
				t.Fatal("a simple reply is cut short")
			}
			errno, cookie := binary.BigEndian.Uint32(out[4:]), binary.BigEndian.Uint64(out[8:])
			out = out[16:]
			if q := want[cookie]; errno == 0 && q != nil && len(q.reads) > 0 {
				if q.count > 1 {
					t.Skip("one cookie for several requests: the length of a simple reply is ambiguous")
				}
				out = out[min(len(out), int(q.reads[0])):]
			}
			got = append(got, cookie)
		case 0x668e33ef:
			if len(out) < 20 || len(out)-20 < int(binary.BigEndian.Uint32(out[16:])) {
				t.Fatal("a chunk is cut short")
			}
			if out[5]&1 != 0 {
				got = append(got, binary.BigEndian.Uint64(out[8:]))
			}
			out = out[20+binary.BigEndian.Uint32(out[16:]):]
		default:
			t.Fatalf("reply magic %#x", magic)
		}
	}
	return got
}

func pad(b []byte) []byte { return append(slices.Clone(b[:min(len(b), 4)]), 0, 0, 0, 0) }

// welcome is a server's part of a good handshake for a client that asks for
// structured replies, one meta context, and GO.
func welcome() []byte {
	reply := func(opt, kind uint32, vs ...any) []byte {
		data := pack(vs...)
		return pack(uint64(0x3e889045565a9), opt, kind, uint32(len(data)), data)
	}
	return slices.Concat(pack("NBDMAGICIHAVEOPT", uint16(3)),
		reply(8, 1), reply(10, 4, uint32(5), "base:allocation"), reply(10, 1),
		reply(7, 3, uint16(0), uint64(fuzzSize), uint16(0x1ed)), reply(7, 1))
}

var fuzzDial = nbd.DialOptions{Export: "d", MetaContexts: []string{nbd.ContextAllocation}}

func FuzzClientHandshake(f *testing.F) {
	s := &seeds{f: f}
	s.mangle(welcome(), 30)
	s.enough()
	f.Fuzz(func(t *testing.T, in []byte) {
		bounded(t, uint64(4<<20+40*len(in)), func() {
			c, err := nbd.NewClient(context.Background(), script(in), nbd.DialOptions{
				Export: "d", MetaContexts: []string{nbd.ContextAllocation}, MaxInFlight: 4,
			})
			if err == nil {
				c.Close()
			}
		})
	})
}

// FuzzClientReplies answers a read, a status and a write with arbitrary bytes.
func FuzzClientReplies(f *testing.F) {
	s := &seeds{f: f}
	chunk := func(flags, kind uint16, cookie uint64, vs ...any) []byte {
		data := pack(vs...)
		return pack(uint32(0x668e33ef), flags, kind, cookie, uint32(len(data)), data)
	}
	simple := func(errno uint32, cookie uint64) []byte { return pack(uint32(0x67446698), errno, cookie) }
	data := make([]byte, 4096)
	for cookie := range uint64(3) {
		read, status, write := cookie%3+1, (cookie+1)%3+1, (cookie+2)%3+1
		s.mangle(slices.Concat(
			chunk(0, 1, read, uint64(0), data[:1000]), chunk(0, 2, read, uint64(1000), uint32(96)), chunk(1, 1, read, uint64(1096), data[:3000]),
			chunk(0, 5, status, uint32(5), uint32(1000), uint32(3), uint32(50), uint32(0)), chunk(1, 0, status),
			simple(28, write)), 12)
		s.mangle(slices.Concat(chunk(1, 1<<15|2, read, uint32(5), uint16(2), "no", uint64(9)), chunk(1, 1<<15|1, status, uint32(22), uint16(0))), 6)
	}
	s.enough()
	f.Fuzz(func(t *testing.T, in []byte) {
		hello := welcome()
		conn := script(append(hello, in...))
		conn.gate, conn.heads = len(hello), 3
		bounded(t, uint64(8<<20+60*len(in)), func() {
			c, err := nbd.NewClient(context.Background(), conn, withFour(fuzzDial))
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			wg.Go(func() { c.ReadAt(context.Background(), make([]byte, 4096), 0) })
			wg.Go(func() {
				es, err := c.BlockStatus(context.Background(), nbd.ContextAllocation, cbt.Extent{Length: 4096})
				covered := int64(0)
				for _, x := range es {
					if x.Extent.Offset != covered || x.Extent.Length <= 0 {
						t.Errorf("status %v has holes or overlaps", es)
					}
					covered += x.Extent.Length
				}
				if err == nil && covered != 4096 {
					t.Errorf("status covers %d bytes", covered)
				}
			})
			wg.Go(func() { c.WriteAt(context.Background(), make([]byte, 512), 0, false) })
			<-c.Done()
			wg.Wait()
			c.Close()
		})
	})
}

func withFour(o nbd.DialOptions) nbd.DialOptions {
	o.MaxInFlight = 4
	return o
}
