package site

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// A command that comes while a group is being opened waits for it, not for ever,
// and not for one that failed.
func TestCommandsWaitForAGroupThatIsBeingOpened(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		after time.Duration // until something happens; 0: nothing does
		fails bool
		took  time.Duration
		why   string
	}{
		{name: "opened", after: 3 * time.Second, took: 3 * time.Second},
		{name: "fails", after: 3 * time.Second, fails: true, took: 3 * time.Second, why: "boom"},
		{name: "never", took: openingLimit, why: "being opened"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			cfg := w.configure("a", twoGroups)
			synctest.Test(t, func(t *testing.T) {
				g := newSite(cfg, Options{}.withDefaults()).groups[0]
				if c.after > 0 {
					time.AfterFunc(c.after, func() {
						g.mu.Lock()
						defer g.mu.Unlock()
						if c.fails {
							g.failure = fault.Of(errors.New(c.why))
						} else {
							g.life = &life{group: g}
						}
						g.turnedLocked()
					})
				}
				began := time.Now()
				_, release, err := g.await(t.Context())
				if took := time.Since(began); took != c.took {
					t.Errorf("it took %s, want %s", took, c.took)
				}
				switch {
				case c.why == "" && err != nil:
					t.Error(err)
				case c.why == "":
					release()
				case !fault.Is(err, fault.GroupFailed) || !strings.Contains(err.Error(), c.why):
					t.Errorf("%v, want %s", err, c.why)
				}
				if _, _, err := g.use(); c.why != "" && err == nil {
					t.Error("a group that is not open is used")
				}
			})
		})
	}
}

// Commands right after the start of a daemon get an answer, not the advice to try again.
func TestCommandsRightAfterTheStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.configure("a", twoGroups)
	s := w.run(c)
	if _, err := s.Mark(context.Background(), control.MarkRequest{Group: "web", Name: "first"}); err != nil {
		t.Errorf("mark: %v", err)
	}
	s.stop()
	s = w.run(c)
	if _, err := s.Points(context.Background(), control.PointsQuery{Group: "web", At: "latest"}); err != nil {
		t.Errorf("point list: %v", err)
	}
}

func TestHaltsAreOfTwoKinds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := newSite(w.configure("a", twoGroups), Options{}.withDefaults())
	g := s.groups[0]
	lost := haltOf(&replicator.Conflict{Peer: "b", Cause: replicator.ErrHistoryLost})
	split := haltOf(&replicator.Conflict{Peer: "c"})
	s.halt("b", g.cfg.Tenant, g.cfg.Name, lost)
	if h := g.conflict(); h.kind != control.HaltHistoryLost || !strings.Contains(h.why, "lost history") {
		t.Errorf("a loss is %+v", h)
	}
	s.halt("c", g.cfg.Tenant, g.cfg.Name, split)
	if h := g.conflict(); h.kind != control.HaltSplitBrain || !strings.Contains(h.why, "; ") {
		t.Errorf("a loss and a split brain are %+v", h)
	}
	s.halt("b", g.cfg.Tenant, g.cfg.Name, halt{})
	s.halt("c", g.cfg.Tenant, g.cfg.Name, halt{})
	if h := g.conflict(); h != (halt{}) {
		t.Errorf("it is over, but %+v", h)
	}
}
