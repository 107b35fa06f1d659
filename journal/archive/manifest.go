package archive

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/zeebo/blake3"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

// ChunkBytes is the size of a chunk, but for a volume's last one.
const ChunkBytes = 4 << 20

const (
	formatVersion = 1
	// A manifest of 2^20 chunks, 4 TiB of data, has about 90 MB.
	maxManifestBytes = 256 << 20
)

// Hash is BLAKE3-256.
type Hash [32]byte

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText is String.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText accepts what String prints.
func (h *Hash) UnmarshalText(b []byte) error {
	if hex.DecodedLen(len(b)) != len(h) || len(b)%2 != 0 {
		return fmt.Errorf("parse hash: want %d hexadecimal digits", 2*len(h))
	}
	_, err := hex.Decode(h[:], b)
	return err
}

// Features are what a reader must know: all of Incompat to read at all, all of
// ROCompat to write; Compat is for information.
type Features struct {
	Incompat uint32 `json:"incompat"`
	ROCompat uint32 `json:"ro_compat"`
	Compat   uint32 `json:"compat"`
}

// Manifest says what an archive holds.
type Manifest struct {
	Version    int               `json:"version"`
	Features   Features          `json:"features"`
	ID         cbt.ID            `json:"id"`
	Kind       string            `json:"kind"`             // full
	Parent     *cbt.ID           `json:"parent,omitempty"` // none for full
	Identity   journal.Identity  `json:"identity"`         // tenant, group, stream
	Created    time.Time         `json:"created"`
	Point      journal.Point     `json:"point"`
	Lineage    []Reign           `json:"lineage"` // that the point ends
	ChunkBytes int64             `json:"chunk_bytes"`
	Volumes    []Volume          `json:"volumes"`
	Machines   map[string][]byte `json:"machines,omitempty"` // definitions at the point, by name
}

// Reign is an interval of a lineage.
type Reign struct {
	Epoch  journal.EpochID `json:"epoch"`
	Number uint64          `json:"number"`
	First  journal.Seq     `json:"first"`
	Last   journal.Seq     `json:"last"`
}

// Volume is one disk of an archive. Chunks ascend; what is missing is zeros.
type Volume struct {
	ID     cbt.VolumeID `json:"id"`
	Name   string       `json:"name"`
	Size   int64        `json:"size"` // bytes
	Chunks []Chunk      `json:"chunks"`
}

// Chunk is ChunkBytes of a volume from Index*ChunkBytes on, or up to its end.
type Chunk struct {
	Index int64 `json:"index"`
	Hash  Hash  `json:"blake3"`
}

// extent is the bytes of v that its chunk i holds.
func (v Volume) extent(i int64) cbt.Extent {
	off := i * ChunkBytes
	return cbt.Extent{Offset: off, Length: min(ChunkBytes, v.Size-off)}
}

func chunkName(tenant cbt.ID, h Hash) string {
	s := h.String()
	return tenant.String() + "/chunks/" + s[:2] + "/" + s
}

func manifestPrefix(tenant cbt.ID) string { return tenant.String() + "/archives/" }
func manifestName(tenant cbt.ID, id cbt.ID) string {
	return manifestPrefix(tenant) + id.String() + ".json"
}

// sealed is a manifest as stored: the hash is over its bytes.
type sealed struct {
	Manifest json.RawMessage `json:"manifest"`
	BLAKE3   Hash            `json:"blake3"`
}

func encodeManifest(m *Manifest) ([]byte, error) {
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	b, err := json.Marshal(sealed{raw, blake3.Sum256(raw)})
	if err == nil && len(b) > maxManifestBytes {
		err = ErrTooLarge
	}
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	return b, nil
}

// decodeManifest checks everything that Verify and Restore rely on.
func decodeManifest(b []byte, tenant, id cbt.ID) (*Manifest, error) {
	damaged := func(what string, cause error) error {
		return &DamageError{Archive: id, Object: manifestName(tenant, id), Chunk: -1, What: what, Cause: cause}
	}
	var s sealed
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, damaged("no manifest", err)
	}
	if h := Hash(blake3.Sum256(s.Manifest)); h != s.BLAKE3 {
		return nil, damaged("its hash is "+h.String(), nil)
	}
	var head struct {
		Version  int
		Features Features
	}
	if err := json.Unmarshal(s.Manifest, &head); err != nil {
		return nil, damaged("no manifest", err)
	}
	if head.Version != formatVersion || head.Features.Incompat != 0 {
		return nil, fmt.Errorf("archive %s: version %d, features %#x: %w", id.Short(), head.Version, head.Features.Incompat, ErrIncompatible)
	}
	m := new(Manifest)
	if err := json.Unmarshal(s.Manifest, m); err != nil {
		return nil, damaged("no manifest", err)
	}
	if err := m.check(tenant, id); err != nil {
		return nil, damaged("a manifest that cannot be", err)
	}
	return m, nil
}

func (m *Manifest) check(tenant, id cbt.ID) error {
	switch {
	case m.ID != id || m.Identity.Tenant != tenant:
		return fmt.Errorf("it is archive %s of tenant %s", m.ID, m.Identity.Tenant)
	case m.Kind != "full" || m.Parent != nil:
		return fmt.Errorf("kind %q", m.Kind)
	case m.ChunkBytes != ChunkBytes:
		return fmt.Errorf("chunks of %d bytes", m.ChunkBytes)
	}
	seen := make(map[cbt.VolumeID]bool)
	for _, v := range m.Volumes {
		if seen[v.ID] || v.Size < 0 {
			return fmt.Errorf("volume %s twice, or of %d bytes", v.ID, v.Size)
		}
		seen[v.ID] = true
		next := int64(0)
		for _, c := range v.Chunks {
			if c.Index < next || c.Index > (v.Size-1)/ChunkBytes || v.Size == 0 {
				return fmt.Errorf("chunk %d of volume %s of %d bytes", c.Index, v.ID, v.Size)
			}
			next = c.Index + 1
		}
	}
	return nil
}
