package site

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// pairing is the keys of the peers. The configuration names the peers and says what
// they may touch: the groups whose peers: name them. A peer's key is there too, or it
// came by a token and is kept in this file below the data directory, which also
// remembers which keys are accepted no more.
type pairing struct {
	file string
	now  func() time.Time

	mu   sync.Mutex // guards all below
	kept keptPairs
}

// keptPairs is the file.
type keptPairs struct {
	Paired  map[string]pairedPeer `json:"paired"`
	Revoked []string              `json:"revoked,omitempty"` // pins, of the configuration too
	Next    map[string]string     `json:"next,omitempty"`    // pins that peers have announced, by peer
	Former  map[string][]string   `json:"former,omitempty"`  // pins that peers had; good for their ledgers alone

	Rotation *keptRotation `json:"rotation,omitempty"` // of this site's own key

	Invites map[string]keptInvite `json:"invites,omitempty"` // that are open, by the hash of their secret, which nobody keeps
	Limits  map[string]keptLimit  `json:"limits,omitempty"`  // set by a person: see limitKey
}

type pairedPeer struct {
	Pin     string    `json:"pin"`
	Address string    `json:"address,omitempty"`
	Time    time.Time `json:"time"`
}

type keptInvite struct {
	Peer    string    `json:"peer"`
	Expires time.Time `json:"expires"`
}

// inviteKey is what an invitation is kept by.
func inviteKey(s replicator.Secret) string {
	h := s.Hash()
	return hex.EncodeToString(h[:])
}

const maxInvites = 64

func openPairing(c *config.Config, now func() time.Time) (*pairing, error) {
	p := &pairing{file: filepath.Join(c.Data, "peers.json"), now: now, kept: keptPairs{Paired: map[string]pairedPeer{}, Invites: map[string]keptInvite{}}}
	b, err := os.ReadFile(p.file)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &p.kept)
	}
	if err != nil {
		return nil, fault.Wrap(fault.SiteKey, "read the peers' keys in "+p.file, err)
	}
	if p.kept.Paired == nil {
		p.kept.Paired = map[string]pairedPeer{}
	}
	if p.kept.Invites == nil {
		p.kept.Invites = map[string]keptInvite{}
	}
	maps.DeleteFunc(p.kept.Invites, func(_ string, i keptInvite) bool { return !now().Before(i.Expires) })
	return p, nil
}

// keepLocked makes what is kept durable.
func (p *pairing) keepLocked() error {
	b, err := json.MarshalIndent(p.kept, "", "  ")
	if err != nil {
		return err
	}
	tmp := p.file + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, p.file); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(p.file))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// of is c with the key and the address under which the peer is known now; without a
// pin it is not paired.
func (p *pairing) of(c config.Peer) config.Peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	if k, ok := p.kept.Paired[c.Name]; ok {
		c.Pin = k.Pin
		if c.Address == "" {
			c.Address = k.Address
		}
	}
	if slices.ContainsFunc(p.kept.Revoked, func(r string) bool { return samePin(r, c.Pin) }) {
		c.Pin = ""
	}
	return c
}

func samePin(a, b string) bool {
	x, err := replicator.ParsePin(a)
	y, berr := replicator.ParsePin(b)
	return err == nil && berr == nil && x == y
}

// pair pins a key for a peer, durably. A key that was revoked is accepted again: that
// is what a person asks for with a new token.
func (p *pairing) pair(name string, pin replicator.Pin, address string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pairLocked(name, pin, address)
}

func (p *pairing) pairLocked(name string, pin replicator.Pin, address string) error {
	was, revoked := p.kept.Paired[name], p.kept.Revoked
	p.kept.Paired[name] = pairedPeer{Pin: pin.String(), Address: address, Time: p.now()}
	p.kept.Revoked = slices.DeleteFunc(slices.Clone(revoked), func(r string) bool { return samePin(r, pin.String()) })
	err := p.keepLocked()
	if err != nil {
		p.kept.Paired[name], p.kept.Revoked = was, revoked
		if was == (pairedPeer{}) {
			delete(p.kept.Paired, name)
		}
	}
	return err
}

// revoke accepts a peer's keys no more, durably: neither by a token nor by configuration.
func (p *pairing) revoke(c config.Peer) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := p.kept.Paired[c.Name]
	for _, pin := range []string{c.Pin, k.Pin, p.kept.Next[c.Name]} {
		if pin != "" && !slices.Contains(p.kept.Revoked, pin) {
			p.kept.Revoked = append(p.kept.Revoked, pin)
		}
	}
	delete(p.kept.Paired, c.Name)
	delete(p.kept.Next, c.Name)
	delete(p.kept.Former, c.Name)
	maps.DeleteFunc(p.kept.Invites, func(_ string, i keptInvite) bool { return i.Peer == c.Name })
	return p.keepLocked()
}

// invite takes note of an invitation, durably: a token that was handed out is good until it
// expires, whatever becomes of this process.
func (p *pairing) invite(i replicator.Invite) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := maps.Clone(p.kept.Invites)
	maps.DeleteFunc(p.kept.Invites, func(_ string, o keptInvite) bool {
		return o.Peer == i.Peer || !p.now().Before(o.Expires) // a newer one replaces it
	})
	if len(p.kept.Invites) >= maxInvites {
		return fmt.Errorf("%d invitations are open", maxInvites)
	}
	p.kept.Invites[inviteKey(i.Secret)] = keptInvite{i.Peer, i.Expires}
	err := p.keepLocked()
	if err != nil {
		p.kept.Invites = was
	}
	return err
}

// inviting reports that somebody with a token may come in.
func (p *pairing) inviting() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.kept.Invites) > 0
}

// take judges a caller with a token, and pins its key.
func (p *pairing) take(j replicator.Joiner) (peer string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := inviteKey(j.Secret)
	i, ok := p.kept.Invites[h]
	switch {
	case !ok:
		return "", replicator.ErrInvite
	case !p.now().Before(i.Expires):
		return "", replicator.ErrInviteExpired
	case i.Peer != j.Site:
		return "", fmt.Errorf("%w: it was made for %s, the caller is %s", replicator.ErrInvite, i.Peer, j.Site)
	}
	delete(p.kept.Invites, h) // with the key, in one write: it is good once
	if err := p.pairLocked(i.Peer, j.Pin, j.Address); err != nil {
		p.kept.Invites[h] = i
		return "", err
	}
	return i.Peer, nil
}

// joining is Options.Join of the replicator.
func (s *Site) joining(j replicator.Joiner) error {
	peer, err := s.pairs.take(j)
	if err != nil {
		return err
	}
	s.o.Log.Info("peer paired", "peer", peer, "pin", j.Pin.String())
	return s.peersChanged()
}

// peersChanged has the replicator go by the keys as they are now.
func (s *Site) peersChanged() error {
	peers, err := s.pairedPeers()
	if err == nil {
		err = s.repl.SetPeers(peers)
	}
	if err == nil {
		s.repl.Refresh()
	}
	return err
}

// Invite implements control.API.
func (s *Site) Invite(_ context.Context, q control.InviteRequest) (control.Invited, error) {
	what := "invite " + q.Peer
	if _, ok := s.cfg.Peer(q.Peer); !ok {
		return control.Invited{}, fault.New(fault.PeerUnknown, what, "the configuration names no such peer").Advise("Add it to peers: and to the peers: of its groups, and start the daemon again; a pin is not needed.")
	}
	if !s.running() {
		return control.Invited{}, fault.New(fault.NeedsDaemon, what, "the daemon answers who comes with the token")
	}
	for _, a := range q.Addresses {
		if err := callableAt(a); err != nil {
			return control.Invited{}, fault.New(fault.Usage, what, "%v", err).Advise("HOST:PORT, as site-a.example:7700.")
		}
	}
	addresses := q.Addresses
	if len(addresses) == 0 {
		addresses = s.callable()
	}
	if len(addresses) == 0 || s.cfg.Listen == "" {
		return control.Invited{}, fault.New(fault.ConfigAbsent, what, "this site has no listen: address that could be called").Advise("Set listen:, or invite from the other site.")
	}
	i := replicator.NewInvite(s.cfg.Site, q.Peer, addresses, s.self().Pin(), s.o.Now().Add(time.Duration(q.ForSeconds*float64(time.Second))))
	token, err := i.Token()
	if err == nil {
		err = s.pairs.invite(i)
	}
	if err != nil {
		return control.Invited{}, explain(what, err)
	}
	return control.Invited{Peer: q.Peer, Token: token, Addresses: addresses, Expires: i.Expires}, nil
}

// callableAt is what is wrong with an address that a peer is to call.
func callableAt(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || host == "" {
		return fmt.Errorf("address %s: no host and port", address)
	}
	return nil
}

// callable is where this site can be called: its listen: address or, where that names
// no host, its addresses.
func (s *Site) callable() []string {
	s.mu.Lock()
	addr := s.addr
	s.mu.Unlock()
	if addr == nil {
		return nil
	}
	host, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		return nil
	}
	if ip := net.ParseIP(host); ip != nil && !ip.IsUnspecified() {
		return []string{addr.String()}
	}
	var out []string
	all, _ := net.InterfaceAddrs() // none is as good as an error: the caller says so
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() && len(out) < 4 {
			out = append(out, net.JoinHostPort(n.IP.String(), port))
		}
	}
	return out
}

// Join implements control.API.
func (s *Site) Join(ctx context.Context, q control.JoinRequest) (control.Joined, error) {
	const what = "join by token"
	i, err := replicator.ParseInvite(q.Token)
	if err != nil {
		return control.Joined{}, explain(what, err)
	}
	if _, ok := s.cfg.Peer(i.Site); !ok {
		return control.Joined{}, fault.New(fault.PeerUnknown, what, "the token is of site %s, which the configuration does not name", i.Site).Advise("Add %s to peers: and to the peers: of its groups; a pin is not needed.", i.Site)
	}
	if i.Peer != s.cfg.Site {
		return control.Joined{}, fault.New(fault.TokenTrouble, what, "it was made for site %s, this one is %s", i.Peer, s.cfg.Site)
	}
	if !s.running() {
		return control.Joined{}, fault.New(fault.NeedsDaemon, what, "the daemon calls the other site")
	}
	own := ""
	if s.cfg.Listen != "" {
		if at := s.callable(); len(at) > 0 {
			own = at[0]
		}
	}
	if err := s.repl.Join(ctx, i, own); err != nil {
		return control.Joined{}, explain(what, err)
	}
	if err := s.pairs.pair(i.Site, i.Pin, i.Addresses[0]); err != nil {
		return control.Joined{}, explain(what, err)
	}
	s.o.Log.Info("peer paired", "peer", i.Site, "pin", i.Pin.String())
	return control.Joined{Peer: i.Site, Pin: i.Pin.String(), Address: i.Addresses[0]}, explain(what, s.peersChanged())
}

// RemovePeer implements control.API.
func (s *Site) RemovePeer(_ context.Context, q control.RemovePeerRequest) (control.Joined, error) {
	what := "remove peer " + q.Peer
	c, ok := s.cfg.Peer(q.Peer)
	if !ok {
		return control.Joined{}, fault.New(fault.PeerUnknown, what, "the configuration names no such peer")
	}
	if !s.running() {
		return control.Joined{}, fault.New(fault.NeedsDaemon, what, "its sessions are the daemon's")
	}
	was := s.pairs.of(c)
	if err := s.pairs.revoke(c); err != nil {
		return control.Joined{}, explain(what, err)
	}
	s.o.Log.Warn("peer removed", "peer", q.Peer, "pin", was.Pin)
	return control.Joined{Peer: q.Peer, Pin: was.Pin, Address: was.Address}, explain(what, s.peersChanged())
}
