package evidence

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Ledger is a site's, in a directory: ledger.jsonl, a Signed a line, and anchors.jsonl,
// what other sites said of it. kept.jsonl is what this site keeps of others' heads.
type Ledger struct {
	dir    string
	site   string
	signer Signer

	mu      sync.Mutex // guards all below, and the files
	lines   []Signed
	entries []Entry
	anchors []Signed
}

const (
	ledgerFile  = "ledger.jsonl"
	anchorsFile = "anchors.jsonl"
	keptFile    = "kept.jsonl"
)

// Open reads a site's ledger and judges it: against itself, and against what other
// sites have vouched for. dir is made.
func Open(dir, site string, s Signer) (*Ledger, error) {
	l := &Ledger{dir: dir, site: site, signer: s}
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	return l, nil
}

func (l *Ledger) open() (err error) {
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return err
	}
	if l.lines, err = readLines(filepath.Join(l.dir, ledgerFile)); err != nil {
		return err
	}
	if l.entries, err = chain(l.lines); err != nil {
		return err
	}
	if len(l.lines) > 0 && !bytes.Equal(l.lines[0].Key, l.signer.Public()) {
		return ErrStranger
	}
	if l.anchors, err = readLines(filepath.Join(l.dir, anchorsFile)); err != nil {
		return err
	}
	for _, a := range l.anchors {
		_, h, err := readAnchor(a, l.signer.Public())
		if err == nil {
			err = covers(l.lines, h, 0)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// readLines reads a file of Signed; a last line without its end was never relied upon.
func readLines(path string) ([]Signed, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []Signed
	for {
		line, rest, whole := bytes.Cut(text, []byte("\n"))
		if !whole {
			return out, nil
		}
		var s Signed
		if err := json.Unmarshal(line, &s); err != nil {
			return nil, fmt.Errorf("%w: %s, line %d: %w", ErrLedger, filepath.Base(path), len(out)+1, err)
		}
		out, text = append(out, s), rest
	}
}

// writeLines makes lines a file's content, durably.
func writeLines(path string, lines []Signed) error {
	var b bytes.Buffer
	for _, s := range lines {
		line, err := json.Marshal(s)
		if err != nil {
			return err
		}
		b.Write(append(line, '\n'))
	}
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b.Bytes())
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Append signs e as the next entry, with its place and time, and makes it durable.
func (l *Ledger) Append(e Entry, now time.Time) (Entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if slices.ContainsFunc(l.entries, func(o Entry) bool { return o.Name == e.Name }) {
		return e, fmt.Errorf("append to ledger: %s is there: %w", e.Name, fs.ErrExist)
	}
	e.N, e.Prev, e.Time, e.Site = uint64(len(l.lines))+1, "", now.Round(0), l.site
	if n := len(l.lines); n > 0 {
		e.Prev = l.lines[n-1].hash()
	}
	body, err := json.Marshal(e)
	if err != nil {
		return e, fmt.Errorf("append to ledger: %w", err)
	}
	lines := append(slices.Clone(l.lines), sign(l.signer, entryWord, body))
	if err := writeLines(filepath.Join(l.dir, ledgerFile), lines); err != nil {
		return e, fmt.Errorf("append to ledger: %w", err)
	}
	l.lines, l.entries = lines, append(l.entries, e)
	return e, nil
}

// Entries are all, oldest first.
func (l *Ledger) Entries() []Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.entries)
}

// Head is the end of the ledger, signed, for another site to keep.
func (l *Ledger) Head(now time.Time) (Signed, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.lines)
	if n == 0 {
		return Signed{}, fmt.Errorf("sign ledger's head: %w", ErrNoReport)
	}
	body, err := json.Marshal(Head{l.site, uint64(n), l.lines[n-1].hash(), now.Round(0)})
	if err != nil {
		return Signed{}, err
	}
	return sign(l.signer, headWord, body), nil
}

// Vouch keeps another site's head here, durably, and signs that: the anchor. A head
// that is behind or beside one that was kept of the same key is ErrShortened or
// ErrLedger: then that ledger was rewritten.
func (l *Ledger) Vouch(head Signed, now time.Time) (Signed, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var h Head
	if err := json.Unmarshal(head.Body, &h); err != nil || !head.genuine(headWord) {
		return Signed{}, fmt.Errorf("vouch for a ledger: %w", ErrSignature)
	}
	if bytes.Equal(head.Key, l.signer.Public()) {
		return Signed{}, fmt.Errorf("vouch for a ledger: %w: it is this site's own", ErrUnanchored)
	}
	kept, err := readLines(filepath.Join(l.dir, keptFile))
	if err != nil {
		return Signed{}, fmt.Errorf("vouch for a ledger: %w", err)
	}
	for _, k := range kept {
		var was Head
		if err := json.Unmarshal(k.Body, &was); err != nil {
			return Signed{}, fmt.Errorf("vouch for a ledger: %w: %w", ErrLedger, err)
		}
		switch {
		case !bytes.Equal(k.Key, head.Key):
		case was.N > h.N:
			return Signed{}, fmt.Errorf("vouch for a ledger: %w: it had %d entries and has %d", ErrShortened, was.N, h.N)
		case was.N == h.N && was.Hash != h.Hash:
			return Signed{}, fmt.Errorf("vouch for a ledger: %w: entry %d was another one", ErrLedger, h.N)
		}
	}
	if err := writeLines(filepath.Join(l.dir, keptFile), append(kept, head)); err != nil {
		return Signed{}, fmt.Errorf("vouch for a ledger: %w", err)
	}
	body, err := json.Marshal(Anchor{head, l.site, now.Round(0)})
	if err != nil {
		return Signed{}, err
	}
	return sign(l.signer, anchorWord, body), nil
}

// Keep takes an anchor of this ledger in.
func (l *Ledger) Keep(anchor Signed) (Anchor, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a, h, err := readAnchor(anchor, l.signer.Public())
	if err == nil {
		err = covers(l.lines, h, 0)
	}
	if err == nil {
		err = writeLines(filepath.Join(l.dir, anchorsFile), append(slices.Clone(l.anchors), anchor))
	}
	if err != nil {
		return a, fmt.Errorf("keep an anchor: %w", err)
	}
	l.anchors = append(l.anchors, anchor)
	return a, nil
}

// Bundle is the file that proves report name, whose bytes are report.
func (l *Ledger) Bundle(name string, report []byte) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.IndexFunc(l.entries, func(e Entry) bool { return e.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("bundle report %s: %w", name, ErrNoReport)
	}
	if HashOf(report) != l.entries[i].Report {
		return nil, fmt.Errorf("bundle report %s: %w", name, ErrTampered)
	}
	b := Bundle{Version: 1, Name: name, Report: report, Ledger: l.lines}
	most := uint64(0)
	for _, a := range l.anchors {
		if _, h, err := readAnchor(a, l.signer.Public()); err == nil && h.N >= most {
			most, b.Anchor = h.N, &a
		}
	}
	return json.Marshal(b)
}

// Anchored is the last entry that another site has vouched for; 0: none.
func (l *Ledger) Anchored() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	most := uint64(0)
	for _, a := range l.anchors {
		if _, h, err := readAnchor(a, l.signer.Public()); err == nil {
			most = max(most, h.N)
		}
	}
	return most
}
