package site

import (
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/fault"
)

// named derives an id from names, so that two sites that configure the same
// tenant and group mean the same one without having met. Epoch ids are random:
// two unrelated groups of one name are told apart at first contact.
func named(parts ...string) (id cbt.ID) {
	h := sha256.New()
	for _, p := range parts {
		h.Write([]byte(p))
		h.Write([]byte{0})
	}
	copy(id[:], h.Sum(nil))
	return id
}

// identityOf is the journal's name of a group. A one-host group has one stream.
func identityOf(g config.Group) journal.Identity {
	return journal.Identity{
		Tenant: named("tenant", g.Tenant),
		Group:  named("group", g.Tenant, g.Name),
		Stream: named("stream", g.Tenant, g.Name, "0"),
	}
}

// volumeOf is the journal's name of a volume.
func volumeOf(g config.Group, v config.Volume) cbt.Volume {
	return cbt.Volume{ID: cbt.VolumeID(named("volume", g.Tenant, g.Name, v.Name)), Name: v.Name, Size: int64(v.Size)}
}

// Pin is what peers write into their configuration for the site of c. It draws
// the site's key on first use.
func Pin(c *config.Config) (string, error) {
	id, err := identify(c)
	if err != nil {
		return "", err
	}
	return id.Pin().String(), nil
}

func identify(c *config.Config) (*replicator.Identity, error) {
	if err := os.MkdirAll(filepath.Dir(c.Key), 0o700); err != nil {
		return nil, fault.Wrap(fault.SiteKey, "make the directory of "+c.Key, err)
	}
	id, err := replicator.LoadOrCreateIdentity(c.Key)
	if err != nil {
		return nil, fault.Wrap(fault.SiteKey, "read the site's key", err)
	}
	return id, nil
}

// self is the key that a running site shows.
func (s *Site) self() *replicator.Identity { return s.identity.Load() }

// knownPin is Pin without drawing a key; empty where there is none yet.
func knownPin(c *config.Config) string {
	if _, err := os.Stat(c.Key); errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	pin, err := Pin(c)
	if err != nil {
		return ""
	}
	return pin
}
