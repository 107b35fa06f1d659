package config

import (
	"crypto/sha256"
	"os"
	"path/filepath"
)

// Written is a file as it was when a process read it: a daemon goes by that until it is
// started again, whatever is written since.
type Written struct {
	Path string // absolute
	sum  [sha256.Size]byte
}

// Remember reads path. Who calls it before Load takes no later change for what Load read.
func Remember(path string) (Written, error) {
	at, err := filepath.Abs(path)
	if err != nil {
		return Written{}, err
	}
	text, err := read(at)
	return Written{at, sha256.Sum256(text)}, err
}

// Changed says how the file differs by now; empty: it does not, or none was read.
func (w Written) Changed() string {
	if w.Path == "" {
		return ""
	}
	text, err := os.ReadFile(w.Path)
	switch {
	case err != nil:
		return "cannot be read any more: " + err.Error()
	case sha256.Sum256(text) != w.sum:
		return "has changed since the daemon read it"
	}
	return ""
}
