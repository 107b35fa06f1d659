package archive

import (
	"errors"
	"fmt"

	"github.com/novacron/afterimage/cbt"
)

// Errors of this package. DamageError carries evidence.
var (
	ErrNotFound     = errors.New("no such object in the store")
	ErrTooLarge     = errors.New("the object is larger than it can be")
	ErrName         = errors.New("not a name of an object")
	ErrDamaged      = errors.New("the archive is damaged")
	ErrIncompatible = errors.New("the archive carries a feature that this version does not know")
	ErrLineage      = errors.New("the lineage does not hold the point")
	ErrUnknown      = errors.New("the archive has no such volume")
)

// DamageError names what of an archive failed its check, and where it lies.
type DamageError struct {
	Archive cbt.ID
	Object  string // in the store
	Volume  string // name; empty for the manifest
	Chunk   int64  // index in the volume; -1 for the manifest
	What    string
	Cause   error // of the store, if that could not read it
}

func (e *DamageError) Error() string {
	where := "manifest"
	if e.Chunk >= 0 {
		where = fmt.Sprintf("volume %s, chunk %d", e.Volume, e.Chunk)
	}
	s := fmt.Sprintf("archive %s: %s: object %s: %s", e.Archive.Short(), where, e.Object, e.What)
	if e.Cause != nil {
		s += ": " + e.Cause.Error()
	}
	return s
}

// Unwrap makes errors.Is hold for ErrDamaged and for the cause.
func (e *DamageError) Unwrap() []error {
	if e.Cause == nil {
		return []error{ErrDamaged}
	}
	return []error{ErrDamaged, e.Cause}
}
