// Command workload is what a guest does with its file system, mounted at a directory:
//
//	workload encrypt DIR        encrypts every file below DIR in place, one after the other
//	workload database DIR MIB   a Pebble database in DIR is written to: so many MiB of puts,
//	                            deletions and commits, with what it compacts besides
//
// It lies on the guest's own disk, static, and is run by the order "workload" of process 1.
package main

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"fmt"
	"io/fs"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "encrypt":
		return encrypt(args[1])
	case len(args) == 3 && args[0] == "database":
		mib, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		return database(args[1], mib<<20)
	}
	return fmt.Errorf("%q: want encrypt DIR, or database DIR MIB", args)
}

func encrypt(dir string) error {
	files, bytes := 0, 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		n, err := encryptFile(path)
		files, bytes = files+1, bytes+n
		return err
	})
	fmt.Printf("encrypted files=%d bytes=%d\n", files, bytes)
	return err
}

func encryptFile(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	var key [32]byte
	_, _ = rand.Read(key[:]) // it never fails
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return 0, err
	}
	cipher.NewCTR(block, key[:aes.BlockSize]).XORKeyStream(text, text)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if _, err := f.Write(text); err != nil {
		return 0, err
	}
	return len(text), f.Sync()
}

// database writes rows as applications have them: some text, some numbers, some noise.
func database(dir string, bytes int) error {
	db, err := pebble.Open(dir, &pebble.Options{MemTableSize: 4 << 20, L0CompactionThreshold: 2})
	if err != nil {
		return err
	}
	const rows = 20_000
	rng := mathrand.New(mathrand.NewPCG(1, 2))
	written := 0
	for written < bytes {
		b := db.NewBatch()
		for range 64 {
			key := fmt.Appendf(nil, "row/%08d", rng.IntN(rows))
			if rng.IntN(10) == 0 {
				if err := b.Delete(key, nil); err != nil {
					return err
				}
				continue
			}
			noise := make([]byte, 100)
			_, _ = rand.Read(noise)
			row := fmt.Sprintf(`{"id": %d, "name": "customer %d", "note": %q, "hash": "%x"}`, rng.Uint64(), rng.IntN(1e6), strings.Repeat("all is well ", 20+rng.IntN(60)), noise)
			written += len(row)
			if err := b.Set(key, []byte(row), nil); err != nil {
				return err
			}
		}
		if err := b.Commit(pebble.Sync); err != nil {
			return err
		}
	}
	if err := db.Close(); err != nil {
		return err
	}
	fmt.Printf("wrote bytes=%d\n", written)
	return nil
}
