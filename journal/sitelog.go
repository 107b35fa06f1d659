package journal

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/zeebo/blake3"
)

// siteLog is what this site alone knows of a group: cursors, roles, bitmap names,
// image watermarks. It is a file of entries, each synced before it counts and
// chained to the one before:
//
//	| length 4 | CRC32C of what follows 4 | BLAKE3 of chain before and JSON 32 | JSON |
//
// The newest value of a key wins; the file is rewritten when most of it is old.
// It is safe for concurrent use.
type siteLog struct {
	fs   vfs.FS
	dir  string
	mu   sync.Mutex // guards all below
	file vfs.File   // nil once err is set
	err  error      // why nothing more is remembered
	end  int64
	live map[string]json.RawMessage
	size int64 // bytes that the live values would take
	last Chain
	dead func(error) // told, on a goroutine of its own, when err is set
	torn bool        // half an entry stood at the end
	n    uint64      // entries ever written; a rewrite goes on from it
}

type siteEntry struct {
	Key   string          `json:"key"`
	Value json.RawMessage `json:"value"`
	N     uint64          `json:"n,omitempty"` // its number; in a rewritten log the newest's
}

const (
	siteLogName     = "site.log"
	siteEntryHead   = 40
	sectorBytes     = 512 // what a disk writes whole or not at all
	maxSiteEntry    = 4 << 20
	siteLogRewrite  = 1 << 20 // a log is rewritten when it is this long and mostly old
	siteRewriteName = "site.log.new"
)

func openSiteLog(fs vfs.FS, dir string) (*siteLog, error) {
	l := &siteLog{fs: fs, dir: dir, live: make(map[string]json.RawMessage)}
	f, err := fs.OpenReadWrite(fs.PathJoin(dir, siteLogName), vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, fmt.Errorf("open site log: %w", err)
	}
	l.file = f
	// What is read may have reached no more than the page cache.
	if err := errors.Join(f.Sync(), syncDir(fs, dir)); err != nil {
		return nil, errors.Join(fmt.Errorf("sync site log: %w", err), f.Close())
	}
	if err := l.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("open site log: %w", err), f.Close())
	}
	if l.torn { // what is left of it must not stand behind the next entry
		if err := l.rewriteLocked(); err != nil {
			return nil, fmt.Errorf("open site log: %w", err)
		}
	}
	return l, nil
}

// load reads entries until the first that does not verify: the torn tail of a
// crash, unless a valid entry follows it.
func (l *siteLog) load() error {
	st, err := l.file.Stat()
	if err != nil {
		return err
	}
	b := make([]byte, st.Size())
	if _, err := l.file.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for {
		e, n, chain := decodeSiteEntry(b[l.end:], l.last)
		if n == 0 {
			break
		}
		l.set(e)
		l.last, l.end = chain, l.end+int64(n)
	}
	for at := l.end + 1; at+siteEntryHead < int64(len(b)); at++ {
		if n := binary.LittleEndian.Uint32(b[at:]); n > 0 && n <= maxSiteEntry && at+siteEntryHead+int64(n) <= int64(len(b)) {
			body := b[at+8 : at+siteEntryHead+int64(n)]
			if crc32.Checksum(body, castagnoli) == binary.LittleEndian.Uint32(b[at+4:]) {
				return &DamageError{Hop: "open", File: siteLogName, Offset: l.end, What: "an entry does not verify and valid ones follow it"}
			}
		}
	}
	if l.torn = l.end < int64(len(b)); l.torn && !tornEntry(b[l.end:], l.end) {
		return &DamageError{Hop: "open", File: siteLogName, Offset: l.end, What: "what stands there is no entry"}
	}
	return nil
}

// tornEntry reports that b, from at to the end of the file, may be what a crash left
// of one entry: each is synced before the next is written, and where nothing was
// written there are zeros. A disk keeps or loses whole sectors; where two of them
// share the entry's length, losing either leaves no length to hold the rest to. Of an
// entry that is there to its end some sector must be missing: else it is damaged.
func tornEntry(b []byte, at int64) bool {
	if len(b) < 8 || binary.LittleEndian.Uint64(b) == 0 {
		return true
	}
	if first := int(sectorBytes - at%sectorBytes); first < 8 && (allZero(b[:first]) || first < 4 && allZero(b[first:min(first+sectorBytes, len(b))])) {
		return true
	}
	n := int64(binary.LittleEndian.Uint32(b))
	if n == 0 || n > maxSiteEntry || int64(len(b)) > siteEntryHead+n {
		return false
	}
	return int64(len(b)) < siteEntryHead+n || lacksSector(b, at)
}

// lacksSector reports that of b, which lies at at, what a sector holds is all zeros.
func lacksSector(b []byte, at int64) bool {
	for len(b) > 0 {
		n := min(int(sectorBytes-at%sectorBytes), len(b))
		if allZero(b[:n]) {
			return true
		}
		b, at = b[n:], at+int64(n)
	}
	return false
}

// count is how many entries were ever written.
func (l *siteLog) count() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.n
}

func (l *siteLog) set(e siteEntry) {
	l.n = max(l.n, e.N)
	if old, ok := l.live[e.Key]; ok {
		l.size -= int64(siteEntryHead + len(e.Key) + len(old))
	}
	l.live[e.Key] = e.Value
	l.size += int64(siteEntryHead + len(e.Key) + len(e.Value))
}

// check reads the file again and holds it to what is remembered. A damaged one is
// written anew.
func (l *siteLog) check() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	b := make([]byte, l.end)
	if _, err := l.file.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	var at int64
	var chain Chain
	for at < l.end {
		_, n, next := decodeSiteEntry(b[at:], chain)
		if n == 0 {
			break
		}
		at, chain = at+int64(n), next
	}
	if at != l.end || chain != l.last {
		before := l.file
		err := l.rewriteLocked()
		return errors.Join(&DamageError{Hop: "verify", File: siteLogName, Offset: at, Mended: l.file != before && err == nil,
			What: "an entry does not verify; all that the log says is in memory"}, err)
	}
	return nil
}

func siteChain(before Chain, body []byte) Chain {
	h := blake3.New()
	_, _ = h.Write(before[:]) // a hash takes everything
	_, _ = h.Write(body)
	var c Chain
	h.Sum(c[:0])
	return c
}

func encodeSiteEntry(e siteEntry, before Chain) ([]byte, Chain) {
	body := encodeBody(e)
	chain := siteChain(before, body)
	b := make([]byte, siteEntryHead, siteEntryHead+len(body))
	copy(b[8:], chain[:])
	b = append(b, body...)
	binary.LittleEndian.PutUint32(b, uint32(len(body)))
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b[8:], castagnoli))
	return b, chain
}

// decodeSiteEntry reads the first entry of b; 0 bytes mean that there is none.
func decodeSiteEntry(b []byte, before Chain) (siteEntry, int, Chain) {
	var e siteEntry
	if len(b) < siteEntryHead {
		return e, 0, before
	}
	n := binary.LittleEndian.Uint32(b)
	if n == 0 || n > maxSiteEntry || int(n) > len(b)-siteEntryHead {
		return e, 0, before
	}
	b = b[:siteEntryHead+int(n)]
	chain := siteChain(before, b[siteEntryHead:])
	if crc32.Checksum(b[8:], castagnoli) != binary.LittleEndian.Uint32(b[4:]) || Chain(b[8:40]) != chain {
		return e, 0, before
	}
	if json.Unmarshal(b[siteEntryHead:], &e) != nil {
		return e, 0, before
	}
	return e, len(b), chain
}

// remember makes v the value of key, durably.
func (l *siteLog) remember(key string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("remember %s: %w", key, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return fmt.Errorf("remember %s: %w", key, l.err)
	}
	e := siteEntry{key, raw, l.n + 1}
	b, chain := encodeSiteEntry(e, l.last)
	if len(b) > maxSiteEntry {
		return fmt.Errorf("remember %s: value of %d bytes is too large", key, len(raw))
	}
	if err := l.wipeLocked(); err != nil {
		return fmt.Errorf("remember %s: %w", key, err)
	}
	if _, err := l.file.WriteAt(b, l.end); err != nil {
		l.torn = true
		return fmt.Errorf("remember %s: %w", key, err)
	}
	if err := l.file.Sync(); err != nil {
		l.endLocked(err) // nothing about this file is known any more
		return fmt.Errorf("remember %s: %w", key, l.err)
	}
	l.set(e)
	l.last, l.end = chain, l.end+int64(len(b))
	if l.end > siteLogRewrite && l.end > 4*l.size {
		return l.rewriteLocked()
	}
	return nil
}

// wipeLocked puts zeros over what a write that failed has left behind the end, lest
// a shorter entry is followed by the rest of a longer one, which nobody could tell
// from damage.
func (l *siteLog) wipeLocked() error {
	if !l.torn {
		return nil
	}
	st, err := l.file.Stat()
	if err != nil {
		return err
	}
	if n := st.Size() - l.end; n > 0 {
		if _, err := l.file.WriteAt(make([]byte, n), l.end); err != nil {
			return err
		}
		if err := l.file.Sync(); err != nil {
			l.endLocked(err)
			return l.err
		}
	}
	l.torn = false
	return nil
}

// rewriteLocked puts the live values into a new file. A failure before the new
// file takes the old one's place leaves the old one in use: the next call tries
// again. After that nothing is known of either.
func (l *siteLog) rewriteLocked() error {
	tmp := l.fs.PathJoin(l.dir, siteRewriteName)
	f, err := l.fs.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil
	}
	out, chain := l.encode()
	_, err = f.Write(out)
	if err == nil {
		err = synced(f.Sync())
	}
	if err = errors.Join(err, f.Close()); errors.Is(err, errNotSynced) {
		l.endLocked(err)
		return fmt.Errorf("rewrite site log: %w", l.err)
	} else if err != nil {
		return nil
	}
	err = l.fs.Rename(tmp, l.fs.PathJoin(l.dir, siteLogName))
	if err == nil {
		err = syncDir(l.fs, l.dir)
	}
	if err == nil {
		f, err = l.fs.OpenReadWrite(l.fs.PathJoin(l.dir, siteLogName), vfs.WriteCategoryUnspecified)
	}
	if err != nil {
		l.endLocked(err)
		return fmt.Errorf("rewrite site log: %w", l.err)
	}
	_ = l.file.Close() // the old file is gone from the directory
	l.file = f
	l.last, l.end, l.size, l.torn = chain, int64(len(out)), int64(len(out)), false
	return nil
}

// encode is a file of the live values, and its last chain value.
func (l *siteLog) encode() (out []byte, chain Chain) {
	for k, v := range l.live {
		var b []byte
		b, chain = encodeSiteEntry(siteEntry{k, v, l.n}, chain)
		out = append(out, b...)
	}
	return out, chain
}

// endLocked makes a failure of the file terminal.
func (l *siteLog) endLocked(cause error) {
	_ = l.file.Close() // it is given up
	l.file, l.err = nil, fmt.Errorf("%w: %w", ErrFailed, cause)
	if l.dead != nil {
		go l.dead(fmt.Errorf("write site log: %w", cause))
	}
}

// recall reads the newest value of key into v and reports whether there is one.
func (l *siteLog) recall(key string, v any) (bool, error) {
	l.mu.Lock()
	raw, ok := l.live[key]
	l.mu.Unlock()
	if !ok {
		return false, nil
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return false, fmt.Errorf("recall %s: %w", key, err)
	}
	return true, nil
}

func (l *siteLog) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	f := l.file
	l.file, l.err = nil, ErrClosed
	return f.Close()
}

// makeDir makes dir and what is missing above it, durably.
func makeDir(fs vfs.FS, dir string) error {
	top := dir
	for {
		there, err := exists(fs, top)
		up := fs.PathDir(top)
		if there || err != nil || up == top {
			break
		}
		top = up
	}
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for at := dir; at != top; {
		at = fs.PathDir(at)
		if err := syncDir(fs, at); err != nil {
			return err
		}
	}
	return nil
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(synced(d.Sync()), d.Close())
}

func notThere(err error) bool { return errors.Is(err, os.ErrNotExist) }

func exists(fs vfs.FS, path string) (bool, error) {
	_, err := fs.Stat(path)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, os.ErrNotExist):
		return false, nil
	}
	return false, err
}
