package site

import (
	"context"
	"time"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/replicator"
)

// Pauses between two notes of what a source said: a head that moves is noted at
// most every noteEvery; one that stands still at most every noteStill, so that an
// idle source is not told as one that was silent since its last write.
const (
	noteEvery = time.Second
	noteStill = 30 * time.Second
)

// headKey is where the site log keeps the newest head heard from a peer.
func headKey(peer string) string { return "heard/" + peer }

// recalled is the newest head that peer ever told this site; nil: none, or it
// cannot be read.
func (l *life) recalled(peer string) *recovery.SourceHead {
	var h recovery.SourceHead
	ok, err := l.j.Recall(headKey(peer), &h)
	if err != nil {
		l.site.o.Log.Warn("recall the head heard of a peer", "group", l.cfg.Ref(), "peer", peer, "err", err)
	}
	if !ok || err != nil {
		return nil
	}
	return &h
}

// headOf is what lag says of its source; nil while nothing was heard.
func headOf(lag replicator.Lag, numbers map[journal.EpochID]uint64) *recovery.SourceHead {
	if lag.Direction != replicator.Inbound || lag.Heard.IsZero() {
		return nil
	}
	if lag.Relayed {
		if lag.Primary.Heard.IsZero() {
			return nil
		}
		return &recovery.SourceHead{Peer: lag.Peer, Head: lag.Primary.Head, Number: numbers[lag.Primary.Head.Epoch], Bytes: lag.Bytes, Time: lag.Primary.Time, Heard: lag.Primary.Heard}
	}
	return &recovery.SourceHead{Peer: lag.Peer, Head: lag.Head, Number: numbers[lag.Head.Epoch], Bytes: lag.Bytes, Time: lag.HeadTime, Heard: lag.Heard}
}

// news reports whether now is worth a write when was is what is remembered.
func news(was *recovery.SourceHead, now recovery.SourceHead) bool {
	return was == nil || was.Head != now.Head || now.Heard.Sub(was.Heard) >= noteStill
}

// noteHeads keeps the newest head heard of each source in the site log until ctx
// ends: a plan that is made after a restart, with the source dead, still knows what
// never arrived.
func (l *life) noteHeads(ctx context.Context) {
	last := map[string]*recovery.SourceHead{}
	for _, peer := range l.cfg.Peers {
		last[peer] = l.recalled(peer)
	}
	tick := time.NewTicker(noteEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-tick.C:
		case <-ctx.Done(): // once more: the journal is open still
		}
		l.noteHeard(last)
	}
}

// noteHeard keeps what is news after last, which it brings up to date.
func (l *life) noteHeard(last map[string]*recovery.SourceHead) {
	numbers := epochNumbers(l.j)
	for _, lag := range l.site.lagsOf(l.group) {
		h := headOf(lag, numbers)
		if h == nil || !news(last[lag.Peer], *h) {
			continue
		}
		if err := l.j.Remember(headKey(lag.Peer), h); err != nil {
			l.site.o.Log.Warn("remember the head heard of a peer", "group", l.cfg.Ref(), "peer", lag.Peer, "err", err)
			continue
		}
		last[lag.Peer] = h
	}
}

// epochNumbers is the number of every epoch held here.
func epochNumbers(j *journal.Journal) map[journal.EpochID]uint64 {
	numbers := map[journal.EpochID]uint64{}
	for _, b := range j.Branches() {
		numbers[b.ID] = b.Number
	}
	return numbers
}
