package evidence

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
)

// Verdict is what a bundle proves.
type Verdict struct {
	Entry   Entry  `json:"entry"`
	Key     []byte `json:"key"`     // that signed the ledger
	Entries int    `json:"entries"` // that the ledger has
	Anchor  Anchor `json:"anchor"`
	By      []byte `json:"anchor_key"`
}

// Verify judges a bundle's file alone. keys, if there are any, are those that may have
// signed the ledger. It knows nobody: whether the keys of the verdict are those of sites
// that exist, the caller has to judge.
func Verify(file []byte, keys ...[]byte) (Verdict, error) {
	b, err := readBundle(file)
	if err != nil {
		return Verdict{}, fmt.Errorf("verify report: %w", err)
	}
	v, err := b.verify(keys)
	if err != nil {
		return v, fmt.Errorf("verify report %s: %w", b.Name, err)
	}
	return v, nil
}

// readBundle reads a file that is byte for byte what Ledger.Bundle writes: bytes behind
// it, a key written otherwise or twice are not under any signature, and other readers
// of JSON could see another report in them.
func readBundle(file []byte) (Bundle, error) {
	var b Bundle
	if err := json.Unmarshal(file, &b); err != nil || b.Version != 1 {
		return b, ErrBundle
	}
	if again, err := json.Marshal(b); err != nil || !bytes.Equal(again, file) {
		return b, fmt.Errorf("%w: it is not as report export writes it, byte for byte", ErrBundle)
	}
	return b, nil
}

func (b Bundle) verify(keys [][]byte) (Verdict, error) {
	entries, err := chain(b.Ledger)
	if err != nil {
		return Verdict{}, err
	}
	i := slices.IndexFunc(entries, func(e Entry) bool { return e.Name == b.Name })
	if i < 0 {
		return Verdict{}, ErrNoReport
	}
	v := Verdict{Entry: entries[i], Key: b.Ledger[i].Key, Entries: len(entries)}
	if len(keys) > 0 && !slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, v.Key) }) {
		return v, ErrStranger
	}
	if HashOf(b.Report) != v.Entry.Report {
		return v, ErrTampered
	}
	if b.Anchor == nil {
		return v, ErrUnanchored
	}
	v.By = b.Anchor.Key
	var h Head
	if v.Anchor, h, err = readAnchor(*b.Anchor, v.Key); err != nil {
		return v, err
	}
	return v, covers(b.Ledger, h, v.Entry.N)
}

// chain reads a ledger: signatures, numbers and hashes all follow each other, under one
// key.
func chain(ledger []Signed) ([]Entry, error) {
	prev := ""
	var out []Entry
	for i, s := range ledger {
		if !s.genuine(entryWord) {
			return nil, fmt.Errorf("%w: entry %d: %w", ErrLedger, i+1, ErrSignature)
		}
		var e Entry
		if err := json.Unmarshal(s.Body, &e); err != nil {
			return nil, fmt.Errorf("%w: entry %d: %w", ErrLedger, i+1, err)
		}
		if e.N != uint64(i)+1 || e.Prev != prev || !bytes.Equal(s.Key, ledger[0].Key) {
			return nil, fmt.Errorf("%w: entry %d does not follow the one before it", ErrLedger, i+1)
		}
		prev = s.hash()
		out = append(out, e)
	}
	return out, nil
}

// readAnchor judges an anchor for a ledger of key, which must not vouch for itself.
func readAnchor(s Signed, key []byte) (a Anchor, h Head, err error) {
	if err = json.Unmarshal(s.Body, &a); err == nil {
		err = json.Unmarshal(a.Head.Body, &h)
	}
	switch {
	case err != nil:
		return a, h, fmt.Errorf("%w: anchor: %w", ErrBundle, err)
	case !s.genuine(anchorWord) || !a.Head.genuine(headWord):
		return a, h, fmt.Errorf("anchor: %w", ErrSignature)
	case bytes.Equal(s.Key, key):
		return a, h, fmt.Errorf("%w: the anchor is the site's own", ErrUnanchored)
	case !bytes.Equal(a.Head.Key, key):
		return a, h, fmt.Errorf("%w: the anchor is of another ledger", ErrUnanchored)
	}
	return a, h, nil
}

// covers judges that the ledger holds what h says, and that h reaches entry n.
func covers(ledger []Signed, h Head, n uint64) error {
	switch {
	case h.N > uint64(len(ledger)):
		return fmt.Errorf("%w: %d entries were vouched for, %d are there", ErrShortened, h.N, len(ledger))
	case h.N == 0 || ledger[h.N-1].hash() != h.Hash:
		return fmt.Errorf("%w: entry %d is not the one that was vouched for", ErrLedger, h.N)
	case h.N < n:
		return fmt.Errorf("%w as far as entry %d, only up to %d", ErrUnanchored, n, h.N)
	}
	return nil
}
