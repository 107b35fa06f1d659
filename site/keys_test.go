package site

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// A key is taken from every kind of source, and from nothing that others may read,
// that is no key, or that does not come to an end; what is wrong never shows a key.
func TestKeySources(t *testing.T) {
	dir := t.TempDir()
	key := bytes.Repeat([]byte("K3y-"), 8)
	digits := hex.EncodeToString(key)
	file := func(name, text string, mode os.FileMode) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	raw, lines := file("raw", string(key), 0o600), file("hex", digits+"\n", 0o400)
	file("cred", digits, 0o440)
	short := config.Duration(200 * time.Millisecond)
	long := config.Duration(30 * time.Second)
	for name, c := range map[string]struct {
		k    config.TenantKey
		fail string
	}{
		"raw file":           {config.TenantKey{File: raw}, ""},
		"hex file":           {config.TenantKey{File: lines}, ""},
		"command":            {config.TenantKey{Command: []string{"/bin/cat", lines}, Timeout: long}, ""},
		"credential":         {config.TenantKey{Credential: "cred"}, ""},
		"no file":            {config.TenantKey{File: filepath.Join(dir, "none")}, "no such file"},
		"readable by others": {config.TenantKey{File: file("open", string(key), 0o640)}, "mode 0640"},
		"too short":          {config.TenantKey{File: file("short", digits[:60], 0o600)}, "no key"},
		"too long":           {config.TenantKey{File: file("long", strings.Repeat(digits, 100), 0o600)}, "longer than any key"},
		"a directory":        {config.TenantKey{File: dir}, "not a file"},
		"a failing command":  {config.TenantKey{Command: []string{"/bin/sh", "-c", "cat " + raw + " >&2; cat " + raw + "; exit 3"}, Timeout: long}, "exit status 3"},
		"a hanging command":  {config.TenantKey{Command: []string{"/bin/sh", "-c", "cat " + raw + "; exec sleep 60"}, Timeout: short}, "longer than 200ms"},
		"an endless command": {config.TenantKey{Command: []string{"/bin/cat", "/dev/zero"}, Timeout: long}, "longer than any key"},
		"no such credential": {config.TenantKey{Credential: "none"}, "no such file"},
	} {
		got, err := readKey(context.Background(), c.k)
		if c.fail == "" && (err != nil || !bytes.Equal(got, key)) {
			t.Errorf("%s: %x, %v", name, got, err)
		}
		if c.fail != "" && (err == nil || got != nil || !strings.Contains(err.Error(), c.fail)) {
			t.Errorf("%s: %x, %v", name, got, err)
		}
		if err != nil && (strings.Contains(err.Error(), "K3y-") || strings.Contains(err.Error(), digits[:8])) {
			t.Errorf("%s: the error shows the key: %v", name, err)
		}
	}
}

// A sealed group from end to end at one site: written, read, rotated, shredded; a key
// never shows in the log, the status, or any file but its own.
func TestSealedGroup(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	keyFile := func(name string, b byte) string {
		path := filepath.Join(w.dir, name)
		if err := os.WriteFile(path, bytes.Repeat([]byte{b}, tenantKeyBytes), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	one, two := keyFile("one.key", 'x'), keyFile("two.key", 'y')
	c := w.configure("a", twoGroups)
	c.Keys = []config.TenantKey{{Name: "one", Tenant: config.DefaultTenant, File: one}}
	c.Groups[0].Key = "one"
	name := c.Groups[0].Ref()
	s := w.run(c)
	s.awaitState("web", control.StateSynced)
	s.write("web/root", 0xB2, 0, 64<<10)
	restore := func(to string) error {
		_, err := s.Restore(ctx, control.RestoreRequest{Group: "web", At: "latest", To: filepath.Join(w.dir, to), Format: control.FormatSparse}, func(control.Progress) {})
		return err
	}
	if err := restore("first"); err != nil {
		t.Fatal(err)
	}
	s.stop()

	c.Keys = append(c.Keys, config.TenantKey{Name: "two", Tenant: config.DefaultTenant, File: two})
	c.Groups[0].Key = "two"
	s = w.run(c)
	s.awaitState("web", control.StateSynced)
	k, err := s.RotateKey(ctx, control.KeyRequest{Group: "web"})
	if err != nil || k.Key != "two" || k.Rewrapped != 1 || k.Unreadable != 0 || k.DataKeys != 2 {
		t.Fatalf("rotate %s: %+v, %v", name, k, err)
	}
	s.stop()

	c.Keys = c.Keys[1:]
	s = w.run(c)
	s.awaitState("web", control.StateSynced)
	if err := restore("rotated"); err != nil {
		t.Fatalf("with the new key alone: %v", err)
	}
	k, err = s.ShredKey(ctx, control.KeyRequest{Group: "web", DryRun: true})
	if err != nil || len(k.Keys) != 2 || k.Bytes == 0 {
		t.Fatalf("plan: %+v, %v", k, err)
	}
	if k, err = s.ShredKey(ctx, control.KeyRequest{Group: "web"}); err != nil || len(k.Destroyed) != 1 || len(k.Remaining) != 1 || !strings.HasPrefix(k.Remaining[0], "one (not among") {
		t.Fatalf("shred: %+v, %v", k, err)
	}
	if _, err := os.Stat(two); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the key's file is left: %v", err)
	}
	if err := restore("shredded"); !fault.Is(err, fault.KeyDestroyed) {
		t.Errorf("a shredded history is restored: %v", err)
	}
	if log := s.log.String(); strings.Contains(log, strings.Repeat("y", 8)) || strings.Contains(log, hex.EncodeToString([]byte("yyyyyyyy"))) {
		t.Error("the log holds a key")
	}
}
