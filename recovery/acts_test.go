package recovery

import (
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

// stages is one reign of every stage.
func stages(now time.Time) map[Stage]Reign {
	at := journal.Cursor{Position: journal.Position{Epoch: journal.EpochID{1}, Seq: 7}}
	left := Left{Common: at, Number: 1, Head: journal.Position{Epoch: journal.EpochID{2}, Seq: 9}, Epochs: []journal.EpochID{{2}}, Newest: 2, Keeper: "k", Since: now}
	return map[Stage]Reign{
		StagePrimary:     {Role: Primary},
		StageReplica:     {Role: Replica},
		StageUncommitted: {Role: Uncommitted, From: at.Position, Policy: Policy{Mode: CommitAuto, At: now}},
		StageDraining:    {Role: Primary, Handover: &Handover{ID: cbt.NewID(), To: "b"}},
		StageCeded:       {Role: Replica, Handover: &Handover{ID: cbt.NewID(), To: "b", Ceded: true, Head: at}},
		StageLeft:        {Role: Replica, Left: &left},
		StageRenewing:    {Role: Uncommitted, Anew: &Anew{At: at.Position, From: left.Head}},
	}
}

// do is an act with fitting arguments.
func do(r Reign, a Act, now time.Time) (Reign, error) {
	s := stages(now)
	l := *s[StageLeft].Left
	switch a {
	case ActPromote:
		return r.Promote(Reign{Role: Uncommitted, Epoch: 3, ID: journal.EpochID{3}, Since: now})
	case ActCommit:
		return r.Commit(now)
	case ActRollback:
		return r.Rollback(l)
	case ActDrain:
		return r.Drain(Handover{ID: cbt.NewID(), To: "b", Since: now})
	case ActCede:
		return r.Cede(l.Common, 1, now)
	case ActWithdraw:
		return r.Withdraw(now)
	case ActGiven:
		return r.Given(now)
	case ActYield:
		return r.Yield(l)
	case ActFollow:
		return r.Follow(journal.EpochID{3}, now)
	case ActRenew:
		return r.Renew(Anew{At: l.Common.Position, From: l.Head})
	case ActRenewed:
		return r.Renewed(journal.Epoch{Number: 4, ID: journal.EpochID{4}})
	}
	if a == ActStandDown {
		return r.StandDown(now, "op")
	}
	panic(a)
}

var allActs = []Act{ActPromote, ActCommit, ActRollback, ActDrain, ActCede, ActWithdraw, ActGiven, ActYield, ActFollow, ActRenew, ActRenewed, ActStandDown}

// Every act in every stage, against the picture: where it leads, or that it is refused
// and changes nothing.
func TestEveryActInEveryStage(t *testing.T) {
	const no = Stage("")
	want := map[Stage][]Stage{ // in the order of allActs
		StagePrimary:     {no, no, no, StageDraining, no, no, no, StageLeft, no, StageRenewing, no, StageReplica},
		StageUncommitted: {StageUncommitted, StagePrimary, StageLeft, no, no, no, no, StageLeft, no, StageRenewing, no, StageReplica},
		StageReplica:     {StageUncommitted, no, no, no, no, no, no, StageLeft, no, no, no, no},
		StageDraining:    {no, no, no, no, StageCeded, StagePrimary, no, no, no, no, no, no},
		StageCeded:       {StageUncommitted, no, no, no, no, StagePrimary, StageReplica, StageLeft, no, no, no, no},
		StageLeft:        {StageUncommitted, no, no, no, no, no, no, no, StageReplica, no, no, no},
		StageRenewing:    {no, no, no, no, no, no, no, StageLeft, no, no, StageUncommitted, no},
	}
	now := time.Unix(1000, 0).UTC()
	for stage, r := range stages(now) {
		if r.Stage() != stage {
			t.Fatalf("%+v is %s, want %s", r, r.Stage(), stage)
		}
		for i, a := range allActs {
			next, err := do(r, a, now)
			switch w := want[stage][i]; {
			case w == no && (!errors.Is(err, ErrNotNow) || next.Stage() != stage):
				t.Errorf("%s: %s leads to %s, %v", stage, a, next.Stage(), err)
			case w != no && (err != nil || next.Stage() != w):
				t.Errorf("%s: %s leads to %s, %v, want %s", stage, a, next.Stage(), err, w)
			}
		}
	}
}

func TestActsThatLackWhatTheyNeed(t *testing.T) {
	now := time.Unix(1000, 0)
	s := stages(now)
	for what, err := range map[string]error{
		"cede nothing":          second(s[StageDraining].Cede(journal.Cursor{}, 1, now)),
		"yield to nobody":       second(s[StagePrimary].Yield(Left{Common: s[StageLeft].Left.Common})),
		"yield without a fork":  second(s[StagePrimary].Yield(Left{Keeper: "k"})),
		"follow into what left": second(s[StageLeft].Follow(journal.EpochID{2}, now)),
		"follow at the fork":    second(s[StageLeft].Follow(journal.EpochID{1}, now)),
		"renew nothing":         second(s[StagePrimary].Renew(Anew{})),
	} {
		if !errors.Is(err, ErrNotNow) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, x := range []struct {
		p    Policy
		at   time.Duration
		want bool
	}{{Policy{}, 0, false}, {Policy{CommitNone, now}, time.Hour, false}, {Policy{CommitAuto, now}, -1, false}, {Policy{CommitAuto, now}, 0, true}, {Policy{CommitRollback, now}, time.Hour, true}} {
		if got := x.p.Due(now.Add(x.at)); got != x.want {
			t.Errorf("%+v after %v: due %v", x.p, x.at, got)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestCanFollow(t *testing.T) {
	e := func(n byte) journal.EpochID { return journal.EpochID{n} }
	l := journal.Lineage{{Epoch: e(1), Number: 1, First: 1, Last: 10}, {Epoch: e(4), Number: 4, First: 11, Last: 20}, {Epoch: e(5), Number: 5, First: 21, Last: 30}}
	at := func(n byte, s journal.Seq) journal.Position { return journal.Position{Epoch: e(n), Seq: s} }
	for _, x := range []struct {
		common journal.Position
		newest uint64
		want   bool
	}{
		{at(1, 10), 3, true}, {at(1, 10), 4, false}, // its own epoch bears the number
		{at(1, 9), 3, false},  // the trunk goes on in the same epoch
		{at(4, 20), 4, true},  //
		{at(5, 30), 3, false}, // nothing goes on yet
		{at(2, 10), 1, false}, // not in common
	} {
		if got := CanFollow(l, x.common, x.newest); got != x.want {
			t.Errorf("from %s, newest %d: %v", x.common, x.newest, got)
		}
	}
}

// handing is two sites and what is on its way between them, as a handover's rules have
// it: what is durable is all that a crash leaves.
type handing struct {
	a, b    Reign
	head    journal.Cursor
	revoked map[cbt.ID]bool // at b
	took    map[cbt.ID]bool // at b
}

func (h *handing) take(id cbt.ID) (taken, revoked bool) {
	if h.took[id] || h.revoked[id] {
		return h.took[id], h.revoked[id]
	}
	next, err := h.b.Promote(Reign{Role: Primary, Epoch: 2})
	if err != nil {
		return false, false
	}
	h.b, h.took[id] = next, true
	return true, false
}

func (h *handing) revoke(id cbt.ID) (taken, revoked bool) {
	if !h.took[id] {
		h.revoked[id] = true
	}
	return h.took[id], h.revoked[id]
}

// Promise 11, for handovers: whatever is lost, repeated or comes late, never do both
// sites reign; and once messages come through, one does.
func TestAHandoverNeverHasTwoPrimariesNorNoneForEver(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(1000, 0)
		h := &handing{a: Reign{Role: Primary}, b: Reign{Role: Replica}, revoked: map[cbt.ID]bool{}, took: map[cbt.ID]bool{},
			head: journal.Cursor{Position: journal.Position{Epoch: journal.EpochID{1}, Seq: 5}}}
		check := func(t *rapid.T) {
			if h.a.Role.Captures() && h.b.Role.Captures() {
				t.Fatalf("both reign: %+v and %+v", h.a, h.b)
			}
		}
		old := []cbt.ID{} // messages that may come again, late
		t.Repeat(map[string]func(*rapid.T){
			"drain": func(*rapid.T) {
				if next, err := h.a.Drain(Handover{ID: cbt.NewID(), To: "b"}); err == nil {
					h.a = next
				}
			},
			"cede": func(*rapid.T) {
				if next, err := h.a.Cede(h.head, 1, now); err == nil {
					h.a = next
					old = append(old, next.Handover.ID)
				}
			},
			"give up before": func(*rapid.T) { // a crash while it drains, or a wait that was too long
				if h.a.Stage() == StageDraining {
					h.a = first(h.a.Withdraw(now))
				}
			},
			"take": func(t *rapid.T) {
				if h.a.Stage() != StageCeded || rapid.Bool().Draw(t, "lost") {
					return
				}
				taken, _ := h.take(h.a.Handover.ID)
				if taken && !rapid.Bool().Draw(t, "answer lost") {
					h.a = first(h.a.Given(now))
				}
			},
			"revoke": func(t *rapid.T) {
				if h.a.Stage() != StageCeded || rapid.Bool().Draw(t, "lost") {
					return
				}
				taken, revoked := h.revoke(h.a.Handover.ID)
				switch lost := rapid.Bool().Draw(t, "answer lost"); {
				case lost:
				case revoked:
					h.a = first(h.a.Withdraw(now))
				case taken:
					h.a = first(h.a.Given(now))
				}
			},
			"late take": func(t *rapid.T) {
				if len(old) > 0 && h.b.Role == Replica {
					h.take(rapid.SampledFrom(old).Draw(t, "which"))
				}
			},
			"": check,
		})
		for range 2 { // the network is whole again
			switch h.a.Stage() {
			case StageDraining:
				h.a = first(h.a.Withdraw(now))
			case StageCeded:
				if taken, revoked := h.take(h.a.Handover.ID); taken {
					h.a = first(h.a.Given(now))
				} else if revoked {
					h.a = first(h.a.Withdraw(now))
				}
			}
		}
		check(t)
		if !h.a.Role.Captures() && !h.b.Role.Captures() {
			t.Fatalf("nobody reigns: %+v and %+v", h.a, h.b)
		}
	})
}

func first[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
