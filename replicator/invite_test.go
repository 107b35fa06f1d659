package replicator

import (
	"bytes"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestTokensSurviveCopyingOnlyWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		i := Invite{Site: rapid.StringN(1, 20, 200).Draw(t, "site"), Peer: rapid.StringN(1, 20, 200).Draw(t, "peer"),
			Addresses: rapid.SliceOfN(rapid.StringN(1, 20, 200), 1, maxAddresses).Draw(t, "addresses"), Expires: time.Unix(rapid.Int64Range(0, 1<<40).Draw(t, "expires"), 0)}
		copy(i.Pin[:], bytes.Repeat([]byte{rapid.ByteRange(1, 255).Draw(t, "pin")}, 32))
		copy(i.Secret[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "secret"))
		token, err := i.Token()
		if err != nil {
			t.Fatal(err)
		}
		got, err := ParseInvite(" " + token + "\n")
		if err != nil || got.Site != i.Site || got.Peer != i.Peer || !slices.Equal(got.Addresses, i.Addresses) || got.Pin != i.Pin || got.Secret != i.Secret || !got.Expires.Equal(i.Expires) {
			t.Fatalf("%+v came back as %+v, %v", i, got, err)
		}
		at := rapid.IntRange(0, len(token)-1).Draw(t, "at")
		b := []byte(token)
		b[at] = 'A' + (b[at]-'A'+1)%26
		if string(b) != token {
			if _, err := ParseInvite(string(b)); !errors.Is(err, ErrToken) {
				t.Fatalf("with another letter at %d: %v", at, err)
			}
		}
		if _, err := ParseInvite(token[:at]); !errors.Is(err, ErrToken) {
			t.Fatalf("cut after %d: %v", at, err)
		}
	})
}

func FuzzParseInvite(f *testing.F) {
	token, err := NewInvite("a", "b", []string{"192.0.2.1:7700"}, Pin{1}, time.Unix(1<<31, 0)).Token()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(token)
	f.Fuzz(func(t *testing.T, s string) {
		i, err := ParseInvite(s)
		if err != nil {
			return
		}
		if _, err := i.Token(); err != nil {
			t.Errorf("%+v parses and makes no token: %v", i, err)
		}
	})
}

// inviter keeps invitations as a site does, in memory.
type inviter struct {
	mu     sync.Mutex // guards all below
	open   map[[32]byte]Invite
	joined []Joiner
}

func (i *inviter) inviting() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.open) > 0
}

func (i *inviter) join(j Joiner) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	v, ok := i.open[j.Secret.Hash()]
	switch {
	case !ok || v.Peer != j.Site:
		return ErrInvite
	case !time.Now().Before(v.Expires):
		return ErrInviteExpired
	}
	delete(i.open, j.Secret.Hash())
	i.joined = append(i.joined, j)
	return nil
}

func (i *inviter) came() []Joiner {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.joined)
}

func (i *inviter) add(v Invite) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.open[v.Secret.Hash()] = v
}

// Two sites that never met know each other's keys after one token, and replicate; the
// token is worth nothing then. A removed peer's session ends, and it is not let in.
func TestPairingByToken(t *testing.T) {
	p := newPair(t)
	inv := &inviter{open: map[[32]byte]Invite{}}
	p.replica.o.Inviting, p.replica.o.Join = inv.inviting, inv.join
	p.source.o.Peers, p.replica.o.Peers = nil, nil
	p.from.Append([]byte("x"), 1, time.Now())
	p.up()
	at := p.replica.rep.Addr().String()
	own := p.replica.o.Identity.Pin()
	good := NewInvite("b", "a", []string{at}, own, time.Now().Add(time.Hour))

	if err := p.source.rep.Join(t.Context(), good, ""); !errors.Is(err, ErrInvite) {
		t.Errorf("at a site that invites nobody: %v", err)
	}
	inv.add(good)
	other := good
	other.Pin = mustIdentity(t).Pin()
	var pin *PinError
	if err := p.source.rep.Join(t.Context(), other, ""); !errors.As(err, &pin) {
		t.Errorf("a token with another key: %v", err)
	}
	guess := good
	guess.Secret[0]++
	if err := p.source.rep.Join(t.Context(), guess, ""); !errors.Is(err, ErrInvite) {
		t.Errorf("a guessed secret: %v", err)
	}
	late := NewInvite("b", "a", []string{at}, own, time.Now().Add(-time.Second))
	if err := p.source.rep.Join(t.Context(), late, ""); !errors.Is(err, ErrInviteExpired) {
		t.Errorf("a token that has expired: %v", err)
	}
	inv.add(late)
	unaware := late
	unaware.Expires = time.Now().Add(time.Hour) // a caller that does not look
	if err := p.source.rep.Join(t.Context(), unaware, ""); !errors.Is(err, ErrInviteExpired) {
		t.Errorf("a token that has expired there: %v", err)
	}
	if err := p.source.rep.Join(t.Context(), good, ""); err != nil {
		t.Fatal(err)
	}
	if err := p.source.rep.Join(t.Context(), good, ""); !errors.Is(err, ErrInvite) {
		t.Errorf("a used token: %v", err)
	}
	joined := inv.came()
	if len(joined) != 1 || joined[0].Pin != p.source.o.Identity.Pin() || joined[0].Site != "a" {
		t.Fatalf("joined %+v", joined)
	}

	if err := errors.Join(p.replica.rep.SetPeers([]Peer{{Name: "a", Pin: joined[0].Pin}}),
		p.source.rep.SetPeers([]Peer{{Name: "b", Address: p.relay.address(), Pin: good.Pin}})); err != nil {
		t.Fatal(err)
	}
	p.caughtUp()
	if err := p.replica.rep.SetPeers(nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the session ends, and the source hears why", func() bool {
		l := p.source.lag()
		return !l.Connected && (errors.Is(l.Err, ErrRevoked) || errors.As(l.Err, new(*RefusedError)))
	})
	before := p.to.Head()
	p.from.Append([]byte("y"), 1, time.Now())
	eventually(t, "the source is not let in again", func() bool {
		var refused *RefusedError
		l := p.source.lag()
		return errors.As(l.Err, &refused) && refused.Code == CodeUnpinned
	})
	if h := p.to.Head(); h != before {
		t.Errorf("a removed peer brought the journal from %v to %v", before, h)
	}
}

// A peer may show either of two keys while it changes them.
func TestTwoPinsAreValid(t *testing.T) {
	p := newPair(t)
	old := p.source.o.Identity
	next := mustIdentity(t)
	p.replica.o.Peers = []Peer{{Name: "a", Pin: old.Pin(), AlsoPins: []Pin{next.Pin()}}}
	p.from.Append([]byte("x"), 1, time.Now())
	p.up()
	p.caughtUp()
	p.source.down()
	p.source.o.Identity = next
	p.from.Append([]byte("y"), 1, time.Now())
	p.source.up(p.plant)
	p.caughtUp()
	if err := p.replica.rep.SetPeers([]Peer{{Name: "a", Pin: next.Pin()}}); err != nil {
		t.Fatal(err)
	}
	p.from.Append([]byte("z"), 1, time.Now())
	p.caughtUp()
}
