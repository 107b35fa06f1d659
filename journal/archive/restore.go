package archive

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/blake3"

	"github.com/novacron/afterimage/cbt"
)

// chunk reads and checks chunk c of v.
func (m *Manifest) chunk(ctx context.Context, s Store, v *Volume, c Chunk) ([]byte, error) {
	name := chunkName(m.Identity.Tenant, c.Hash)
	e := v.extent(c.Index)
	damaged := func(what string, cause error) error {
		return &DamageError{Archive: m.ID, Object: name, Volume: v.Name, Chunk: c.Index, What: what, Cause: cause}
	}
	p, err := s.Get(ctx, name, ChunkBytes)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, damaged("it is missing", err)
	case errors.Is(err, ErrTooLarge):
		return nil, damaged("it is too large", err)
	case err != nil:
		return nil, fmt.Errorf("read chunk %d of volume %s: %w", c.Index, v.Name, err)
	case int64(len(p)) != e.Length:
		return nil, damaged(fmt.Sprintf("it has %d bytes instead of %d", len(p), e.Length), nil)
	}
	if h := Hash(blake3.Sum256(p)); h != c.Hash {
		return nil, damaged("its hash is "+h.String(), nil)
	}
	return p, nil
}

// Checked is what Verify went through.
type Checked struct {
	Chunks int64
	Bytes  int64          // stored, of all chunks
	Damage []*DamageError // every chunk that failed, in the manifest's order
}

// Verify reads all of an archive. Damage of chunks is in Checked, and the error
// then wraps ErrDamaged; with another error, or a damaged manifest, it broke off.
func Verify(ctx context.Context, s Store, tenant, id cbt.ID) (Checked, error) {
	var sum Checked
	m, err := Read(ctx, s, tenant, id)
	if err != nil {
		return sum, fmt.Errorf("verify: %w", err)
	}
	for i := range m.Volumes {
		v := &m.Volumes[i]
		for _, c := range v.Chunks {
			p, err := m.chunk(ctx, s, v, c)
			var d *DamageError
			if err != nil && !errors.As(err, &d) {
				return sum, fmt.Errorf("verify: %w", err)
			}
			if d != nil {
				sum.Damage = append(sum.Damage, d)
			}
			sum.Chunks++
			sum.Bytes += int64(len(p))
		}
	}
	if n := len(sum.Damage); n > 0 {
		return sum, fmt.Errorf("verify: %d of %d chunks, the first: %w", n, sum.Chunks, sum.Damage[0])
	}
	return sum, nil
}

// Restore writes a volume of an archive to w, and what is zeros too unless w is
// blank, that is, reads as zeros wherever nothing was written. Only checked bytes
// are written; a damaged chunk ends it. Making w durable, and as long as the
// volume, is the caller's.
func Restore(ctx context.Context, s Store, tenant, id cbt.ID, volume cbt.VolumeID, w io.WriterAt, blank bool) error {
	m, err := Read(ctx, s, tenant, id)
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	for i := range m.Volumes {
		if m.Volumes[i].ID == volume {
			if err := m.restore(ctx, s, &m.Volumes[i], w, blank); err != nil {
				return fmt.Errorf("restore volume %s: %w", m.Volumes[i].Name, err)
			}
			return nil
		}
	}
	return fmt.Errorf("restore volume %s from archive %s: %w", volume, id.Short(), ErrUnknown)
}

func (m *Manifest) restore(ctx context.Context, s Store, v *Volume, w io.WriterAt, blank bool) error {
	var zeros []byte
	if !blank {
		zeros = make([]byte, ChunkBytes)
	}
	left := v.Chunks
	for i := int64(0); i*ChunkBytes < v.Size; i++ {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		e := v.extent(i)
		var p []byte
		switch {
		case len(left) > 0 && left[0].Index == i:
			var err error
			if p, err = m.chunk(ctx, s, v, left[0]); err != nil {
				return err
			}
			left = left[1:]
		case blank:
			continue
		default:
			p = zeros[:e.Length]
		}
		if _, err := w.WriteAt(p, e.Offset); err != nil {
			return err
		}
	}
	return nil
}
