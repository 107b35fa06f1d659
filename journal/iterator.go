package journal

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// iterator is one of the index that Close waits for. It remembers its first error:
// Pebble's forgets a damaged block at the next seek, and what lies in it would be
// taken for absent.
type iterator struct {
	*pebble.Iterator
	j      *Journal
	failed *error
}

func (i iterator) keep(ok bool) bool {
	if !ok && *i.failed == nil {
		*i.failed = i.Iterator.Error()
	}
	return ok
}

func (i iterator) First() bool                { return i.keep(i.Iterator.First()) }
func (i iterator) Next() bool                 { return i.keep(i.Iterator.Next()) }
func (i iterator) Prev() bool                 { return i.keep(i.Iterator.Prev()) }
func (i iterator) SeekGE(k []byte) bool       { return i.keep(i.Iterator.SeekGE(k)) }
func (i iterator) SeekPrefixGE(k []byte) bool { return i.keep(i.Iterator.SeekPrefixGE(k)) }
func (i iterator) SeekLT(k []byte) bool       { return i.keep(i.Iterator.SeekLT(k)) }

// Error is the first one since the iterator was made.
func (i iterator) Error() error {
	if *i.failed != nil {
		return fmt.Errorf("read index: %w", *i.failed)
	}
	return i.Iterator.Error()
}

// iterate reads the index's keys from lower up to upper.
func (j *Journal) iterate(lower, upper []byte) (iterator, error) {
	j.mu.Lock()
	if j.freed {
		j.mu.Unlock()
		return iterator{}, fmt.Errorf("read index: %w", ErrClosed)
	}
	j.readers++
	j.mu.Unlock()
	it, err := j.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		j.readEnded()
		return iterator{}, fmt.Errorf("read index: %w", err)
	}
	return iterator{it, j, new(error)}, nil
}

func (i iterator) Close() error {
	err := errors.Join(*i.failed, i.Iterator.Close())
	i.j.readEnded()
	return err
}

func (j *Journal) readEnded() {
	j.mu.Lock()
	j.readers--
	if j.freed {
		j.broadcastLocked()
	}
	j.mu.Unlock()
}
