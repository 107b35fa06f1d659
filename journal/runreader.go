package journal

import (
	"errors"
	"fmt"
	"io"
	"os"
)

// run is an open run's footer, directory and points; its bytes are read through
// Journal.runs.
type run struct {
	j      *Journal
	number uint64
	page   runPage
	blocks []blockPlace
	points []runPoint
	raw    runTail
}

// openRun opens the run that a manifest names, by its own tail or, where that is
// damaged, by the copy in the index (runtail.go).
func (j *Journal) openRun(m manifest) (*run, error) {
	r, err := j.openRunItself(m)
	if err != nil && unreadable(err) {
		if c, ok := j.tailCopy(m); ok {
			return c, nil
		}
	}
	return r, err
}

// openRunItself opens the run that a manifest names, by its own tail.
func (j *Journal) openRunItself(m manifest) (*run, error) {
	r, err := j.openRunFile(m.Run, m.Bytes)
	if err == nil && r.page.Root != m.Root {
		err = r.damage(m.Bytes-pageBytes, badFrame("the root is not the one in the site log"))
	}
	return r, err
}

// openRunFile reads and checks the footer and tail of a run of size bytes.
func (j *Journal) openRunFile(n uint64, size int64) (*run, error) {
	r := &run{j: j, number: n}
	page := make([]byte, pageBytes)
	if err := j.runs.readAt(n, page, size-pageBytes); err != nil {
		return nil, r.damage(size-pageBytes, err)
	}
	f, err := r.footer(page, size)
	if err != nil {
		return nil, r.damage(size-pageBytes, err)
	}
	tail := make([]byte, padPage(f.tailBytes()))
	if err := j.runs.readAt(n, tail, f.Body); err != nil {
		return nil, r.damage(f.Body, err)
	}
	if !allZero(tail[f.tailBytes():]) {
		return nil, r.damage(f.Body, badFrame("bytes behind a run's tail are set"))
	}
	if err := r.decode(runTail{page, tail[:f.tailBytes()]}, size); err != nil {
		return nil, r.damage(f.Body, err)
	}
	return r, nil
}

// footer reads and checks the footer of a file of size bytes.
func (r *run) footer(page []byte, size int64) (runPage, error) {
	f, err := decodeRunPage(page, runFooterMagic)
	switch {
	case err == nil && (f.Number != r.number || f.Identity != r.j.identity):
		err = badFrame("the file is run %d of group %s", f.Number, f.Identity.Group.Short())
	case err == nil && f.fileBytes() != size:
		err = badFrame("a run of %d bytes in a file of %d", f.fileBytes(), size)
	}
	return f, err
}

// decode makes r what a tail of a file of size bytes says.
func (r *run) decode(raw runTail, size int64) (err error) {
	if r.page, err = r.footer(raw.footer, size); err != nil {
		return err
	}
	r.raw = raw
	r.blocks, r.points, err = decodeRunTail(r.page, raw.tail)
	return err
}

// leaves is the hashes of the MiBs of header and body.
func (r *run) leaves() []byte {
	return r.raw.tail[r.page.Blocks*directoryBytes+r.page.Points*runPointBytes:]
}

// damage makes what is wrong with a run's bytes a *DamageError; an error of the
// device or of a newer version stays what it is.
func (r *run) damage(at int64, err error) error {
	if errors.Is(err, errBadFrame) || errors.Is(err, errNoFrame) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, os.ErrNotExist) {
		return &DamageError{Hop: "run", File: runName(r.number), Offset: at, What: err.Error()}
	}
	return fmt.Errorf("read run %s: %w", runName(r.number), err)
}

// damageOf is damage of an error, if there is one.
func (r *run) damageOf(at int64, err error) error {
	if err == nil {
		return nil
	}
	return r.damage(at, err)
}

// each calls f for the entries of the blocks of a kind, in order; key and value are
// reused.
func (r *run) each(kind uint32, f func(k, v []byte) error) error {
	var b []byte
	for _, d := range r.blocks {
		if d.kind != kind {
			continue
		}
		var err error
		if b, err = r.block(d, b); err != nil {
			return err
		}
		if err := decodeBlock(b, kind, f); err != nil {
			return r.damage(d.offset, err)
		}
	}
	return nil
}

func (r *run) block(d blockPlace, b []byte) ([]byte, error) {
	if cap(b) < d.bytes {
		b = make([]byte, d.bytes)
	}
	b = b[:d.bytes]
	if err := r.j.runs.readAt(r.number, b, d.offset); err != nil {
		return b, r.damage(d.offset, err)
	}
	return b, nil
}

// versionCursor walks the versions of a run, one block in memory.
type versionCursor struct {
	r    *run
	next int // block
	keys []indexEntry
	vals [][]byte
}

// peek is the next version's key; false at the end.
func (c *versionCursor) peek() (indexEntry, bool, error) {
	for len(c.keys) == 0 {
		for c.next < len(c.r.blocks) && c.r.blocks[c.next].kind != blockVersions {
			c.next++
		}
		if c.next >= len(c.r.blocks) {
			return indexEntry{}, false, nil
		}
		d := c.r.blocks[c.next]
		c.next++
		b, err := c.r.block(d, nil)
		if err != nil {
			return indexEntry{}, false, err
		}
		c.vals = c.vals[:0]
		err = decodeBlock(b, blockVersions, func(k, v []byte) error {
			e, err := decodeIndexKey(k)
			if err != nil {
				return badFrame("%v", err)
			}
			c.keys, c.vals = append(c.keys, e), append(c.vals, v)
			return nil
		})
		if err != nil {
			return indexEntry{}, false, c.r.damage(d.offset, err)
		}
	}
	return c.keys[0], true, nil
}

func (c *versionCursor) pop() (indexEntry, []byte) {
	e, v := c.keys[0], c.vals[0]
	c.keys, c.vals = c.keys[1:], c.vals[1:]
	return e, v
}
