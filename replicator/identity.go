package replicator

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Pin names a site's key: SHA-256 over the DER SubjectPublicKeyInfo (RFC 7469,
// section 2.4). The zero Pin names nobody. It is no secret.
type Pin [sha256.Size]byte

const pinPrefix = "sha256:"

// String is "sha256:" and 43 characters of unpadded base64url.
func (p Pin) String() string { return pinPrefix + base64.RawURLEncoding.EncodeToString(p[:]) }

// IsZero reports whether p names nobody.
func (p Pin) IsZero() bool { return p == Pin{} }

// MarshalText and UnmarshalText are String and ParsePin.
func (p Pin) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText accepts what ParsePin does.
func (p *Pin) UnmarshalText(b []byte) error {
	v, err := ParsePin(string(b))
	if err == nil {
		*p = v
	}
	return err
}

// ParsePin reads what String prints; the digest may also be 64 hexadecimal digits.
func ParsePin(s string) (Pin, error) {
	var p Pin
	text, ok := strings.CutPrefix(s, pinPrefix)
	if !ok {
		return p, fmt.Errorf("parse pin %q: want %q and a digest", s, pinPrefix)
	}
	var raw []byte
	var err error
	if len(text) == hex.EncodedLen(len(p)) {
		raw, err = hex.DecodeString(text)
	} else {
		raw, err = base64.RawURLEncoding.Strict().DecodeString(text)
	}
	if err != nil {
		return p, fmt.Errorf("parse pin %q: %w", s, err)
	}
	if len(raw) != len(p) {
		return p, fmt.Errorf("parse pin %q: digest of %d bytes, want %d", s, len(raw), len(p))
	}
	copy(p[:], raw)
	if p.IsZero() {
		return p, fmt.Errorf("parse pin %q: the zero digest names nobody", s)
	}
	return p, nil
}

// Identity is the key by which peers know this site. It is immutable.
type Identity struct {
	key ed25519.PrivateKey
	pin Pin
}

// Pin is what peers write into their configuration.
func (id *Identity) Pin() Pin { return id.pin }

// Public is the key itself.
func (id *Identity) Public() ed25519.PublicKey { return id.key.Public().(ed25519.PublicKey) }

// Sign signs message, which begins with a word of its own for every use; TLS 1.3 puts
// 64 spaces before what it signs with the same key.
func (id *Identity) Sign(message []byte) []byte { return ed25519.Sign(id.key, message) }

// NewIdentity draws a key that is kept nowhere.
func NewIdentity() (*Identity, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate identity: %w", err)
	}
	return identityOf(key)
}

func identityOf(key ed25519.PrivateKey) (*Identity, error) {
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	return &Identity{key: key, pin: sha256.Sum256(spki)}, nil
}

const identityBlock = "PRIVATE KEY"

// LoadOrCreateIdentity reads the key at path (PEM, PKCS #8, ed25519), or draws
// one and keeps it there, mode 0600 and durable before it returns. A key that
// others may read is refused. Two processes that race end up with one key.
func LoadOrCreateIdentity(path string) (*Identity, error) {
	id, err := loadIdentity(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return id, err
	}
	if id, err = NewIdentity(); err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(id.key)
	if err != nil {
		return nil, fmt.Errorf("encode identity: %w", err)
	}
	err = createDurably(path, pem.EncodeToMemory(&pem.Block{Type: identityBlock, Bytes: der}))
	if errors.Is(err, fs.ErrExist) {
		return loadIdentity(path)
	}
	if err != nil {
		return nil, fmt.Errorf("keep identity: %w", err)
	}
	return id, nil
}

func loadIdentity(path string) (*Identity, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("load identity: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("load identity: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("load identity %s: mode %#o lets others read the key, want 0600", path, info.Mode().Perm())
	}
	if info.Size() > 1<<16 {
		return nil, fmt.Errorf("load identity %s: %d bytes is no key", path, info.Size())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("load identity: %w", err)
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != identityBlock {
		return nil, fmt.Errorf("load identity %s: no PEM block %q", path, identityBlock)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("load identity %s: %w", path, err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("load identity %s: key is %T, want ed25519", path, parsed)
	}
	return identityOf(key)
}

// createDurably writes a file that did not exist: by a link, so that a crash
// leaves either nothing or all of it under path.
func createDurably(path string, data []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".identity-*") // created 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
