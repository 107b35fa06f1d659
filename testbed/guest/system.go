package guest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// What a start of a system reads, beside its programs: files of these lengths in bytes,
// as often as a small Debian's does (units, libraries, configuration).
const (
	startFiles    = 1200
	startFileMean = 24 << 10
	startLibs     = 24
	startLibBytes = 2 << 20
)

// startDir is where they lie; process 1 reads them all when it is ordered "system".
const startDir = "usr/lib/start"

// SystemBytes is the length of a system disk's file system; what lies behind it is free.
const SystemBytes = 256 << 20

// SystemOrder has the guest mount its first disk, read what a start reads, and run the
// guest agent that lies there, on the second serial port.
const SystemOrder = "system"

// SystemDisk makes path a disk of size bytes, at least SystemBytes, which begins with an
// ext4 that holds qemu-ga, all that it needs, and the files that a start reads. It is the
// same each time.
func SystemDisk(ctx context.Context, path string, size int64) error {
	if size < SystemBytes {
		return fmt.Errorf("a system disk of %d bytes: want %d", size, SystemBytes)
	}
	cache, err := CacheDir()
	if err != nil {
		return err
	}
	files, err := systemFiles(ctx, cache)
	if err != nil {
		return err
	}
	tree, err := os.MkdirTemp(filepath.Dir(path), "tree-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	for _, f := range append(files, filesOfAStart()...) {
		to := filepath.Join(tree, f.name)
		if f.mode&modeDir != 0 {
			err = os.MkdirAll(to, 0o755)
		} else if err = os.MkdirAll(filepath.Dir(to), 0o755); err == nil {
			err = os.WriteFile(to, f.data, 0o755)
		}
		if err != nil {
			return err
		}
	}
	if _, err := output(ctx, "", "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0",
		"-d", tree, path, fmt.Sprintf("%dK", SystemBytes>>10)); err != nil {
		return err
	}
	return os.Truncate(path, size)
}

func systemFiles(ctx context.Context, cache string) ([]entry, error) {
	unlock, err := lock(cache)
	if err != nil {
		return nil, err
	}
	defer unlock()
	program, err := fetchAgent(ctx, cache)
	if err != nil {
		return nil, err
	}
	files, err := closure(ctx, map[string]string{agentProgram: program})
	for _, d := range []string{"dev", "proc", "sys"} {
		files = append(files, entry{name: d, mode: modeDir | 0o755})
	}
	return files, err
}

// filesOfAStart do not compress; their lengths are around the mean.
func filesOfAStart() []entry {
	random := rand.New(rand.NewPCG(1, 1))
	noise := rand.NewChaCha8([32]byte{1})
	var files []entry
	put := func(name string, n int) {
		data := make([]byte, n)
		_, _ = noise.Read(data) // it never fails
		files = append(files, entry{name: filepath.Join(startDir, name), mode: modeFile | 0o644, data: data})
	}
	for i := range startFiles {
		put(fmt.Sprintf("%02d/%04d", i%40, i), 1+int(min(random.ExpFloat64(), 8)*startFileMean))
	}
	for i := range startLibs {
		put(fmt.Sprintf("lib%02d", i), startLibBytes)
	}
	return files
}
