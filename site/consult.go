package site

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/fault"
)

// What sites ask each other about a group, as JSON over the replicator's questions.
// Unknown fields are passed over, so that a later version may say more.
const (
	topicHeads    = "heads"             // where your history ends → heads
	topicOffer    = "handover/offer"    // do you hold all up to this → statement
	topicTake     = "handover/take"     // be primary from here → taking
	topicRevoke   = "handover/revoke"   // never take this → taking
	topicPlease   = "handover/please"   // hand the group over to me → asked
	topicProgress = "handover/progress" // how far is it → asked
	topicYield    = "yield"             // follow me from what we have in common → yielded
	topicRenew    = "renew"             // let me follow you from here → renewal
	topicRemains  = "remains"           // what is left of what I skipped → remaining
)

// heads is where a site's history ends, and its role.
type heads struct {
	Role     recovery.Role    `json:"role"`
	Stage    recovery.Stage   `json:"stage"`
	Head     journal.Position `json:"head,omitzero"`
	Number   uint64           `json:"number"`
	Durable  journal.Cursor   `json:"durable,omitzero"`
	Newest   uint64           `json:"newest"` // highest epoch number
	Branches []journal.Branch `json:"branches"`
	Serving  bool             `json:"serving"` // its disks take writes
}

// consulted answers a peer. Only the peers of a group are answered about it.
func (s *Site) consulted(ctx context.Context, peer string, id journal.Identity, topic string, text []byte) ([]byte, error) {
	i := slices.IndexFunc(s.groups, func(g *group) bool { return g.id == id && slices.Contains(g.cfg.Peers, peer) })
	if i < 0 {
		return nil, replicator.ErrUnknownGroup
	}
	g := s.groups[i]
	l, release, _, err := g.tryUse()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errAway, err)
	}
	defer release()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(l.ctx, func() { cancel(errDetached) })()
	var out any
	switch topic {
	case topicHeads:
		out = l.heads()
	case topicOffer:
		out, err = answered(text, func(q cession) (statement, error) { return l.offered(peer, q) })
	case topicTake:
		out, err = answered(text, func(q cession) (taking, error) { return l.take(ctx, peer, q) })
	case topicRevoke:
		out, err = answered(text, func(q cession) (taking, error) { return l.revoke(q) })
	case topicPlease:
		out, err = answered(text, func(q pleading) (pleaded, error) { return l.pleaded(peer, q) })
	case topicProgress:
		out, err = answered(text, func(q pleading) (pleaded, error) { return g.movesOf(q.ID), nil })
	case topicYield:
		out, err = answered(text, func(q yielding) (yielded, error) { return l.yieldTo(ctx, peer, q) })
	case topicRenew:
		out, err = answered(text, func(q renewing) (renewal, error) { return l.renewFor(ctx, peer, q) })
	case topicTail:
		out, err = answered(text, func(q asking) (standing, error) { return l.standingFor(ctx, peer, q) })
	case topicRemains:
		out, err = answered(text, func(q skip) (remaining, error) { return l.remains(ctx, q) })
	case topicHold:
		out, err = answered(text, l.holdsOff)
	case topicVouch:
		out, err = answered(text, s.vouchFor)
	default:
		return nil, fmt.Errorf("%w: this site knows nothing of %q", replicator.ErrDeclined, topic)
	}
	if err != nil {
		s.o.Log.Info("peer's question declined", "group", g.cfg.Ref(), "peer", peer, "topic", topic, "err", err)
		return nil, err
	}
	return json.Marshal(out)
}

// talks reports that something is to be settled with a peer though no group goes there.
func (s *Site) talks(peer string) bool {
	return s.calls.calls(peer) || slices.ContainsFunc(s.groups, func(g *group) bool {
		g.mu.Lock()
		l, turning := g.life, g.turning
		g.mu.Unlock()
		if l == nil || turning || !slices.Contains(g.cfg.Peers, peer) {
			return turning && slices.Contains(g.cfg.Peers, peer)
		}
		stage := l.roleNow().Stage()
		return stage == recovery.StageCeded || stage == recovery.StageLeft
	})
}

// errAway says that a group cannot be asked about now, and may be soon.
var errAway = errors.New("the group is not open here now")

// answered decodes a question and gives its answer.
func answered[Q, A any](text []byte, f func(Q) (A, error)) (any, error) {
	var q Q
	if err := json.Unmarshal(text, &q); err != nil {
		return nil, fmt.Errorf("%w: read question: %w", replicator.ErrProtocol, err)
	}
	return f(q)
}

// ask asks a peer about the group.
func ask[A any](ctx context.Context, l *life, peer, topic string, q any) (a A, err error) {
	text, err := json.Marshal(q)
	if err != nil {
		return a, err
	}
	b, err := l.site.repl.Consult(ctx, peer, l.id, topic, text)
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal(b, &a); err != nil {
		return a, fmt.Errorf("ask %s about %s: %w: %w", peer, topic, replicator.ErrProtocol, err)
	}
	return a, nil
}

func (l *life) heads() heads {
	r, h := l.roleNow(), l.j.Head()
	return heads{Role: r.Role, Stage: r.Stage(), Head: h.Position, Number: h.Number, Durable: h.Durable, Newest: l.newestNumber(), Branches: l.j.Branches(), Serving: l.reigning() != nil}
}

// declined is a no that the peer may rely on.
func declined(format string, args ...any) error {
	return fmt.Errorf("%w: %w", replicator.ErrDeclined, fault.New(fault.HandoverTrouble, "answer the peer", format, args...))
}

// cession is a question about a handover.
type cession struct {
	ID        cbt.ID         `json:"id"`
	Head      journal.Cursor `json:"head"`   // where the giver's history ends
	Number    uint64         `json:"number"` // highest epoch number at the giver
	Operator  string         `json:"operator,omitempty"`
	NoMachine bool           `json:"no_machine,omitempty"`
}

// statement is what a taker says of itself: its history ends at Head.
type statement struct {
	Head journal.Cursor `json:"head"`
}

// taking is what became of a handover at its taker; both false: nothing yet.
type taking struct {
	Taken   bool   `json:"taken"`
	Revoked bool   `json:"revoked"`
	Epoch   uint64 `json:"epoch"`
	Why     string `json:"why,omitempty"`
}
