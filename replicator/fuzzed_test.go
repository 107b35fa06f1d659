package replicator

import (
	"bytes"
	"encoding/binary"
	"errors"
	"go/ast"
	syntax "go/parser"
	"go/token"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/novacron/afterimage/journal"
)

// Every message that a site reads is fuzzed: each kind that newBody knows is among the
// seeds of FuzzReadMessage and FuzzBody, and what lies beside messages on the wire has a
// target of its own. A kind that is added without one fails here.
func TestEveryMessageIsFuzzed(t *testing.T) {
	seeded := map[messageType]bool{}
	seeds(func(b []byte) {
		if m, err := readMessage(bytes.NewReader(b)); err == nil && m.body != nil {
			seeded[m.body.kind()] = true
		}
	})
	n := 0
	for k := range 256 {
		if newBody(messageType(k)) == nil {
			continue
		}
		if n++; !seeded[messageType(k)] {
			t.Errorf("message %d (%T) is among no seeds", k, newBody(messageType(k)))
		}
	}
	t.Logf("%d kinds of messages", n)

	// Whatever else reads off the wire, and its target; empty: it is part of another.
	targets := map[string]string{
		"readMessage": "FuzzReadMessage", "readPieceHeader": "FuzzPieceHeader", "readFrameHeader": "FuzzFrameHeader", "readPartHead": "FuzzUnpack",
		"readQuestion": "FuzzQuestion", "readPart": "FuzzQuestion", "readAnswer": "FuzzAnswer", "readConsultation": "FuzzConsultation", "readBounded": "",
	}
	tests := map[string]bool{}
	for _, f := range functions(t, true) {
		tests[f.Name.Name] = true
	}
	for _, name := range []string{"FuzzBody", "FuzzDelta", "FuzzParseInvite"} {
		if !tests[name] {
			t.Errorf("there is no %s", name)
		}
	}
	readers := 0
	for _, f := range functions(t, false) {
		if !readsWire(f) {
			continue
		}
		readers++
		if target, known := targets[f.Name.Name]; !known || target != "" && !tests[target] {
			t.Errorf("%s reads off the wire, and nobody fuzzes it", f.Name.Name)
		}
	}
	if readers < 5 {
		t.Errorf("%d functions read off the wire: they are called otherwise now", readers)
	}
}

// readsWire reports that f reads something of the wire: it is called so, and reads.
func readsWire(f *ast.FuncDecl) bool {
	if f.Recv != nil || !strings.HasPrefix(f.Name.Name, "read") || len(f.Type.Params.List) == 0 {
		return false
	}
	x, ok := f.Type.Params.List[0].Type.(*ast.SelectorExpr)
	return ok && x.Sel.Name == "Reader"
}

// functions are those of the package.
func functions(t *testing.T, tests bool) (out []*ast.FuncDecl) {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") != tests {
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := syntax.ParseFile(token.NewFileSet(), name, text, syntax.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok {
				out = append(out, fn)
			}
		}
	}
	return out
}

// A length that lies, in whatever it stands, costs no more than what came: it is refused,
// or what is to come is waited for, before memory is taken for it.
func TestLiesCostNoMemory(t *testing.T) {
	lying := func(b []byte, at int, length uint32) []byte {
		b = bytes.Clone(b)
		binary.LittleEndian.PutUint32(b[at:], length)
		return b
	}
	hi, err := encodeMessage(message{body: &bye{}})
	if err != nil {
		t.Fatal(err)
	}
	count := make([]byte, 4)
	binary.LittleEndian.PutUint32(count, maxBranches)
	for _, c := range []struct {
		name string
		read func() error
	}{
		{"message of 4 GiB", func() error { _, err := readMessage(bytes.NewReader(lying(hi, 4, 1<<32-1))); return err }},
		{"message of the most there is", func() error { _, err := readMessage(bytes.NewReader(lying(hi, 4, maxBodyBytes))); return err }},
		{"history of the most epochs", func() error { p := &parser{b: count}; p.branches(); return p.err }},
		{"frame of 1 TiB", func() error {
			_, err := readFrameHeader(bytes.NewReader(frameHeader{1 << 40, 1, 1, journal.EpochID{}, journal.Chain{}, false}.encode()), 1<<30)
			return err
		}},
		{"frame with another checksum", func() error {
			b := frameHeader{4096, 1, 1, journal.EpochID{}, journal.Chain{}, false}.encode()
			b[40]++
			_, err := readFrameHeader(bytes.NewReader(b), 1<<30)
			return err
		}},
		{"piece of 4 GiB", func() error {
			b := make([]byte, pieceHeaderBytes)
			pieceHeader{open: 7, group: someGroup(), position: 1 << 33, bytes: 1<<32 - 1}.put(b)
			_, err := readPieceHeader(bytes.NewReader(b), make([]byte, pieceHeaderBytes))
			return err
		}},
		{"block of a delta of 4 GiB", func() error {
			d := &deltaReader{r: bytes.NewReader(append([]byte{255, 255, 255, 255}, make([]byte, 64)...)), moved: func(int) {}, over: func() {}}
			_, err := d.Read(make([]byte, 16))
			return err
		}},
	} {
		var before, after runtime.MemStats
		const times = 20
		runtime.ReadMemStats(&before)
		for range times {
			if err := c.read(); err == nil {
				t.Errorf("%s was read", c.name)
			}
		}
		runtime.ReadMemStats(&after)
		got := (after.TotalAlloc - before.TotalAlloc) / times
		t.Logf("%s: %d bytes of memory", c.name, got)
		if got > 192<<10 {
			t.Errorf("%s took %d bytes of memory before it was refused", c.name, got)
		}
	}
}

// Whatever a peer says that it holds, it goes on from a record of what it is sent, or not
// at all.
func TestForgedCursorsMoveNothing(t *testing.T) {
	one, head := journal.EpochID{1}, journal.EpochID{2}
	o := &opening{epoch: head, lineage: journal.Lineage{{Epoch: one, Number: 1, First: 1, Last: 5}, {Epoch: head, Number: 2, First: 6, Last: 9}}}
	for _, c := range []struct {
		says journal.Position
		ok   bool
	}{
		{journal.Position{}, true}, {pos(1, 1), true}, {pos(1, 5), true}, {pos(2, 6), true}, {pos(2, 9), true},
		{pos(1, 6), false},  // of the epoch that was left, beyond the fork
		{pos(2, 3), false},  // before its epoch began
		{pos(9, 4), false},  // of an epoch that there is not
		{pos(9, 99), false}, // likewise, and ahead
	} {
		got, err := o.bound(journal.Cursor{Position: c.says, Chain: journal.Chain{7}})
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrProtocol) {
			t.Errorf("a replica that holds %v: goes on from %v, %v", c.says, got.Position, err)
		}
	}
	if c, err := o.bound(journal.Cursor{Position: journal.Position{Epoch: journal.EpochID{9}}}); err != nil || c != (journal.Cursor{}) {
		t.Errorf("one that holds nothing goes on from %v, %v", c, err)
	}
	s := &sender{link: &link{}}
	o.flowing, o.sent = true, 9
	for _, p := range []journal.Position{pos(2, 10), pos(9, 4), pos(1, 6), pos(2, 3)} {
		if err := s.acked(o, &ack{durable: journal.Cursor{Position: p}}); !errors.Is(err, ErrProtocol) {
			t.Errorf("an acknowledgement of %v: %v", p, err)
		}
	}
}

func FuzzConsultation(f *testing.F) {
	n := 0
	for topic := range 8 {
		for text := range 8 {
			b := (&consultation{strings.Repeat("t", 1+topic*9), bytes.Repeat([]byte{7}, text*text*text)}).encode()
			f.Add(b)
			f.Add(b[:len(b)-text])
			n += 2
		}
	}
	if n < 50 {
		f.Fatalf("%d seeds, want 50", n)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := readConsultation(bytes.NewReader(b))
		if err != nil {
			return
		}
		if again := c.encode(); !bytes.Equal(again, b[:len(again)]) {
			t.Fatalf("read %x, wrote %x", b, again)
		}
	})
}
