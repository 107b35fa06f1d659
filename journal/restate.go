package journal

import (
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// The index learns how far frames are durable with the next one that it takes in, and
// Maintain folds no further. In a group that has gone quiet there is no next one: so
// Maintain has finishLoop, which owns that place, say it anew.

// restating is what was asked for and done. Journal.mu guards it.
type restating struct{ asked, done uint64 }

// restated returns once the index says what is durable now. Where Run does not run,
// the clean close has said it.
func (j *Journal) restated() error {
	j.mu.Lock()
	if !j.running || j.closing || len(j.chained) == 0 {
		j.mu.Unlock()
		return nil
	}
	epochs, written := len(j.branches), j.written
	j.mu.Unlock()
	// The index may lag behind what is durable; it tells of what it holds alone.
	if err := j.waitIndexed(context.Background(), epochs, written); err != nil {
		if errors.Is(err, ErrClosed) {
			return nil
		}
		return err
	}
	j.mu.Lock()
	j.restating.asked++
	n := j.restating.asked
	j.mu.Unlock()
	select {
	case j.restate <- struct{}{}:
	default:
	}
	// finishLoop waits for nobody: what is given up here could still be done beside
	// somebody else who moves the place, so nothing is.
	err := j.waitFor(context.Background(), func() bool { return j.restating.done >= n })
	if errors.Is(err, ErrClosed) {
		return nil
	}
	return err
}

// sayDurable is finishLoop's part, between two batches of frames. Where an epoch has begun
// that has no frame yet the place stays as it is.
func (j *Journal) sayDurable() error {
	j.mu.Lock()
	n, durable := j.restating.asked, j.durableUpTo(j.through.frameEnd)
	j.mu.Unlock()
	if j.through.Seq > 0 && !durable.forks() && durable != j.through.Durable {
		j.through.Durable = durable
		if err := j.db.Set([]byte(keyThrough), encodeBody(j.through), pebble.NoSync); err != nil {
			return fmt.Errorf("write index: %w", err)
		}
	}
	j.mu.Lock()
	j.restating.done = n
	j.broadcastLocked()
	j.mu.Unlock()
	return nil
}
