package journal

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/novacron/afterimage/cbt"
)

// Each epoch of a sealed group begins with its record and, right behind it, a key
// record: a fresh random data key, wrapped with the tenant's newest key and bound to
// tenant, group, epoch, its own id and the process. The key itself stays in that
// process's memory. Before it has sealed maxKeyCells cells, another key record gives
// the epoch its next one. Who holds the tenant's key reads; who does not stores,
// checks, folds and passes on all the same.

// keyBody is a key record: one data key, wrapped by one key of the tenant. More
// records of the same ID say the same key, wrapped by others (Rewrap).
type keyBody struct {
	Epoch       EpochID         `json:"epoch"` // whose payloads it seals
	ID          cbt.ID          `json:"id"`
	Number      uint16          `json:"number"` // within the epoch, from 1
	Incarnation cbt.Incarnation `json:"incarnation"`
	Key         string          `json:"key"` // the tenant's key that wraps it
	Wrapped     []byte          `json:"wrapped"`

	local bool // this site's log says so, and no record yet
}

const maxWrapped = 4 << 10 // a key ring may put more than a nonce and a tag about a key

func decodeKeyBody(b []byte) (keyBody, error) {
	var k keyBody
	if err := json.Unmarshal(b, &k); err != nil {
		return k, badFrame("key record: %v", err)
	}
	if k.Epoch.IsZero() || k.ID.IsZero() || k.Number == 0 || k.Key == "" || len(k.Key) > maxKeyName || len(k.Wrapped) == 0 || len(k.Wrapped) > maxWrapped {
		return k, badFrame("key record of key %d %s, wrapped by %.20q in %d bytes", k.Number, k.ID.Short(), k.Key, len(k.Wrapped))
	}
	return k, nil
}

// bound is what a data key is wrapped to.
func (k keyBody) bound(id Identity) []byte {
	b := slices.Concat(id.Tenant[:], id.Group[:], k.Epoch[:], k.ID[:], k.Incarnation[:])
	return binary.LittleEndian.AppendUint16(b, k.Number)
}

// keyPlace is how an index entry names a data key.
type keyPlace struct {
	epoch  EpochID
	number uint16
}

// dataKeys is what a journal knows of its data keys. It is safe for concurrent use.
// It grows with the epochs.
type dataKeys struct {
	mu       sync.Mutex // guards all below
	ids      map[keyPlace]cbt.ID
	wrapped  map[cbt.ID][]keyBody // the newest first
	opened   map[cbt.ID]*dataKey
	shredded map[string]bool // names of the tenant's keys that are destroyed
}

func newDataKeys() *dataKeys {
	return &dataKeys{
		ids: make(map[keyPlace]cbt.ID), wrapped: make(map[cbt.ID][]keyBody),
		opened: make(map[cbt.ID]*dataKey), shredded: make(map[string]bool),
	}
}

// learn takes note of a key record. One that contradicts an earlier one is not
// believed.
func (d *dataKeys) learn(k keyBody) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	at := keyPlace{k.Epoch, k.Number}
	if id, ok := d.ids[at]; ok && id != k.ID {
		return badFrame("key record: number %d of epoch %s is key %s, not %s", k.Number, k.Epoch.Short(), id.Short(), k.ID.Short())
	}
	for _, o := range d.wrapped[k.ID] {
		if o.Epoch != k.Epoch || o.Number != k.Number || o.Incarnation != k.Incarnation {
			return badFrame("key record: key %s is number %d of epoch %s already", k.ID.Short(), o.Number, o.Epoch.Short())
		}
	}
	for i, o := range d.wrapped[k.ID] {
		if o.Key == k.Key && slices.Equal(o.Wrapped, k.Wrapped) {
			d.wrapped[k.ID][i].local = o.local && k.local
			return nil
		}
	}
	d.ids[at] = k.ID
	d.wrapped[k.ID] = slices.Insert(d.wrapped[k.ID], 0, k)
	return nil
}

// names reports that number of epoch e is the key id.
func (d *dataKeys) names(e EpochID, number uint16, id cbt.ID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ids[keyPlace{e, number}] == id
}

// told reports that a record told of a number of epoch e.
func (d *dataKeys) told(e EpochID, number uint16) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.ids[keyPlace{e, number}]
	return ok
}

// hold keeps an opened key.
func (d *dataKeys) hold(k *dataKey) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.opened[k.id] = k
}

// any reports that some payload may be sealed.
func (d *dataKeys) any() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.ids) > 0
}

// open is the data key of a number of an epoch, unwrapped by the ring if it is not
// open yet.
func (d *dataKeys) open(ring KeyRing, id Identity, e EpochID, number uint16) (*dataKey, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	name, ok := d.ids[keyPlace{e, number}]
	if !ok {
		return nil, &KeyError{Tenant: id.Tenant, Err: fmt.Errorf("no record of key %d of epoch %s: %w", number, e.Short(), ErrNoKey)}
	}
	if k := d.opened[name]; k != nil {
		return k, nil
	}
	raw, err := unwrap(ring, id, name, d.wrapped[name], d.shredded)
	if err != nil {
		return nil, err
	}
	defer clear(raw)
	k, err := newDataKey(name, number, raw)
	if err != nil {
		return nil, fmt.Errorf("open data key %s: %w", name.Short(), err)
	}
	d.opened[name] = k
	return k, nil
}

// unwrap is a data key as the ring opens it.
func (d *dataKeys) unwrap(ring KeyRing, id Identity, name cbt.ID) ([]byte, error) {
	d.mu.Lock()
	ws, gone := slices.Clone(d.wrapped[name]), maps.Clone(d.shredded)
	d.mu.Unlock()
	return unwrap(ring, id, name, ws, gone)
}

// unwrap tries a data key's wrappings, the newest first. A wrong key is the more
// telling error than one that is not there.
func unwrap(ring KeyRing, id Identity, name cbt.ID, ws []keyBody, shredded map[string]bool) ([]byte, error) {
	var failed *KeyError
	for _, w := range ws {
		err := ErrNoKey
		switch {
		case shredded[w.Key]:
			err = fmt.Errorf("%w: %w", ErrShredded, ErrNoKey)
		case ring != nil:
			var raw []byte
			if raw, err = ring.Unwrap(w.Key, w.Wrapped, w.bound(id)); err == nil {
				return raw, nil
			}
			if !errors.Is(err, ErrNoKey) && !errors.Is(err, ErrWrongKey) {
				err = fmt.Errorf("%w: %w", ErrNoKey, err)
			}
		}
		if failed == nil || (errors.Is(err, ErrWrongKey) && !errors.Is(failed.Err, ErrWrongKey)) {
			failed = &KeyError{Tenant: id.Tenant, Key: w.Key, DataKey: name, Err: err}
		}
	}
	if failed == nil {
		failed = &KeyError{Tenant: id.Tenant, DataKey: name, Err: ErrNoKey}
	}
	return nil, failed
}

// list is every wrapping known, in the order of epochs' ids and numbers.
func (d *dataKeys) list() [][]keyBody {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out [][]keyBody
	for _, ws := range d.wrapped {
		out = append(out, slices.Clone(ws))
	}
	slices.SortFunc(out, func(a, b []keyBody) int { return cmp.Compare(a[0].ID.String(), b[0].ID.String()) })
	return out
}

// sealer is the data key that this process seals with; Journal.mu guards it.
type sealer struct {
	*dataKey
	left    int64 // cells that it may still seal
	renewed bool  // its successor is being made
}

// newSealer makes a data key for an epoch of this process, and the record that
// tells of it.
func (j *Journal) newSealer(e EpochID, number uint16) (*sealer, *record, error) {
	ring := j.o.Keys
	b := keyBody{Epoch: e, ID: cbt.NewID(), Number: number, Incarnation: j.inc, Key: ring.Newest()}
	missing := func(err error) error {
		return &KeyError{Tenant: j.identity.Tenant, Key: b.Key, DataKey: b.ID, Err: err}
	}
	if b.Key == "" || j.keys.destroyed(b.Key) {
		return nil, nil, missing(ErrNoKey)
	}
	raw := make([]byte, dataKeyBytes)
	defer clear(raw)
	_, _ = rand.Read(raw) // never fails
	if j.o.faults.resetNonces {
		clear(raw[copy(raw, j.identity.Group[:]):])
	}
	var err error
	if b.Wrapped, err = ring.Wrap(b.Key, raw, b.bound(j.identity)); err != nil {
		return nil, nil, missing(err)
	}
	k, err := newDataKey(b.ID, number, raw)
	if err != nil {
		return nil, nil, err
	}
	j.keys.hold(k)
	s := &sealer{dataKey: k, left: j.o.keyCells}
	return s, &record{kind: KindKey, body: encodeBody(b)}, nil
}

func (d *dataKeys) destroyed(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.shredded[name]
}

// sealWithLocked makes s the key of what is recorded from here on, and records it.
func (j *Journal) sealWithLocked(s *sealer, r *record) {
	old := j.sealer
	j.sealer = s
	r.undo = func() {
		if j.sealer == s {
			j.sealer = old
		}
	}
	j.addLocked(r)
}

// renewKey gives the epoch its next data key once half of the cells of this one
// are used: the other half is for those who write meanwhile.
func (w *Writer) renewKey() error {
	j := w.j
	j.mu.Lock()
	s := j.sealer
	due := j.writer == w && s != nil && !s.renewed && s.left < j.o.keyCells/2 && s.number < maxEpochKeys
	if due {
		s.renewed = true
	}
	j.mu.Unlock()
	if !due {
		return nil
	}
	next, r, err := j.newSealer(w.epoch.ID, s.number+1)
	j.mu.Lock()
	defer j.mu.Unlock()
	s.renewed = false
	if err != nil {
		return fmt.Errorf("renew data key: %w", err)
	}
	if w.usableLocked() == nil && j.sealer == s {
		j.sealWithLocked(next, r)
	}
	return nil
}

// sealLocked counts r's cells against the data key in use.
func (j *Journal) sealLocked(r *record) error {
	if !r.sealed() {
		return nil
	}
	if j.sealer == nil { // Shred came between
		return &KeyError{Tenant: j.identity.Tenant, Err: fmt.Errorf("%w: %w", ErrShredded, ErrNoKey)}
	}
	if j.sealer.left < int64(len(r.cells)) {
		return fmt.Errorf("data key %s is used up: %w", j.sealer.id.Short(), ErrNoKey)
	}
	j.sealer.left -= int64(len(r.cells))
	r.key = j.sealer.number
	return nil
}

// epochSealer is what a new epoch of this process seals with; nil where it does not.
// A group that was sealed once goes on so.
func (j *Journal) epochSealer(e EpochID) (*sealer, *record, error) {
	if j.o.Keys != nil {
		return j.newSealer(e, 1)
	}
	if j.keys.any() {
		return nil, nil, &KeyError{Tenant: j.identity.Tenant, Err: fmt.Errorf("the group is sealed: %w", ErrNoKey)}
	}
	return nil, nil, nil
}

// prepare does for r what needs no place in the order yet.
func (w *Writer) prepare(r *record) error {
	if !r.kind.hasPayload() {
		return nil
	}
	if w.j.packer.mode != CompressOff {
		r.plain = r.cells
	}
	w.j.shrink(r)
	if w.j.o.Keys == nil || !r.kind.hasPayload() {
		return nil
	}
	r.willSeal()
	if j := w.j; j.o.faults.resetNonces {
		j.mu.Lock()
		binary.BigEndian.PutUint64(r.nonce[:], uint64(j.next))
		binary.BigEndian.PutUint32(r.nonce[8:], 0)
		j.mu.Unlock()
	}
	return w.renewKey()
}

// learnKey takes note of r if it tells of a data key.
func (j *Journal) learnKey(r *record) {
	if r.kind != KindKey {
		return
	}
	k, err := decodeKeyBody(r.body)
	if err == nil {
		err = j.keys.learn(k)
	}
	if err != nil {
		j.o.Log.Error("key record is passed over", "err", err)
	}
}

// loadKeys learns the key records that the index holds.
func (j *Journal) loadKeys() error {
	return j.scanPrefix(prefixHappen, func(k, v []byte) error {
		if Kind(binary.BigEndian.Uint16(k[1:])) != KindKey {
			return nil
		}
		var h happening
		if err := json.Unmarshal(v, &h); err != nil {
			return err
		}
		j.learnKey(&record{kind: KindKey, body: h.Body})
		return nil
	})
}

// checkKeys refuses a received frame that seals with a key of which no record told.
func (j *Journal) checkKeys(h frameHeader, recs []*record) error {
	told := make(map[uint16]bool)
	for _, r := range recs {
		switch {
		case r.kind == KindKey:
			k, err := decodeKeyBody(r.body)
			if err != nil {
				return err
			}
			if k.Epoch == h.Epoch && k.ID == h.KeyID {
				told[k.Number] = true
			}
		case r.kind.hasPayload() && r.sealed():
			if !told[r.key] && !j.keys.names(h.Epoch, r.key, h.KeyID) {
				return badFrame("sealed with key %d, %s, of which no record told", r.key, h.KeyID.Short())
			}
		}
	}
	return nil
}
