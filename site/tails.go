package site

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/control"
)

// Before a promotion every peer of the group is asked where its history ends, also one
// to which no group goes and that would not be called otherwise. What it says is kept:
// of a peer that is gone when the failover is carried out, the plan still knows what it
// held.

// topicTail asks where the history ends that a peer shows, and what it heard of the
// source → standing.
const topicTail = "tail"

// Patience with peers.
const (
	headPatience = 2 * time.Second  // until one that has to be called answers
	callsLast    = 30 * time.Second // how long it is called after it was asked
	answerLimit  = 5 * time.Second  // for one that is connected
	answerLook   = 20 * time.Millisecond
)

// asking is the question.
type asking struct {
	After journal.Position `json:"after,omitzero"` // where the asker's history ends
	Send  bool             `json:"send,omitempty"` // what lies beyond it, to the asker, for a while
	Done  bool             `json:"done,omitempty"` // no longer
}

// standing is the answer.
type standing struct {
	Role     recovery.Role    `json:"role"`
	Head     journal.Cursor   `json:"head"` // where the history ends, durably
	Epoch    journal.EpochID  `json:"epoch"`
	Branches []journal.Branch `json:"branches"`
	Time     time.Time        `json:"time,omitzero"` // of the newest record
	Bytes    int64            `json:"bytes_beyond"`  // after what was asked for
	// Source is the newest head that it heard of the primary, HeardAgo how long ago in
	// seconds: the clocks of two sites are never compared.
	Source   *recovery.SourceHead `json:"source,omitempty"`
	HeardAgo float64              `json:"heard_ago_seconds"`
	Sending  bool                 `json:"sending"`
	Why      string               `json:"why,omitempty"` // it does not send
}

// standingFor answers a peer.
func (l *life) standingFor(ctx context.Context, peer string, q asking) (standing, error) {
	shown := guard{l: l}
	head := shown.Head()
	out := standing{Role: l.roleNow().Role, Head: head.Durable, Epoch: head.Epoch, Branches: shown.Branches(), Time: head.Time}
	if since, err := l.j.Since(ctx, q.After); err == nil { // of a record that is not here: it is told without
		for _, c := range since.Volumes {
			out.Bytes += c.Bytes + c.FillBytes
		}
	}
	numbers := epochNumbers(l.j)
	for _, name := range l.cfg.Peers {
		if h := l.newestHeard(name, numbers); h != nil && name != peer {
			out.Source = recovery.Furthest(out.Source, h)
		}
	}
	if out.Source != nil {
		out.HeardAgo = l.site.o.Now().Sub(out.Source.Heard).Seconds()
	}
	switch {
	case q.Done:
		l.lent.end(peer)
		l.site.repl.Refresh()
	case q.Send:
		out.Sending, out.Why = l.lend(peer)
	}
	return out, nil
}

// newestHeard is the newest head that a peer told of, in this process's life or before.
func (l *life) newestHeard(peer string, numbers map[journal.EpochID]uint64) *recovery.SourceHead {
	h := l.recalled(peer)
	for _, lag := range l.site.lagsOf(l.group) {
		if now := headOf(lag, numbers); lag.Peer == peer && now != nil {
			h = recovery.Furthest(h, now)
		}
	}
	return h
}

// calling is the peers that are called though no group goes there.
type calling struct {
	mu    sync.Mutex // guards until
	until map[string]time.Time
}

// call has a peer called, and reports whether it was not until now.
func (c *calling) call(peer string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	fresh := now.After(c.until[peer])
	if c.until == nil {
		c.until = map[string]time.Time{}
	}
	c.until[peer] = now.Add(callsLast)
	return fresh
}

func (c *calling) calls(peer string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Before(c.until[peer])
}

// askStandings asks all peers at once. One that is not connected is waited for, unless
// that was done just before, or nobody can call it. It returns what those said who answered.
func (l *life) askStandings(ctx context.Context) map[string]standing {
	var mu sync.Mutex // guards out
	out := map[string]standing{}
	var work sync.WaitGroup
	for _, peer := range l.cfg.Peers {
		p, ok := l.site.cfg.Peer(peer)
		fresh := l.site.calls.call(peer)
		if !ok || l.site.repl == nil {
			continue
		}
		patience := l.site.o.HeadPatience
		if !fresh || p.Address == "" {
			patience = 0
		}
		work.Go(func() {
			a, err := l.askStanding(ctx, peer, patience)
			if err != nil {
				l.site.o.Log.Info("peer did not say where its history ends", "group", l.cfg.Ref(), "peer", peer, "err", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out[peer] = a
		})
	}
	if l.site.repl != nil {
		l.site.repl.Refresh() // who is to be called is called now
	}
	work.Wait()
	for peer, a := range out {
		l.noteTold(peer, a)
		l.noteBegun(a)
	}
	return out
}

// askStanding asks one peer; while it is not connected, again until patience is over.
func (l *life) askStanding(ctx context.Context, peer string, patience time.Duration) (standing, error) {
	late := time.Now().Add(patience)
	for {
		once, cancel := context.WithTimeout(ctx, answerLimit)
		a, err := ask[standing](once, l, peer, topicTail, asking{After: l.j.Head().Position})
		cancel()
		away := errors.Is(err, replicator.ErrNotConnected) || errors.Is(err, errAway)
		if err == nil || !away || time.Now().After(late) {
			return a, err
		}
		if err := pauseFor(ctx, answerLook); err != nil {
			return a, err
		}
	}
}

// claim is what a peer said of its own history, as it is kept.
type claim struct {
	Head   journal.Position `json:"head"`
	Number uint64           `json:"number"`
	Time   time.Time        `json:"time"`
	Bytes  int64            `json:"bytes_beyond"`
}

func toldKey(peer string) string { return "told/" + peer }

func (l *life) noteTold(peer string, a standing) {
	now := claim{a.Head.Position, numbersOf(a.Branches)[a.Head.Epoch], a.Time, a.Bytes}
	if was := l.recallTold(peer); was != nil && was.Head == now.Head || now.Head.IsZero() {
		return
	}
	if err := l.j.Remember(toldKey(peer), now); err != nil {
		l.site.o.Log.Warn("remember what a peer said", "group", l.cfg.Ref(), "peer", peer, "err", err)
	}
}

func (l *life) recallTold(peer string) *claim {
	var t claim
	ok, err := l.j.Recall(toldKey(peer), &t)
	if err != nil {
		l.site.o.Log.Warn("recall what a peer said", "group", l.cfg.Ref(), "peer", peer, "err", err)
	}
	if !ok || err != nil {
		return nil
	}
	return &t
}

func numbersOf(branches []journal.Branch) map[journal.EpochID]uint64 {
	numbers := map[journal.EpochID]uint64{}
	for _, b := range branches {
		numbers[b.ID] = b.Number
	}
	return numbers
}

// weigh puts what the peers said into the inputs of a plan.
func (l *life) weigh(in *recovery.Inputs, said map[string]standing, q control.FailoverRequest) {
	var answers []recovery.Answer
	for name, a := range said {
		answers = append(answers, recovery.Answer{Peer: name, Captures: a.Role.Captures(), Head: a.Head, Epoch: a.Epoch, Branches: a.Branches, Time: a.Time})
	}
	slices.SortFunc(answers, func(a, b recovery.Answer) int {
		return slices.Index(l.cfg.Peers, a.Peer) - slices.Index(l.cfg.Peers, b.Peer)
	})
	shown := guard{l: l}
	t := recovery.Weigh(shown.Branches(), shown.Head().Epoch, answers, q.Tail)
	in.WithoutTail, in.Apart = q.WithoutTail, t.Apart
	if !q.WithoutTail {
		in.Tail = t.Furthest
	}
	if in.Tail != nil {
		in.Tail.Bytes = said[in.Tail.Peer].Bytes
	}
	source := "the primary"
	if in.Source != nil {
		source = in.Source.Peer
	}
	for i := range in.Peers {
		p := &in.Peers[i]
		a, answered := said[p.Name]
		if !answered {
			l.lastTold(in, p, source)
			continue
		}
		numbers := numbersOf(a.Branches)
		p.Reachable, p.Primary, p.Relation = true, p.Primary || a.Role.Captures(), t.Related[p.Name]
		if !a.Head.IsZero() {
			p.Head, p.Number, p.Time = a.Head.Position, numbers[a.Head.Epoch], a.Time
		}
		if p.Relation != journal.PeerAhead.String() && p.Relation != journal.Same.String() && p.Relation != journal.PeerBehind.String() {
			continue
		}
		if h := a.Source; h != nil {
			h.Heard, h.Bytes = in.Now.Add(-time.Duration(a.HeardAgo*float64(time.Second))), h.Bytes+a.Bytes
			in.Source = recovery.Furthest(in.Source, h)
		}
		in.Source = recovery.Furthest(in.Source, &recovery.SourceHead{Peer: source, Head: p.Head, Number: p.Number, Bytes: a.Bytes, Time: p.Time})
	}
}

// lastTold is of a peer that does not answer what it said when it last did.
func (l *life) lastTold(in *recovery.Inputs, p *recovery.PeerHead, source string) {
	t := l.recallTold(p.Name)
	if t == nil || t.Number < in.Head.Number {
		return
	}
	h := &recovery.SourceHead{Peer: source, Head: t.Head, Number: t.Number, Bytes: t.Bytes, Time: t.Time}
	if known := (&recovery.SourceHead{Head: p.Head, Number: p.Number}); recovery.Furthest(known, h) == h {
		p.Head, p.Number, p.Time = t.Head, t.Number, t.Time
	}
	in.Source = recovery.Furthest(in.Source, h)
}
