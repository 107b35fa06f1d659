package replicator

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

var update = flag.Bool("update", false, "rewrite golden files")

func someCursor(n byte) journal.Cursor {
	c := journal.Cursor{Position: journal.Position{Seq: journal.Seq(n) << 8}}
	for i := range c.Epoch {
		c.Epoch[i] = n
	}
	for i := range c.Chain {
		c.Chain[i] = n + 1
	}
	return c
}

func someGroup() journal.Identity {
	var id journal.Identity
	copy(id.Tenant[:], "tenant----------")
	copy(id.Group[:], "group-----------")
	copy(id.Stream[:], "stream----------")
	return id
}

func someBranches() []journal.Branch {
	at := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	return []journal.Branch{
		{Epoch: journal.Epoch{Number: 1, ID: someCursor(1).Epoch, Site: "a", Begun: at}, Last: someCursor(1)},
		{Epoch: journal.Epoch{Number: 2, ID: someCursor(2).Epoch, Parent: someCursor(1), Site: "böse", Begun: at}, Last: someCursor(2)},
	}
}

// everyMessage is one of each kind, with every field set.
func everyMessage() []message {
	about := envelope{open: 7, group: someGroup()}
	at := time.Date(2026, 11, 22, 10, 0, 0, 1, time.UTC)
	return []message{
		{envelope{}, &hello{1, 3, 0x10, 0x20, cbt.ID{9}, "site a"}},
		{about, &openGroup{"default", "web", someCursor(2).Epoch, someBranches(), true}},
		{about, &accept{someCursor(2).Epoch, someCursor(2), someBranches(), 1 << 20}},
		{about, &refuse{CodeConflict, "split brain", someCursor(2).Epoch, someBranches()}},
		{about, &heartbeat{5, someCursor(3).Position, at, 4096, someCursor(2), 4, origin{cbt.ID{8}, someCursor(3).Position, at, 3, 2, 512}}},
		{about, &ack{someCursor(2), 5, 6}},
		{envelope{}, &ping{1}},
		{envelope{}, &pong{1, 2, 3}},
		{envelope{flags: flagMust}, &bye{CodeShutdown, "ends"}},
		{about, &offer{someCursor(2).Position, someCursor(3), at}},
		{about, &landingPlace{7, 2}},
		{about, &landedDelta{someCursor(3)}},
		{envelope{}, &join{Secret{1, 2}, "b", "192.0.2.2:7700"}},
		{envelope{}, &joined{"a"}},
		{about, &taken{1 << 33, 1 << 34, 1 << 35, []stretch{{1 << 33, 1<<33 + 7}}}},
		{about, &takes{takesLZ4 | takesHeld, 9}},
		{envelope{}, &rotate{Pin{1, 2}}},
		{envelope{}, &rotated{Pin{1, 2}, CodeUnpinned, "of another peer"}},
	}
}

func somePiece() []byte {
	b := make([]byte, pieceHeaderBytes)
	pieceHeader{open: 7, group: someGroup(), position: 1 << 33, bytes: 4096}.put(b)
	return b
}

// The bytes on the wire are those of the version; a change of them is a new one.
func TestWireGolden(t *testing.T) {
	var text strings.Builder
	put := func(name string, b []byte) { fmt.Fprintf(&text, "%s\n%s\n", name, hex.Dump(b)) }
	for _, m := range everyMessage() {
		b, err := encodeMessage(m)
		if err != nil {
			t.Fatal(err)
		}
		put(fmt.Sprintf("%T", m.body)[len("*replicator."):], b)
	}
	put("piece header", somePiece())
	put("packed frame header", frameHeader{4096, 10, 12, someCursor(1).Epoch, someCursor(1).Chain, true}.encode())
	put("frame header", frameHeader{4096, 10, 12, someCursor(1).Epoch, someCursor(1).Chain, false}.encode())
	const path = "testdata/wire.golden"
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text.String() != string(want) {
		t.Errorf("wire bytes differ from %s:\n%s", path, text.String())
	}
}

func TestEveryMessageSurvivesTheWire(t *testing.T) {
	var stream bytes.Buffer
	for _, m := range everyMessage() {
		b, err := encodeMessage(m)
		if err != nil {
			t.Fatal(err)
		}
		stream.Write(b)
	}
	for _, want := range everyMessage() {
		got, err := readMessage(&stream)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%T: %+v, %v, want %+v", want.body, got, err, want)
		}
	}
	if _, err := readMessage(&stream); err != io.EOF {
		t.Errorf("end of stream: %v, want io.EOF", err)
	}
}

func drawCursor(t *rapid.T) journal.Cursor {
	var c journal.Cursor
	copy(c.Epoch[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "epoch"))
	c.Seq = journal.Seq(rapid.Uint64().Draw(t, "seq"))
	copy(c.Chain[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "chain"))
	return c
}

func TestMessagesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringN(0, 40, maxNameBytes)
		var bs []journal.Branch
		for range rapid.IntRange(0, 5).Draw(t, "branches") {
			bs = append(bs, journal.Branch{Epoch: journal.Epoch{Number: rapid.Uint64().Draw(t, "number"), ID: drawCursor(t).Epoch,
				Parent: drawCursor(t), Site: text.Draw(t, "site"), Begun: time.Unix(0, rapid.Int64Range(1, 1<<62).Draw(t, "begun")).UTC()}, Last: drawCursor(t)})
		}
		i64 := rapid.Int64()
		bodies := []body{
			&openGroup{text.Draw(t, "tenant"), text.Draw(t, "group"), drawCursor(t).Epoch, bs, rapid.Bool().Draw(t, "relayed")},
			&accept{drawCursor(t).Epoch, drawCursor(t), bs, i64.Draw(t, "window")},
			&refuse{Code(rapid.Uint16().Draw(t, "code")), text.Draw(t, "text"), drawCursor(t).Epoch, bs},
			&ack{drawCursor(t), i64.Draw(t, "heard"), i64.Draw(t, "at")},
			&pong{i64.Draw(t, "1"), i64.Draw(t, "2"), i64.Draw(t, "3")},
			&taken{i64.Draw(t, "position"), i64.Draw(t, "come"), i64.Draw(t, "known"), nil},
		}
		want := message{envelope{open: rapid.Uint64().Draw(t, "open"), group: someGroup()}, rapid.SampledFrom(bodies).Draw(t, "body")}
		b, err := encodeMessage(want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := readMessage(bytes.NewReader(b))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v, %v, want %+v", got, err, want)
		}
	})
}

// Every single flipped bit of a message and of the headers is found.
func TestFlippedBitsAreFound(t *testing.T) {
	n := 0
	flip := func(b []byte, read func(io.Reader) error) {
		for bit := range 8 * len(b) {
			c := bytes.Clone(b)
			c[bit/8] ^= 1 << (bit % 8)
			if err := read(bytes.NewReader(c)); err == nil {
				t.Fatalf("bit %d of %d bytes flipped, and read", bit, len(b))
			}
			n++
		}
	}
	for _, m := range everyMessage() {
		b, err := encodeMessage(m)
		if err != nil {
			t.Fatal(err)
		}
		flip(b, func(r io.Reader) error { _, err := readMessage(r); return err })
	}
	flip(somePiece(), func(r io.Reader) error { _, err := readPieceHeader(r, make([]byte, pieceHeaderBytes)); return err })
	flip(frameHeader{4096, 10, 12, someCursor(1).Epoch, someCursor(1).Chain, false}.encode(), func(r io.Reader) error {
		_, err := readFrameHeader(r, 1<<30)
		return err
	})
	t.Logf("%d flipped bits found", n)
}

type later struct{ n byte }

func (l *later) kind() messageType { return messageType(l.n) }
func (l *later) pack(p *packer)    { p.raw(make([]byte, 1000)) }
func (l *later) unpack(*parser)    {}

func TestLaterVersionsAreSkippedOrRefused(t *testing.T) {
	b, err := encodeMessage(message{body: &later{200}})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := readMessage(bytes.NewReader(b)); err != nil || m.body != nil {
		t.Errorf("unknown message: %+v, %v, want it skipped", m, err)
	}
	if b, err = encodeMessage(message{envelope{flags: flagMust}, &later{200}}); err != nil {
		t.Fatal(err)
	}
	if _, err := readMessage(bytes.NewReader(b)); !errors.Is(err, ErrProtocol) {
		t.Errorf("unknown message that must be understood: %v", err)
	}
	for _, c := range []struct {
		hello hello
		want  Code
	}{
		{hello{minVersion: 1, maxVersion: 1, incompatible: featurePieces}, CodeNone},
		{hello{minVersion: 1, maxVersion: 9, incompatible: featurePieces, compatible: 1 << 40}, CodeNone},
		{hello{minVersion: 1, maxVersion: 1}, CodeFeatures},
		{hello{minVersion: 2, maxVersion: 9}, CodeVersion},
		{hello{minVersion: 0, maxVersion: 0}, CodeVersion},
		{hello{minVersion: 1, maxVersion: 1, incompatible: 1 << 63}, CodeFeatures},
		{hello{minVersion: 1, maxVersion: 1, incompatible: featurePieces | 2}, CodeFeatures},
	} {
		if got, _ := judgeHello(&c.hello); got != c.want {
			t.Errorf("hello %+v: %v, want %v", c.hello, got, c.want)
		}
	}
}

// A length that promises much costs nothing until the bytes come.
func TestLengthsAreCheckedBeforeAllocation(t *testing.T) {
	b, err := encodeMessage(message{body: &bye{}})
	if err != nil {
		t.Fatal(err)
	}
	copy(b[4:], []byte{0xff, 0xff, 0xff, 0xff})
	if _, err := readMessage(bytes.NewReader(b)); !errors.Is(err, ErrProtocol) {
		t.Errorf("4 GiB body: %v, want it refused", err)
	}
	p := &parser{b: []byte{0xff, 0x0f, 0, 0}}
	if p.branches(); p.err == nil {
		t.Error("4095 branches in no bytes were read")
	}
	long := frameHeader{1 << 40, 1, 1, journal.EpochID{}, journal.Chain{}, false}.encode()
	if _, err := readFrameHeader(bytes.NewReader(long), 1<<30); !errors.Is(err, ErrProtocol) {
		t.Errorf("1 TiB frame: %v, want it refused", err)
	}
	if _, err := encodeMessage(message{body: &bye{text: strings.Repeat("x", maxTextBytes+1)}}); err == nil {
		t.Error("a text beyond its limit was sent")
	}
}

// seeds are encoded messages with random damage, at least 50 of them.
func seeds(add func([]byte)) int {
	const seed = 20261122
	rnd, n := rand.New(rand.NewPCG(seed, seed)), 0
	for _, m := range everyMessage() {
		b, err := encodeMessage(m)
		if err != nil {
			panic(err)
		}
		add(b)
		n++
		for range 6 {
			c := bytes.Clone(b)
			c[rnd.IntN(len(c))] = byte(rnd.Uint32())
			add(c[:rnd.IntN(len(c)+1)])
			n++
		}
	}
	return n
}

func FuzzReadMessage(f *testing.F) {
	n := seeds(func(b []byte) { f.Add(b) })
	f.Logf("%d seeds", n)
	if n < 50 {
		f.Fatalf("%d seeds, want 50", n)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := readMessage(bytes.NewReader(b))
		if err != nil || m.body == nil {
			return
		}
		again, err := encodeMessage(m)
		if err != nil {
			t.Fatalf("encode what was read: %v", err)
		}
		back, err := readMessage(bytes.NewReader(again))
		if err != nil || !reflect.DeepEqual(m, back) {
			t.Fatalf("read %+v, then %+v, %v", m, back, err)
		}
	})
}

// FuzzBody goes past the checksum, straight to the fields of each kind.
func FuzzBody(f *testing.F) {
	n := seeds(func(b []byte) {
		if len(b) > messageHeaderBytes {
			f.Add(b[0], b[messageHeaderBytes:])
		} else {
			f.Add(byte(len(b)), b)
		}
	})
	f.Logf("%d seeds", n)
	if n < 50 {
		f.Fatalf("%d seeds, want 50", n)
	}
	f.Fuzz(func(t *testing.T, kind byte, b []byte) {
		m := newBody(messageType(kind))
		if m == nil {
			return
		}
		p := &parser{b: b}
		m.unpack(p)
		if p.err != nil {
			return
		}
		w := &packer{}
		m.pack(w)
		if w.err != nil {
			t.Fatalf("pack what was unpacked: %v", w.err)
		}
		if !bytes.Equal(w.b, b[:len(b)-len(p.b)]) {
			t.Fatalf("unpacked %x, packed %x", b[:len(b)-len(p.b)], w.b)
		}
	})
}
