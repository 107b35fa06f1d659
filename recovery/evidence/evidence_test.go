package evidence

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

type key struct{ ed25519.PrivateKey }

func (k key) Public() ed25519.PublicKey  { return k.PrivateKey.Public().(ed25519.PublicKey) }
func (k key) Sign(message []byte) []byte { return ed25519.Sign(k.PrivateKey, message) }

func newKey(n byte) key {
	return key{ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))}
}

func open(t *testing.T, dir string, k key) *Ledger {
	t.Helper()
	l, err := Open(dir, "site"+string('a'+rune(k.Seed()[0])), k)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func report(n int) []byte { return fmt.Appendf(nil, `{"title":"drill %d"}`, n) }

func name(n int) string { return fmt.Sprintf("web-drill-%d", n) }

func add(t *testing.T, l *Ledger, n int) {
	t.Helper()
	if _, err := l.Append(Entry{Kind: Drill, Group: "default/web", Name: name(n), Report: HashOf(report(n)), RTOSeconds: float64(n)}, noon); err != nil {
		t.Fatal(err)
	}
}

// anchored has b vouch for l's head.
func anchored(t *testing.T, l, b *Ledger) {
	t.Helper()
	h, err := l.Head(noon)
	if err != nil {
		t.Fatal(err)
	}
	a, err := b.Vouch(h, noon)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Keep(a); err != nil {
		t.Fatal(err)
	}
}

func bundle(t *testing.T, l *Ledger, n int) []byte {
	t.Helper()
	b, err := l.Bundle(name(n), report(n))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestEvidenceThatIsNoneIsRefusedByName(t *testing.T) {
	dir := t.TempDir()
	a, b := newKey(1), newKey(2)
	l, peer := open(t, dir, a), open(t, t.TempDir(), b)
	for n := range 3 {
		add(t, l, n)
	}
	if _, err := Verify(bundle(t, l, 1)); !errors.Is(err, ErrUnanchored) {
		t.Errorf("without its anchor: %v", err)
	}
	anchored(t, l, peer)
	add(t, l, 3)
	good := bundle(t, l, 1)
	v, err := Verify(good, a.Public())
	if err != nil || v.Entry.RTOSeconds != 1 || v.Entries != 4 || !bytes.Equal(v.By, b.Public()) {
		t.Fatalf("verify: %+v, %v", v, err)
	}
	if _, err := Verify(bundle(t, l, 3)); !errors.Is(err, ErrUnanchored) {
		t.Errorf("a report behind the anchor: %v", err)
	}
	if _, err := Verify(good, b.Public()); !errors.Is(err, ErrStranger) {
		t.Errorf("another key asked for: %v", err)
	}
	if _, err := l.Bundle(name(1), report(2)); !errors.Is(err, ErrTampered) {
		t.Errorf("a bundle of another report: %v", err)
	}
	for what, c := range map[string]struct {
		change func(*Bundle)
		want   error
	}{
		"another report":   {func(x *Bundle) { x.Report = report(7) }, ErrTampered},
		"another name":     {func(x *Bundle) { x.Name = name(2) }, ErrTampered},
		"an unknown name":  {func(x *Bundle) { x.Name = "x" }, ErrNoReport},
		"a shorter ledger": {func(x *Bundle) { x.Ledger = x.Ledger[:2] }, ErrShortened},
		"one taken out":    {func(x *Bundle) { x.Ledger = append(x.Ledger[:1:1], x.Ledger[2:]...) }, ErrLedger},
		"no anchor":        {func(x *Bundle) { x.Anchor = nil }, ErrUnanchored},
		"an entry changed": {func(x *Bundle) {
			x.Ledger[1].Body = bytes.Replace(x.Ledger[1].Body, []byte(`"rto_seconds":1`), []byte(`"rto_seconds":0`), 1)
		}, ErrSignature},
		"signed by another": {func(x *Bundle) { x.Ledger[1] = sign(b, entryWord, x.Ledger[1].Body) }, ErrLedger},
		"its own anchor":    {func(x *Bundle) { s := sign(a, anchorWord, x.Anchor.Body); x.Anchor = &s }, ErrUnanchored},
		"an anchor changed": {func(x *Bundle) { x.Anchor.Body = bytes.Replace(x.Anchor.Body, []byte("12:00"), []byte("13:00"), 1) }, ErrSignature},
		"another word":      {func(x *Bundle) { s := sign(b, headWord, x.Anchor.Body); x.Anchor = &s }, ErrSignature},
	} {
		var x Bundle
		if err := json.Unmarshal(good, &x); err != nil {
			t.Fatal(err)
		}
		c.change(&x)
		file, err := json.Marshal(x)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Verify(file); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
	}
	// Whatever byte of the file is flipped (every seventh is tried), it is refused.
	for i := 0; i < len(good); i += 7 {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if w, err := Verify(bad); err == nil {
			t.Fatalf("byte %d flipped: %+v", i, w)
		}
	}
}

func TestAFileThatSaysMoreThanItsSignaturesIsNoEvidence(t *testing.T) {
	l, peer := open(t, t.TempDir(), newKey(1)), open(t, t.TempDir(), newKey(2))
	add(t, l, 0)
	anchored(t, l, peer)
	good := bundle(t, l, 0)
	if _, err := Verify(good); err != nil {
		t.Fatal(err)
	}
	renamed := func(key, as string) []byte {
		return bytes.Replace(good, []byte(`"`+key+`":`), []byte(`"`+as+`":`), 1)
	}
	for what, file := range map[string][]byte{
		"another value behind it": append(bytes.Clone(good), `{"junk":1} trailing garbage`...),
		"a line behind it":        append(bytes.Clone(good), '\n'),
		"a key in another case":   renamed("name", "Name"),
		"a key twice":             renamed("name", `name":"another","name`),
		"an unknown key":          renamed("name", `remark":"","name`),
		"other spaces":            renamed("name", `name" `),
		"another version":         bytes.Replace(good, []byte(`_version":1`), []byte(`_version":2`), 1),
	} {
		if bytes.Equal(file, good) {
			t.Fatalf("%s: nothing was changed", what)
		}
		if _, err := Verify(file); !errors.Is(err, ErrBundle) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestALedgerOnDiskIsJudgedWhenItIsOpened(t *testing.T) {
	dir, k := t.TempDir(), newKey(1)
	l, peer := open(t, dir, k), open(t, t.TempDir(), newKey(2))
	for n := range 4 {
		add(t, l, n)
		if n == 2 {
			anchored(t, l, peer)
		}
	}
	if _, err := l.Append(Entry{Name: name(1)}, noon); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a name twice: %v", err)
	}
	if again := open(t, dir, k); len(again.Entries()) != 4 || again.Entries()[3].N != 4 {
		t.Errorf("entries %+v", again.Entries())
	}
	path := filepath.Join(dir, ledgerFile)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(whole, []byte("\n"))
	for what, c := range map[string]struct {
		text []byte
		want error
	}{
		"shortened":      {bytes.Join(lines[:2], nil), ErrShortened},
		"emptied":        {nil, ErrShortened},
		"in other order": {bytes.Join([][]byte{lines[1], lines[0]}, nil), ErrLedger},
		"cut at front":   {bytes.Join(lines[1:], nil), ErrLedger},
		"no ledger":      {[]byte("x\n"), ErrLedger},
	} {
		if err := os.WriteFile(path, c.text, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, "a", k); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, "a", newKey(3)); !errors.Is(err, ErrStranger) {
		t.Errorf("another site's: %v", err)
	}
	// A site that begins its ledger anew is found by who kept its head.
	fresh := open(t, t.TempDir(), k)
	add(t, fresh, 9)
	h, err := fresh.Head(noon)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := peer.Vouch(h, noon); !errors.Is(err, ErrShortened) {
		t.Errorf("a ledger begun anew: %v", err)
	}
	add(t, fresh, 10)
	add(t, fresh, 11)
	if h, err = fresh.Head(noon); err != nil {
		t.Fatal(err)
	}
	if _, err := peer.Vouch(h, noon); !errors.Is(err, ErrLedger) {
		t.Errorf("another one of the same length: %v", err)
	}
}
