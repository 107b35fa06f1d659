package archive_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/novacron/afterimage/journal/archive"
	"github.com/novacron/afterimage/journal/archive/archivetest"
)

func openDirectory(t *testing.T, dir string) *archive.Directory {
	t.Helper()
	d, err := archive.OpenDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestStoresConform(t *testing.T) {
	t.Run("directory", func(t *testing.T) {
		archivetest.TestStore(t, func(t *testing.T) archive.Store { return openDirectory(t, t.TempDir()) })
	})
	t.Run("memory", func(t *testing.T) {
		archivetest.TestStore(t, func(*testing.T) archive.Store { return new(archivetest.Memory) })
	})
}

// Promise 14, in small: links in a store do not lead out of it.
func TestDirectoryStaysInside(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, []byte("theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Symlink(outside, filepath.Join(dir, "dir")), os.Symlink(secret, filepath.Join(dir, "file"))); err != nil {
		t.Fatal(err)
	}
	d, ctx := openDirectory(t, dir), t.Context()
	for _, name := range []string{"file", "dir/secret"} {
		if b, err := d.Get(ctx, name, 100); err == nil {
			t.Errorf("%s gave %q", name, b)
		}
	}
	if err := d.Put(ctx, "dir/new", nil); err == nil {
		t.Error("put through a link")
	}
	if err := d.Delete(ctx, "dir/secret"); err == nil {
		t.Error("deleted through a link")
	}
	if err := d.Put(ctx, "file", []byte("ours")); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(secret); err != nil || string(b) != "theirs" {
		t.Errorf("outside: %q, %v", b, err)
	}
	if names, err := d.List(ctx, ""); err != nil || len(names) != 1 {
		t.Errorf("%v, %v", names, err)
	}
}

// What a crash left half written is no object.
func TestHalfWrittenIsNotListed(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, ".put-ABC"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if names, err := openDirectory(t, dir).List(t.Context(), ""); err != nil || len(names) > 0 {
		t.Errorf("%v, %v", names, err)
	}
}
