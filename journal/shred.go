package journal

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Shredding a history is destroying the tenant's keys that wrap its data keys. All
// that a site keeps, in segments, runs, index and site log, is data keys wrapped and
// cells sealed: without a tenant's key both are noise, at every site and in every
// copy, of which nobody needs to know. What is left to do in a journal is to forget
// the data keys that are open in this process, to take the wrappings made here out
// of the site log, and to remember durably that these keys are gone, so that one
// that turns up again under the name is not believed. Who destroys the keys
// themselves is whoever keeps them; a copy of a key that is kept undoes it all.

const shreddedKey = "journal/shredded"

// Shred makes what this history sealed unreadable here, and returns the names of
// the tenant's keys that are to be destroyed with it: those that wrap any of its
// data keys. Nothing younger than lock may be lost: while the newest record is, it
// is refused (ErrRetained). Doing it again does what is left. Everything recorded
// from then on is refused until an epoch begins under a key of another name.
func (j *Journal) Shred(lock time.Duration) ([]string, error) {
	names, err := j.shred(lock)
	if err != nil {
		return nil, fmt.Errorf("shred history: %w", err)
	}
	return names, nil
}

func (j *Journal) shred(lock time.Duration) ([]string, error) {
	j.mu.Lock()
	head, now := j.headTime, j.o.Now()
	j.mu.Unlock()
	if free := head.Add(lock); lock > 0 && now.Before(free) {
		return nil, fmt.Errorf("%w until %s", ErrRetained, free.Format(time.RFC3339))
	}
	names := j.Sealing().Keys
	if len(names) == 0 {
		return nil, nil
	}
	var gone []string
	if _, err := j.site.recall(shreddedKey, &gone); err != nil {
		return nil, err
	}
	all := slices.Compact(slices.Sorted(slices.Values(append(gone, names...))))
	if err := j.site.remember(shreddedKey, all); err != nil {
		return nil, fullOr(err)
	}
	j.keys.destroy(all)
	j.mu.Lock()
	j.sealer = nil
	j.mu.Unlock()
	return names, fullOr(j.site.erase(dataKeyPrefix))
}

// destroy forgets what is open and believes no key of these names again.
func (d *dataKeys) destroy(names []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range names {
		d.shredded[n] = true
	}
	if len(names) > 0 {
		clear(d.opened)
	}
}

var errNotRewritten = errors.New("the file could not be written anew; the old one is in use")

// erase takes the entries whose keys begin with prefix out of the log and out of
// its file. After an error they may still be in the file.
func (l *siteLog) erase(prefix string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return fmt.Errorf("erase %s: %w", prefix, l.err)
	}
	for k := range l.live {
		if len(k) >= len(prefix) && k[:len(prefix)] == prefix {
			delete(l.live, k)
		}
	}
	old := l.file
	if err := l.rewriteLocked(); err != nil {
		return err
	}
	if l.file == old {
		return fmt.Errorf("erase %s: %w", prefix, errNotRewritten)
	}
	return nil
}
