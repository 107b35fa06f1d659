package archive

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/zeebo/blake3"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

// View is a group's image at a point; a *journal.View is one.
type View interface {
	Point() journal.Point
	Volumes() []cbt.Volume
	ReadAt(ctx context.Context, v cbt.VolumeID, p []byte, off int64) error
	Status(ctx context.Context, v cbt.VolumeID, e cbt.Extent) ([]journal.StatusRun, error)
}

// Options of Create.
type Options struct {
	Identity journal.Identity  // whose journal the view is of
	Lineage  journal.Lineage   // that holds the point; what lies after it is cut off
	Machines map[string][]byte // definitions at the point, by name
	Now      func() time.Time  // nil: time.Now
	// Stored, if not nil, is told of each chunk that was put.
	Stored func(v cbt.VolumeID, e cbt.Extent)
}

// Create archives a view. The archive is there once Create returns nil; after
// an error it is not.
func Create(ctx context.Context, s Store, view View, o Options) (*Manifest, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	m := &Manifest{
		Version: formatVersion, ID: cbt.NewID(), Kind: "full", Identity: o.Identity, Created: o.Now().UTC(),
		Point: view.Point(), ChunkBytes: ChunkBytes, Machines: o.Machines, Lineage: []Reign{},
	}
	at := m.Point.Position
	if !at.IsZero() && !o.Lineage.Holds(at) {
		return nil, fmt.Errorf("create archive of %s: %w", at, ErrLineage)
	}
	for _, i := range o.Lineage.Until(at.Seq) {
		m.Lineage = append(m.Lineage, Reign(i))
	}
	put := make(map[Hash]bool)
	for _, v := range view.Volumes() {
		av := Volume{ID: v.ID, Name: v.Name, Size: v.Size, Chunks: []Chunk{}}
		if err := store(ctx, s, view, &o, &av, put); err != nil {
			return nil, fmt.Errorf("create archive: volume %s: %w", v.Name, err)
		}
		m.Volumes = append(m.Volumes, av)
	}
	if err := m.check(o.Identity.Tenant, m.ID); err != nil {
		return nil, fmt.Errorf("create archive: %w", err)
	}
	b, err := encodeManifest(m)
	if err == nil {
		err = s.Put(ctx, manifestName(o.Identity.Tenant, m.ID), b)
	}
	if err != nil {
		return nil, fmt.Errorf("create archive: %w", err)
	}
	return m, nil
}

// store puts the chunks of v and lists them in it.
func store(ctx context.Context, s Store, view View, o *Options, v *Volume, put map[Hash]bool) error {
	buf := make([]byte, ChunkBytes)
	for i := int64(0); i*ChunkBytes < v.Size; i++ {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		e := v.extent(i)
		runs, err := view.Status(ctx, v.ID, e)
		if err != nil {
			return err
		}
		data := false
		for _, r := range runs {
			data = data || r.Data
		}
		if !data {
			continue
		}
		p := buf[:e.Length]
		if err := view.ReadAt(ctx, v.ID, p, e.Offset); err != nil {
			return err
		}
		if isZero(p) {
			continue
		}
		h := Hash(blake3.Sum256(p))
		if !put[h] {
			if err := s.Put(ctx, chunkName(o.Identity.Tenant, h), p); err != nil {
				return err
			}
			put[h] = true
			if o.Stored != nil {
				o.Stored(v.ID, e)
			}
		}
		v.Chunks = append(v.Chunks, Chunk{i, h})
	}
	return nil
}

func isZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// Entry is one archive of a list.
type Entry struct {
	ID       cbt.ID
	Manifest *Manifest // nil with Err
	Err      error     // it is there, but damaged or incompatible
}

// List reads the manifests of a tenant's archives.
func List(ctx context.Context, s Store, tenant cbt.ID) ([]Entry, error) {
	prefix := manifestPrefix(tenant)
	names, err := s.List(ctx, prefix)
	if err != nil {
		return nil, fmt.Errorf("list archives: %w", err)
	}
	var out []Entry
	for _, name := range names {
		id, err := cbt.ParseID(strings.TrimSuffix(strings.TrimPrefix(name, prefix), ".json"))
		if err != nil || name != manifestName(tenant, id) {
			continue // not ours
		}
		m, err := Read(ctx, s, tenant, id)
		if errors.Is(err, ErrNotFound) {
			continue // deleted meanwhile
		}
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("list archives: %w", context.Cause(ctx))
		}
		out = append(out, Entry{id, m, err})
	}
	return out, nil
}

// Read returns an archive's manifest, checked.
func Read(ctx context.Context, s Store, tenant, id cbt.ID) (*Manifest, error) {
	b, err := s.Get(ctx, manifestName(tenant, id), maxManifestBytes)
	if errors.Is(err, ErrTooLarge) {
		return nil, &DamageError{Archive: id, Object: manifestName(tenant, id), Chunk: -1, What: "it cannot be read", Cause: err}
	}
	if err != nil {
		return nil, fmt.Errorf("read archive %s: %w", id.Short(), err)
	}
	return decodeManifest(b, tenant, id)
}
