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
	if err := makeExt4(ctx, path, SystemBytes, tree); err != nil {
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

// Kinds of what the order "workload" does on volume 0: WorkloadDisk.
const (
	WorkEncrypt  = 1
	WorkDatabase = 2
)

// workloadPackage is built for a guest's disk; the working directory must lie in the
// module.
const workloadPackage = "github.com/novacron/afterimage/testbed/guest/workload"

// WorkloadDisk makes path an ext4 of size bytes that holds the files of home, by name,
// below /home, and the program that the order "workload" runs.
func WorkloadDisk(ctx context.Context, path string, size int64, home map[string][]byte) error {
	tree, err := os.MkdirTemp(filepath.Dir(path), "tree-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	if err := buildStatic(ctx, filepath.Join(tree, "workload"), workloadPackage); err != nil {
		return err
	}
	for name, data := range home {
		to := filepath.Join(tree, "home", name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(to, data, 0o644); err != nil {
			return err
		}
	}
	return makeExt4(ctx, path, size, tree)
}

// makeExt4 makes path a file system of size bytes with what lies in tree.
func makeExt4(ctx context.Context, path string, size int64, tree string) error {
	_, err := output(ctx, "", "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0",
		"-d", tree, path, fmt.Sprintf("%dK", size>>10))
	return err
}
