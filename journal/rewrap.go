package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/novacron/afterimage/cbt"
)

// A tenant's key is replaced by wrapping its data keys anew: payloads stay as they
// are. Key records cannot be changed, so each new wrapping is first remembered in
// this site's log, and at the primary then told in a key record of its own, so that
// a replica reads with the new key alone. Each step is durable before the next, and
// one that was done is not done again. The old key is needed until Rewrap has left
// none at any site that reads; records wrapped with it stay in the stream, and say
// nothing once it is destroyed.

// Rewrapped is how far the data keys of a journal are wrapped with the newest key.
type Rewrapped struct {
	Key  string // the newest of the tenant's
	Keys int    // data keys that the history holds
	Done int    // that this call wrapped, or told of
	Left int    // that only older keys wrap: none of those is held here
}

// dataKeyPrefix is of the site log's entries, one for each rewrapped data key.
const dataKeyPrefix = "datakey/"

// Rewrap wraps every data key that this site can open with the newest key of the
// ring. It may be called again and goes on where it ended. A data key that cannot be
// opened is counted in Left and is no error; ErrNoKey: the ring has no newest key.
func (j *Journal) Rewrap(ctx context.Context) (Rewrapped, error) {
	r, err := j.rewrap(ctx)
	if err != nil {
		return r, fmt.Errorf("rewrap data keys: %w", err)
	}
	return r, nil
}

func (j *Journal) rewrap(ctx context.Context) (Rewrapped, error) {
	var out Rewrapped
	if j.o.Keys == nil || j.o.Keys.Newest() == "" {
		return out, &KeyError{Tenant: j.identity.Tenant, Err: ErrNoKey}
	}
	out.Key = j.o.Keys.Newest()
	if j.keys.destroyed(out.Key) {
		return out, &KeyError{Tenant: j.identity.Tenant, Key: out.Key, Err: fmt.Errorf("%w: %w", ErrShredded, ErrNoKey)}
	}
	for _, ws := range j.keys.list() {
		if err := ctx.Err(); err != nil {
			return out, err
		}
		out.Keys++
		done, err := j.rewrapOne(ctx, ws, out.Key)
		switch {
		case errors.Is(err, ErrNoKey) || errors.Is(err, ErrWrongKey):
			out.Left++
		case err != nil:
			return out, err
		case done:
			out.Done++
		}
	}
	return out, nil
}

// rewrapOne does for one data key, of which ws are the wrappings, what is not done.
func (j *Journal) rewrapOne(ctx context.Context, ws []keyBody, newest string) (done bool, err error) {
	told := slices.ContainsFunc(ws, func(w keyBody) bool { return w.Key == newest && !w.local })
	at := slices.IndexFunc(ws, func(w keyBody) bool { return w.Key == newest })
	var body keyBody
	if at >= 0 {
		body = ws[at]
	} else {
		if body, err = j.wrapAgain(ws[0], newest); err != nil {
			return false, err
		}
		if err := j.site.remember(dataKeyPrefix+body.ID.String(), body); err != nil {
			return false, fullOr(err)
		}
		body.local, done = true, true
		if err := j.keys.learn(body); err != nil {
			return done, err
		}
	}
	j.mu.Lock()
	w := j.writer
	j.mu.Unlock()
	if told || w == nil {
		return done, nil
	}
	_, err = w.control(ctx, &record{kind: KindKey, body: encodeBody(body)})
	if errors.Is(err, ErrFenced) { // a primary no more: the next one tells of it
		return done, nil
	}
	return true, err
}

// wrapAgain is the data key of w, wrapped with another key of the tenant.
func (j *Journal) wrapAgain(w keyBody, key string) (keyBody, error) {
	raw, err := j.keys.unwrap(j.o.Keys, j.identity, w.ID)
	if err != nil {
		return w, err
	}
	defer clear(raw)
	w.Key, w.local = key, false
	if w.Wrapped, err = j.o.Keys.Wrap(key, raw, w.bound(j.identity)); err != nil {
		return w, &KeyError{Tenant: j.identity.Tenant, Key: key, DataKey: w.ID, Err: err}
	}
	return w, nil
}

// loadRewrapped learns what the site log adds to the key records.
func (j *Journal) loadRewrapped() error {
	var names []string
	if _, err := j.site.recall(shreddedKey, &names); err != nil {
		return err
	}
	j.keys.destroy(names)
	return j.site.each(dataKeyPrefix, func(key string, v json.RawMessage) error {
		k, err := decodeKeyBody(v)
		if err == nil && key != dataKeyPrefix+k.ID.String() {
			err = badFrame("key record of %s", k.ID)
		}
		if err == nil {
			k.local = true
			err = j.keys.learn(k)
		}
		if err != nil {
			return &DamageError{Hop: "open", File: siteLogName, What: fmt.Sprintf("%s: %v", key, err)}
		}
		return nil
	})
}

// each calls f for the live entries whose keys begin with prefix.
func (l *siteLog) each(prefix string, f func(key string, v json.RawMessage) error) error {
	l.mu.Lock()
	found := make(map[string]json.RawMessage)
	for k, v := range l.live {
		if strings.HasPrefix(k, prefix) {
			found[k] = v
		}
	}
	l.mu.Unlock()
	for k, v := range found {
		if err := f(k, v); err != nil {
			return err
		}
	}
	return nil
}

// Sealing is how a history is sealed.
type Sealing struct {
	Key        string   // that new data keys are wrapped with; "" at a site without
	Keys       []string // of the tenant, that wrap a data key
	DataKeys   int
	Unreadable int // data keys that none of this site's keys opens
}

// Sealing tells with which keys the history is sealed.
func (j *Journal) Sealing() Sealing {
	var out Sealing
	if j.o.Keys != nil {
		out.Key = j.o.Keys.Newest()
	}
	seen := make(map[string]bool)
	for _, ws := range j.keys.list() {
		out.DataKeys++
		for _, w := range ws {
			seen[w.Key] = true
		}
		if !j.keys.readable(j.o.Keys, j.identity, ws[0].ID) {
			out.Unreadable++
		}
	}
	out.Keys = slices.Sorted(maps.Keys(seen))
	return out
}

func (d *dataKeys) readable(ring KeyRing, id Identity, name cbt.ID) bool {
	raw, err := d.unwrap(ring, id, name)
	clear(raw)
	return err == nil
}
