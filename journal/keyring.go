package journal

import (
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/novacron/afterimage/cbt"
)

// KeyRing is a tenant's keys, by name. They wrap data keys and nothing else; a
// journal keeps what they wrapped and never sees them. All methods are safe for
// concurrent use.
type KeyRing interface {
	// Newest names the key that new data keys are wrapped with; "" when there is none.
	Newest() string
	// Wrap seals a data key with the named key, bound to what is given.
	Wrap(name string, dataKey, bound []byte) ([]byte, error)
	// Unwrap opens what Wrap made. ErrNoKey: the ring lacks the named key;
	// ErrWrongKey: it has another one of that name.
	Unwrap(name string, wrapped, bound []byte) ([]byte, error)
}

// KeyError says which key is missing or wrong. It is never damage: the bytes were
// as they should be. It wraps ErrNoKey or ErrWrongKey.
type KeyError struct {
	Tenant  cbt.ID
	Key     string // the tenant's key
	DataKey cbt.ID
	Err     error
}

func (e *KeyError) Error() string {
	hint := "give this site the tenant's key of that name"
	if errors.Is(e.Err, ErrWrongKey) {
		hint = "this site's key of that name is another one"
	}
	return fmt.Sprintf("open data key %s of tenant %s, wrapped by %q: %v (%s)", e.DataKey.Short(), e.Tenant.Short(), e.Key, e.Err, hint)
}

// Unwrap makes errors.Is hold.
func (e *KeyError) Unwrap() error { return e.Err }

// Keys is a KeyRing in memory: AES-256-GCM under a random nonce. It prints as the
// names of its keys.
type Keys struct {
	mu     sync.Mutex // guards all below
	keys   map[string][]byte
	newest string
}

var _ KeyRing = (*Keys)(nil)

const (
	wrapNonceBytes = 12
	maxKeyName     = 128
)

// Add puts a copy of a key of 32 bytes in the ring, as the newest.
func (k *Keys) Add(name string, key []byte) error {
	if name == "" || len(name) > maxKeyName {
		return fmt.Errorf("add key: name of %d bytes", len(name))
	}
	if len(key) != dataKeyBytes {
		return fmt.Errorf("add key %q: %d bytes, want %d", name, len(key), dataKeyBytes)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.keys == nil {
		k.keys = make(map[string][]byte)
	}
	clear(k.keys[name])
	k.keys[name] = slices.Clone(key)
	k.newest = name
	return nil
}

// Use makes a key of the ring the newest; none with an empty name.
func (k *Keys) Use(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.keys[name]; !ok && name != "" {
		return fmt.Errorf("use key %q: %w", name, ErrNoKey)
	}
	k.newest = name
	return nil
}

// Remove forgets a key and overwrites it.
func (k *Keys) Remove(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.keys[name])
	delete(k.keys, name)
	if k.newest == name {
		k.newest = ""
	}
}

// Close forgets all keys and overwrites them. A nil ring has none.
func (k *Keys) Close() {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, b := range k.keys {
		clear(b)
	}
	k.keys, k.newest = nil, ""
}

// Newest is the key added last.
func (k *Keys) Newest() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.newest
}

// Wrap seals a data key.
func (k *Keys) Wrap(name string, dataKey, bound []byte) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key, ok := k.keys[name]
	if !ok {
		return nil, fmt.Errorf("wrap with key %q: %w", name, ErrNoKey)
	}
	a, err := newAEAD(key)
	if err != nil {
		return nil, fmt.Errorf("wrap with key %q: %w", name, err)
	}
	nonce := make([]byte, wrapNonceBytes)
	_, _ = rand.Read(nonce) // never fails
	return a.Seal(nonce, nonce, dataKey, bound), nil
}

// Unwrap opens what Wrap made.
func (k *Keys) Unwrap(name string, wrapped, bound []byte) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key, ok := k.keys[name]
	if !ok {
		return nil, ErrNoKey
	}
	a, err := newAEAD(key)
	if err != nil {
		return nil, fmt.Errorf("unwrap with key %q: %w", name, err)
	}
	if len(wrapped) < wrapNonceBytes {
		return nil, ErrWrongKey
	}
	b, err := a.Open(nil, wrapped[:wrapNonceBytes], wrapped[wrapNonceBytes:], bound)
	if err != nil {
		return nil, ErrWrongKey
	}
	return b, nil
}

// String names the keys and shows none.
func (k *Keys) String() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return "keys(" + strings.Join(slices.Sorted(maps.Keys(k.keys)), ", ") + ")"
}

// GoString is String.
func (k *Keys) GoString() string { return k.String() }

// Format is String, whatever the verb.
func (k *Keys) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(k.String())) }

// MarshalText is String.
func (k *Keys) MarshalText() ([]byte, error) { return []byte(k.String()), nil }
