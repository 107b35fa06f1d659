package site

import (
	"context"
	"fmt"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/fault"
)

// yielding asks a site whose history excludes the asker's to follow the asker: a person
// has decided so there.
type yielding struct {
	Head     journal.EpochID  `json:"head"`
	Branches []journal.Branch `json:"branches"`
	Operator string           `json:"operator,omitempty"`
	DryRun   bool             `json:"dry_run,omitempty"`
}

// yielded is what that means at the site that yields.
type yielded struct {
	Common journal.Cursor   `json:"common"`
	Number uint64           `json:"number"` // of its epoch
	Head   journal.Position `json:"head"`   // of the branch that is left
	Beyond uint64           `json:"beyond"` // its records
}

// yieldTo leaves what this site wrote beyond what it has in common with peer. It is
// done only where the two histories were found to exclude each other, and never under
// a machine that runs.
func (l *life) yieldTo(ctx context.Context, peer string, q yielding) (yielded, error) {
	r := l.roleNow()
	if r.Role.Captures() && !l.halts(peer) {
		return yielded{}, declined("no divergence from %s is known here: the group is %s and goes on", peer, r.Stage())
	}
	left, out, err := l.leaving(heads{Branches: q.Branches, Head: journal.Position{Epoch: q.Head}}, peer, q.Operator)
	if err != nil {
		return out, err
	}
	if err := l.machineIsOff(ctx); err != nil || q.DryRun {
		return out, err
	}
	return out, l.leaveFor(left)
}

// leaving compares histories and says what is left when that of keeper goes on.
func (l *life) leaving(theirs heads, keeper, operator string) (recovery.Left, yielded, error) {
	head := l.j.Head()
	rel, err := journal.Relate(l.j.Branches(), head.Epoch, theirs.Branches, theirs.Head.Epoch)
	if err != nil {
		return recovery.Left{}, yielded{}, err
	}
	if rel.Common.IsZero() {
		return recovery.Left{}, yielded{}, declined("the two histories have no record in common")
	}
	left, err := l.leftAt(rel.Common, keeper, operator, "the history of "+keeper+" is kept")
	if err != nil {
		return left, yielded{}, err
	}
	return left, yielded{Common: left.Common, Number: left.Number, Head: left.Head, Beyond: uint64(head.Seq - left.Common.Seq)}, nil
}

// leaveFor makes it so: the next life follows.
func (l *life) leaveFor(left recovery.Left) error {
	if _, err := l.act(func(r recovery.Reign) (recovery.Reign, error) { return r.Yield(left) }); err != nil {
		return err
	}
	l.next()
	return nil
}

// halts reports whether histories were found to exclude each other with a peer.
func (g *group) halts(peer string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.halted[peer].why != ""
}

// machineIsOff is nil unless a machine runs from the group's disks here, or nobody can
// tell: a site that captures does not leave its history under one.
func (l *life) machineIsOff(ctx context.Context) error {
	what := "leave the history of " + l.cfg.Ref()
	runs := func(err error) error {
		return fault.Wrap(fault.PrimaryAlive, what, fmt.Errorf("%w, and is not stopped by us", err)).
			Advise("Shut it down at site %s, then repeat the command.", l.site.cfg.Site)
	}
	if r := l.reigning(); r != nil && r.tracker != nil {
		for _, v := range r.tracker.Status() {
			if v.State == cbt.StateSynced || v.State == cbt.StateSyncing || v.Cause != cbt.CauseMachine && v.Cause != cbt.CauseTapEnded {
				return runs(fmt.Errorf("the machine of volume %s runs here (%s)", v.Volume.Name, v.State))
			}
		}
	}
	err := l.processEnded(ctx)
	if err == nil && l.roleNow().Role.Captures() { // else what is tapped here is in nobody's history
		err = l.tappedEnded(ctx)
	}
	if err != nil {
		return runs(err)
	}
	return nil
}
