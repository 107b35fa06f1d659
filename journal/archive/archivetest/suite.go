package archivetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/novacron/afterimage/journal/archive"
)

// badNames must be refused by every store.
var badNames = []string{
	"", ".", "..", "/", "/etc/passwd", "../x", "a/../b", "a/../../b", "a//b", "a/", "./a", "a/.", ".put-x", "a/.hidden",
	"a\\b", "a\x00b", "a\nb", "A", "ä", "a b", "a:b", strings.Repeat("x", 256),
}

// TestStore is the conformance suite of a Store; open makes an empty one.
func TestStore(t *testing.T, open func(t *testing.T) archive.Store) {
	for _, c := range []struct {
		name string
		test func(*testing.T, archive.Store)
	}{
		{"KeepsWhatWasPut", testKeeps},
		{"RefusesNames", testNames},
		{"EndsWithItsContext", testContext},
		{"ReplacesAtOnce", testReplace},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

func put(t *testing.T, s archive.Store, name string, data []byte) {
	t.Helper()
	if err := s.Put(t.Context(), name, data); err != nil {
		t.Fatal(err)
	}
}

func testKeeps(t *testing.T, s archive.Store) {
	ctx := t.Context()
	data := []byte("some bytes")
	put(t, s, "t/chunks/ab/abc", data)
	data[0] = 'X' // the caller's own again
	put(t, s, "t/chunks/ab/abd", nil)
	put(t, s, "t/archives/1.json", []byte("1"))
	put(t, s, "u", []byte("2"))
	if b, err := s.Get(ctx, "t/chunks/ab/abc", 10); err != nil || string(b) != "some bytes" {
		t.Errorf("%q, %v", b, err)
	}
	if b, err := s.Get(ctx, "t/chunks/ab/abd", 0); err != nil || b == nil || len(b) != 0 {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := s.Get(ctx, "t/chunks/ab/abc", 9); !errors.Is(err, archive.ErrTooLarge) {
		t.Errorf("limit: %v", err)
	}
	for _, name := range []string{"x", "t/chunks/ab/ab", "t/chunks/ab", "t", "t/x/y"} {
		if _, err := s.Get(ctx, name, 9); !errors.Is(err, archive.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for prefix, want := range map[string]string{
		"":             "[t/archives/1.json t/chunks/ab/abc t/chunks/ab/abd u]",
		"t/":           "[t/archives/1.json t/chunks/ab/abc t/chunks/ab/abd]",
		"t/chunks/ab/": "[t/chunks/ab/abc t/chunks/ab/abd]",
		"t/c":          "[t/chunks/ab/abc t/chunks/ab/abd]",
		"none/":        "[]",
	} {
		if names, err := s.List(ctx, prefix); err != nil || fmt.Sprint(names) != want {
			t.Errorf("list %q: %v, %v", prefix, names, err)
		}
	}
	for range 2 {
		if err := errors.Join(s.Delete(ctx, "u"), s.Delete(ctx, "no/such/thing")); err != nil {
			t.Error(err)
		}
	}
	if names, err := s.List(ctx, ""); err != nil || slices.Contains(names, "u") || len(names) != 3 {
		t.Errorf("after delete: %v, %v", names, err)
	}
}

func testNames(t *testing.T, s archive.Store) {
	ctx := t.Context()
	for _, name := range badNames {
		_, err := s.Get(ctx, name, 9)
		for _, err := range []error{err, s.Put(ctx, name, nil), s.Delete(ctx, name)} {
			if !errors.Is(err, archive.ErrName) {
				t.Errorf("%q: %v", name, err)
			}
		}
	}
	if names, err := s.List(ctx, ""); err != nil || len(names) > 0 {
		t.Errorf("%v, %v", names, err)
	}
}

func testContext(t *testing.T, s archive.Store) {
	put(t, s, "a", nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	cancel(enough)
	_, errGet := s.Get(ctx, "a", 9)
	_, errList := s.List(ctx, "")
	for _, err := range []error{errGet, errList, s.Put(ctx, "b", nil), s.Delete(ctx, "a")} {
		if !errors.Is(err, enough) {
			t.Errorf("%v", err)
		}
	}
	if names, err := s.List(t.Context(), ""); err != nil || fmt.Sprint(names) != "[a]" {
		t.Errorf("%v, %v", names, err)
	}
}

// testReplace reads while an object is put again: it is always one of the two.
func testReplace(t *testing.T, s archive.Store) {
	ctx := t.Context()
	old, young := bytes.Repeat([]byte{1}, 100_000), bytes.Repeat([]byte{2}, 90_000)
	put(t, s, "d/x", old)
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 20 {
			if err := s.Put(ctx, "d/x", [][]byte{young, old}[i%2]); err != nil {
				t.Error(err)
			}
			if err := s.Put(ctx, "d/y", nil); err != nil {
				t.Error(err)
			}
		}
	})
	for range 200 {
		b, err := s.Get(ctx, "d/x", 100_000)
		if err != nil || (!bytes.Equal(b, old) && !bytes.Equal(b, young)) {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		if names, err := s.List(ctx, "d/x"); err != nil || len(names) != 1 {
			t.Fatalf("%v, %v", names, err)
		}
	}
	wg.Wait()
}
