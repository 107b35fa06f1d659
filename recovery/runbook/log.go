package runbook

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// A run's log is lines of JSON, each with the hash of the line before it (the first:
// of the plan), so that one that is changed, moved or taken out of the middle is
// found:
//
//	{"prev":"<64 hex>","entry":{…}}\n
//
// A last line without its end, or whose bytes are no JSON, was being written when the
// process died: it was not relied upon, and is cut off.
type logLine struct {
	Prev  string `json:"prev"`
	Entry Entry  `json:"entry"`
}

// fileLog is a log on disk.
type fileLog struct {
	f    *os.File
	prev string
	next int
}

// readLog reads the lines of a log whose chain begins at digest; whole is the number
// of bytes that they have.
func readLog(text []byte, digest string) (entries []Entry, prev string, whole int, err error) {
	prev = digest
	for whole < len(text) {
		line, _, ended := bytes.Cut(text[whole:], []byte("\n"))
		if !ended {
			break
		}
		var l logLine
		if err := json.Unmarshal(line, &l); err != nil {
			if whole+len(line)+1 == len(text) {
				break
			}
			return nil, "", 0, fmt.Errorf("%w: line %d: %w", ErrLog, len(entries)+1, err)
		}
		if l.Prev != prev || l.Entry.N != len(entries) {
			return nil, "", 0, fmt.Errorf("%w: line %d does not follow the one before it", ErrLog, len(entries)+1)
		}
		entries = append(entries, l.Entry)
		sum := sha256.Sum256(line)
		prev = hex.EncodeToString(sum[:])
		whole += len(line) + 1
	}
	return entries, prev, whole, nil
}

// openLog opens a log for more entries. What was cut short at its end is removed.
func openLog(path, digest string) (*fileLog, []Entry, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	entries, prev, whole, err := readLog(text, digest)
	if err == nil {
		err = f.Truncate(int64(whole))
	}
	if err == nil {
		_, err = f.Seek(int64(whole), 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return &fileLog{f: f, prev: prev, next: len(entries)}, entries, nil
}

// Append makes e durable.
func (l *fileLog) Append(e Entry) error {
	e.N = l.next
	line, err := json.Marshal(logLine{l.prev, e})
	if err != nil {
		return err
	}
	if _, err := l.f.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	if err := l.f.Sync(); err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	sum := sha256.Sum256(line)
	l.prev, l.next = hex.EncodeToString(sum[:]), l.next+1
	return nil
}

func (l *fileLog) Close() error { return l.f.Close() }

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
