package site

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// A change of this site's key (replicator/rotate.go) goes on over restarts, of either end:
//
//  1. KEY.next is drawn, durably, then the rotation is noted in peers.json;
//  2. each peer that has pinned it is noted there as well;
//  3. when all have, KEY.next is renamed to KEY, the rotation is taken out, and every
//     session begins anew. A site that finds its key to be the next one takes it out.
//
// A peer notes the next key in peers.json before it answers, and makes it the only one
// when it has seen it.

// keptRotation is a change of key that is under way.
type keptRotation struct {
	Next      string    `json:"next"` // pin
	Time      time.Time `json:"time"`
	Confirmed []string  `json:"confirmed,omitempty"` // peers
}

func nextKey(c *config.Config) string { return c.Key + ".next" }

// firstKey is the site's key before its first change. The ledger of reports began with
// it and goes on with it: what was vouched for stays true. Peers know it by then as one
// that was this site's; it opens no session.
func firstKey(c *config.Config) string { return c.Key + ".ledger" }

// ledgerKey signs the ledger of a site whose key is now.
func ledgerKey(c *config.Config, now *replicator.Identity) (*replicator.Identity, error) {
	if _, err := os.Stat(firstKey(c)); errors.Is(err, fs.ErrNotExist) {
		return now, nil
	}
	return replicator.LoadOrCreateIdentity(firstKey(c))
}

// resumeRotation goes on with a change of key that an earlier life began.
func (s *Site) resumeRotation() error {
	rotation := s.pairs.rotation()
	switch {
	case rotation == nil:
		return nil
	case samePin(rotation.Next, s.self().Pin().String()):
		return s.pairs.rotate(nil)
	}
	id, err := replicator.LoadOrCreateIdentity(nextKey(s.cfg))
	if err != nil {
		return fault.Wrap(fault.SiteKey, "read the site's next key", err)
	}
	if !samePin(rotation.Next, id.Pin().String()) { // nobody knows this one
		rotation.Next, rotation.Confirmed = id.Pin().String(), nil
		if err := s.pairs.rotate(rotation); err != nil {
			return err
		}
	}
	s.repl.Announce(id.Pin())
	return nil
}

// Rotate implements control.API.
func (s *Site) Rotate(_ context.Context, q control.RotateRequest) (control.Rotation, error) {
	const what = "change the site's key"
	if !s.running() {
		return control.Rotation{}, fault.New(fault.NeedsDaemon, what, "its sessions tell the peers of the next key")
	}
	if s.pairs.rotation() == nil {
		id, err := replicator.LoadOrCreateIdentity(nextKey(s.cfg))
		if err == nil {
			err = s.pairs.rotate(&keptRotation{Next: id.Pin().String(), Time: s.o.Now()})
		}
		if err != nil {
			return control.Rotation{}, explain(what, err)
		}
		s.o.Log.Warn("change of key begins", "pin", s.self().Pin().String(), "next", id.Pin().String())
		s.repl.Announce(id.Pin())
	}
	r := s.rotationNow()
	if len(r.Waiting) == 0 || q.Now {
		if err := s.switchKey(); err != nil {
			return r, explain(what, err)
		}
		r = s.rotationNow()
	}
	return r, nil
}

// rotationNow says how far a change of key has come.
func (s *Site) rotationNow() control.Rotation {
	r := control.Rotation{Pin: s.self().Pin().String(), Waiting: []string{}}
	rotation := s.pairs.rotation()
	if rotation == nil {
		return r
	}
	r.Next, r.Since = rotation.Next, &rotation.Time
	for _, p := range s.cfg.Peers {
		if s.pairs.of(p).Pin != "" && !slices.Contains(rotation.Confirmed, p.Name) {
			r.Waiting = append(r.Waiting, p.Name)
		}
	}
	return r
}

// nextKeyConfirmed is Options.Confirmed of the replicator.
func (s *Site) nextKeyConfirmed(peer string, next replicator.Pin) {
	err := s.pairs.confirm(peer, next)
	if err == nil && len(s.rotationNow().Waiting) == 0 {
		err = s.switchKey()
	}
	if err != nil {
		s.o.Log.Error("change of key stands still", "peer", peer, "err", err)
	}
}

// switchKey shows the next key in place of the present one.
func (s *Site) switchKey() error {
	s.switching.Lock()
	defer s.switching.Unlock()
	rotation := s.pairs.rotation()
	if rotation == nil {
		return nil // somebody else has
	}
	id, err := replicator.LoadOrCreateIdentity(nextKey(s.cfg))
	if err != nil {
		return err
	}
	if !samePin(rotation.Next, id.Pin().String()) {
		return fmt.Errorf("%s is not the key that was announced", nextKey(s.cfg))
	}
	if err := os.Link(s.cfg.Key, firstKey(s.cfg)); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := os.Rename(nextKey(s.cfg), s.cfg.Key); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(s.cfg.Key)); err != nil {
		return err
	}
	if err := s.repl.SetIdentity(id); err != nil {
		return err
	}
	s.identity.Store(id)
	s.o.Log.Warn("site has another key", "pin", id.Pin().String())
	return s.pairs.rotate(nil)
}

// succeeded is Options.Successor of the replicator: a peer will change its key.
func (s *Site) succeeded(peer string, next replicator.Pin) error {
	if err := s.pairs.succeed(peer, next); err != nil {
		return err
	}
	s.o.Log.Warn("peer is about to change its key", "peer", peer, "next", next.String())
	return s.peersChanged()
}

// keySeen is Options.Seen of the replicator: a peer that has changed its key has no other.
func (s *Site) keySeen(peer string, pin replicator.Pin) {
	c, ok := s.cfg.Peer(peer)
	if !ok {
		return
	}
	changed, err := s.pairs.seen(c, pin)
	if changed && err == nil {
		s.o.Log.Warn("peer has changed its key", "peer", peer, "pin", pin.String())
		err = s.peersChanged()
	}
	if err != nil {
		s.o.Log.Error("peer's old key is not dropped", "peer", peer, "err", err)
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// rotation is the one under way, nil where there is none.
func (p *pairing) rotation() *keptRotation {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kept.Rotation == nil {
		return nil
	}
	r := *p.kept.Rotation
	r.Confirmed = slices.Clone(r.Confirmed)
	return &r
}

// rotate notes a rotation, or with nil that none is under way, durably.
func (p *pairing) rotate(r *keptRotation) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.kept.Rotation
	p.kept.Rotation = r
	err := p.keepLocked()
	if err != nil {
		p.kept.Rotation = was
	}
	return err
}

// confirm notes that a peer has pinned this site's next key, durably.
func (p *pairing) confirm(peer string, next replicator.Pin) error {
	r := p.rotation()
	if r == nil || !samePin(r.Next, next.String()) || slices.Contains(r.Confirmed, peer) {
		return nil
	}
	r.Confirmed = append(r.Confirmed, peer)
	return p.rotate(r)
}

// succeed pins a peer's next key beside the present one, durably. A key that was taken
// back stays so.
func (p *pairing) succeed(peer string, next replicator.Pin) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if slices.ContainsFunc(p.kept.Revoked, func(r string) bool { return samePin(r, next.String()) }) {
		return replicator.ErrRevoked
	}
	was, had := p.kept.Next[peer]
	if p.kept.Next == nil {
		p.kept.Next = map[string]string{}
	}
	p.kept.Next[peer] = next.String()
	err := p.keepLocked()
	if err != nil {
		delete(p.kept.Next, peer)
		if had {
			p.kept.Next[peer] = was
		}
	}
	return err
}

// seen makes the key by which a peer shows itself its only one, if that is its next.
func (p *pairing) seen(c config.Peer, pin replicator.Pin) (changed bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !samePin(p.kept.Next[c.Name], pin.String()) {
		return false, nil
	}
	delete(p.kept.Next, c.Name)
	if was := cmp.Or(p.kept.Paired[c.Name].Pin, c.Pin); !slices.Contains(p.kept.Former[c.Name], was) {
		if p.kept.Former == nil {
			p.kept.Former = map[string][]string{}
		}
		p.kept.Former[c.Name] = append(p.kept.Former[c.Name], was)
	}
	address := c.Address
	if address == "" {
		address = p.kept.Paired[c.Name].Address
	}
	return true, p.pairLocked(c.Name, pin, address)
}

// formerly reports that a key was the peer's until it changed that.
func (p *pairing) formerly(peer, pin string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.kept.Former[peer], func(f string) bool { return samePin(f, pin) })
}

// nextOf is a peer's next key, zero where it has announced none.
func (p *pairing) nextOf(peer string) replicator.Pin {
	p.mu.Lock()
	defer p.mu.Unlock()
	pin, err := replicator.ParsePin(p.kept.Next[peer])
	if err != nil {
		return replicator.Pin{}
	}
	return pin
}
