package site

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/fault"
)

const (
	tenantKeyBytes = 32
	maxKeyText     = 4 << 10 // more is no key
)

// ring is the keys of a group's tenant, its own as the newest; nil for a group that
// names none. A key that cannot be read is logged and left out: a replica does its
// work without, and a primary's epoch will not begin.
func (s *Site) ring(ctx context.Context, g config.Group) *journal.Keys {
	if g.Key == "" {
		return nil
	}
	ring := new(journal.Keys)
	add := func(k config.TenantKey) {
		raw, err := readKey(ctx, k)
		if err == nil {
			err = ring.Add(k.Name, raw)
		}
		clear(raw)
		if err != nil {
			f := fault.Wrap(fault.KeySource, "read key "+k.Name, err)
			s.o.Log.Error("key is not read", "group", g.Ref(), "key", k.Name, "source", k.Source(), "code", f.Code, "err", err)
		}
	}
	var own *config.TenantKey
	for _, k := range s.cfg.KeysOf(g.Tenant) {
		if k.Name == g.Key {
			own = &k
		} else {
			add(k)
		}
	}
	if own != nil {
		add(*own)
	}
	if ring.Use(g.Key) != nil {
		_ = ring.Use("") // an older key must not seal in its place
	}
	return ring
}

// readKey takes a key from its source. No error holds what was read.
func readKey(ctx context.Context, k config.TenantKey) ([]byte, error) {
	var text []byte
	var err error
	switch {
	case k.File != "":
		text, err = readSecret(k.File, true)
	case k.Credential != "":
		dir := os.Getenv("CREDENTIALS_DIRECTORY")
		if dir == "" {
			return nil, errors.New("there is no CREDENTIALS_DIRECTORY: the daemon was not started by systemd with LoadCredential=")
		}
		text, err = readSecret(filepath.Join(dir, k.Credential), false)
	default:
		text, err = printedBy(ctx, k.Command, time.Duration(k.Timeout))
	}
	defer clear(text)
	if err != nil {
		return nil, err
	}
	return parseKey(text)
}

// parseKey accepts 32 bytes, or 64 hexadecimal digits with blanks around them.
func parseKey(text []byte) ([]byte, error) {
	if len(text) == tenantKeyBytes {
		return bytes.Clone(text), nil
	}
	digits := bytes.TrimSpace(text)
	raw := make([]byte, hex.DecodedLen(len(digits)))
	if n, err := hex.Decode(raw, digits); err != nil || n != tenantKeyBytes {
		clear(raw)
		return nil, fmt.Errorf("%d bytes are no key: want %d bytes, or %d hexadecimal digits", len(text), tenantKeyBytes, 2*tenantKeyBytes)
	}
	return raw, nil
}

// readSecret reads a small file; alone says that nobody but its owner, who is root
// or us, may have access to it.
func readSecret(path string, alone bool) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0) // a pipe must not hang us
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", path)
	}
	if alone {
		if st.Mode().Perm()&0o077 != 0 {
			return nil, fmt.Errorf("%s has mode %04o: others than its owner have access; want 0600 or 0400", path, st.Mode().Perm())
		}
		if o, ok := st.Sys().(*syscall.Stat_t); ok && o.Uid != 0 && int(o.Uid) != os.Geteuid() {
			return nil, fmt.Errorf("%s belongs to user %d, neither root nor this process", path, o.Uid)
		}
	}
	return limited(f)
}

func limited(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxKeyText+1))
	if err == nil && len(b) > maxKeyText {
		err = errors.New("it is longer than any key")
	}
	if err != nil {
		clear(b)
		return nil, err
	}
	return b, nil
}

// printedBy runs a program without a shell and returns what it prints. What it says
// on its standard error is not looked at: it may hold anything.
func printedBy(ctx context.Context, argv []string, timeout time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.WaitDelay = time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	text, err := limited(out)
	if err != nil {
		cancel() // it prints more than anybody will read
	}
	werr := cmd.Wait()
	if late := ctx.Err(); late != nil && err == nil {
		werr = fmt.Errorf("%s took longer than %s", argv[0], timeout)
	}
	if err = errors.Join(err, werr); err != nil {
		clear(text)
		return nil, err
	}
	return text, nil
}

// destroyKey makes the file of a key unreadable and takes it away. What a command or
// systemd keeps only they can destroy: done is false for them.
func destroyKey(k config.TenantKey) (done bool, err error) {
	if k.File == "" {
		return false, nil
	}
	f, err := os.OpenFile(k.File, os.O_WRONLY|syscall.O_CLOEXEC|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	st, err := f.Stat()
	if err == nil {
		_, err = f.WriteAt(make([]byte, st.Size()), 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return false, err
	}
	if err := os.Remove(k.File); err != nil {
		return false, err
	}
	d, err := os.Open(filepath.Dir(k.File))
	if err != nil {
		return true, err
	}
	return true, errors.Join(d.Sync(), d.Close())
}

// keyRing is ring as a journal wants it: nil where there is none.
func keyRing(ring *journal.Keys) journal.KeyRing {
	if ring == nil {
		return nil
	}
	return ring
}

func compression(c config.Compress) journal.Compression {
	switch c {
	case config.CompressOff:
		return journal.CompressOff
	case config.CompressAlways:
		return journal.CompressAlways
	}
	return journal.CompressAuto
}
