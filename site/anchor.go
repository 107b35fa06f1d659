package site

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/novacron/afterimage/recovery/evidence"
	"github.com/novacron/afterimage/replicator"
)

// topicVouch is how a site has a peer keep its ledger's head and vouch for it: an
// evidence.Signed there, one back.
const topicVouch = "ledger/vouch"

// anchorEvery is how often a peer is asked again while reports wait for one that answers.
const anchorEvery = 10 * time.Second

// anchorLedger has peers vouch for the ledger whenever it has grown, until ctx ends.
func (s *Site) anchorLedger(ctx context.Context) {
	tick := time.NewTicker(anchorEvery)
	defer tick.Stop()
	for {
		if s.ledger != nil && s.ledgerErr == nil {
			s.anchorNow(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-s.entered:
		case <-tick.C:
		}
	}
}

// anchorNow asks each peer once, until one has vouched. A peer that says no has kept
// another ledger of this site: that is told by every status until it is resolved.
func (s *Site) anchorNow(ctx context.Context) {
	n := uint64(len(s.ledger.Entries()))
	asked := map[string]bool{}
	for _, g := range s.groups {
		for _, peer := range g.cfg.Peers {
			if s.ledger.Anchored() >= n {
				return
			}
			if asked[peer] {
				continue
			}
			err := s.askAnchor(ctx, g, peer)
			var refused *replicator.RefusedError
			switch {
			case err == nil:
				s.o.Log.Info("ledger anchored", "peer", peer, "entries", n)
			case errors.As(err, &refused) && errors.Is(err, replicator.ErrDeclined):
				s.mu.Lock()
				s.unvouched = fmt.Sprintf("%s does not vouch for it: %v", peer, err)
				s.mu.Unlock()
				s.o.Log.Error("ledger not anchored", "peer", peer, "err", err)
			default:
				continue // it is not there, or does not know the group now
			}
			asked[peer] = true
		}
	}
}

func (s *Site) askAnchor(ctx context.Context, g *group, peer string) error {
	h, err := s.ledger.Head(s.o.Now())
	if err != nil {
		return err
	}
	text, err := json.Marshal(h)
	if err != nil {
		return err
	}
	answer, err := s.repl.Consult(ctx, peer, g.id, topicVouch, text)
	if err != nil {
		return err
	}
	var a evidence.Signed
	if err := json.Unmarshal(answer, &a); err != nil {
		return fmt.Errorf("read the anchor of %s: %w", peer, err)
	}
	if !s.knows(a.Key) {
		return fmt.Errorf("read the anchor of %s: %w", peer, evidence.ErrStranger)
	}
	if _, err := s.ledger.Keep(a); err != nil {
		return err
	}
	s.mu.Lock()
	s.unvouched = ""
	s.mu.Unlock()
	return nil
}

// vouchFor is this site's answer to a peer's ledger.
func (s *Site) vouchFor(h evidence.Signed) (evidence.Signed, error) {
	if s.ledgerErr != nil || s.ledger == nil {
		return evidence.Signed{}, errAway
	}
	if !s.knows(h.Key) {
		return evidence.Signed{}, fmt.Errorf("%w: the ledger is signed by %s, which is no peer here", replicator.ErrDeclined, pinOf(h.Key))
	}
	a, err := s.ledger.Vouch(h, s.o.Now())
	if err != nil {
		return a, fmt.Errorf("%w: %w", replicator.ErrDeclined, err)
	}
	return a, nil
}

// ledgerGrew wakes who has it anchored.
func (s *Site) ledgerGrew() {
	select {
	case s.entered <- struct{}{}:
	default:
	}
}
