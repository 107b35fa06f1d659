package replicator

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/novacron/afterimage/journal"
)

// turning is a source that begins an epoch between its answer to what it holds and its
// first frame.
type turning struct {
	Source
	once sync.Once
	turn func()
}

func (s *turning) Stream(ctx context.Context, after journal.Position) (Frames, error) {
	s.once.Do(s.turn)
	return s.Source.Stream(ctx, after)
}

// A peer is told of an epoch before it gets frames of it: what it acknowledges would be
// none of what it was told, and the session would end for a fault that is nobody's.
func TestFramesOfAnEpochFollowItsTelling(t *testing.T) {
	p := newPair(t)
	p.from.Append(make([]byte, 1000), 1, time.Now())
	source := &turning{Source: JournalSource(p.from), turn: func() {
		p.from.BeginEpoch(p.from.Head().Seq, time.Now())
		p.from.Append(make([]byte, 1001), 1, time.Now())
	}}
	p.source.o.Groups = func() []Group {
		return []Group{{Tenant: tenant, Name: group, Source: source, Peers: []string{"b"}}}
	}
	p.source.o.HeartbeatInterval = time.Hour // it would find out
	p.up()
	eventually(t, "all frames are there", func() bool { return p.to.Head().Durable.Position == p.from.Head().Position })
	p.sameFrames()
	for _, end := range []*endpoint{p.source, p.replica} {
		for _, err := range end.endings() {
			if err != nil && strings.Contains(err.Error(), ErrProtocol.Error()) { // as told by the other end
				t.Errorf("a session ended with %v", err)
			}
		}
	}
}
