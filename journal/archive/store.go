package archive

import (
	"context"
	"fmt"
	"path"
	"path/filepath"
	"strings"
)

// Store is a place for objects. Names are slash-separated and pass CheckName;
// an implementation refuses others with ErrName. All methods are safe for
// concurrent use.
type Store interface {
	// Put makes or replaces an object: on return it is whole and survives the
	// loss of power; before, the old one, if any, is seen.
	Put(ctx context.Context, name string, data []byte) error
	// Get returns an object of at most limit bytes: ErrNotFound, ErrTooLarge.
	Get(ctx context.Context, name string, limit int64) ([]byte, error)
	// List returns the names that begin with prefix, sorted; nothing is no error.
	List(ctx context.Context, prefix string) ([]string, error)
	// Delete removes an object; one that is not there is no error.
	Delete(ctx context.Context, name string) error
}

// longestPart is what file systems take.
const longestPart = 255

// CheckName refuses a name that could mean something outside a store, or that
// one store would take and another not.
func CheckName(name string) error {
	if !filepath.IsLocal(name) || path.Clean(name) != name || name == "." {
		return fmt.Errorf("%w: %q", ErrName, name)
	}
	for part := range strings.SplitSeq(name, "/") {
		if len(part) > longestPart || part[0] == '.' {
			return fmt.Errorf("%w: %q", ErrName, name)
		}
		for _, c := range []byte(part) {
			plain := c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.'
			if !plain {
				return fmt.Errorf("%w: %q", ErrName, name)
			}
		}
	}
	return nil
}
