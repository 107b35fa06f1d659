package site

import (
	"context"
	"fmt"
	"strings"

	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// bringOver is the start of a move and of a failback: the group is handed over to this
// site, if it is not here yet, after its machine was shut down there; then the machine
// is started here. It may be repeated: what was done before is not done again.
func (s *Site) bringOver(ctx context.Context, name, operator string) (string, error) {
	what := "bring " + name + " over"
	g, err := s.group(name)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	if !s.promotedHere(name) {
		done, err := s.Handover(ctx, control.HandoverRequest{Group: name, Shutdown: true, NoMachine: true, Operator: operator}, func(control.Progress) {})
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "handed over by %s at record %s in epoch %d, chain %s\n", done.From, seqText(done.Last), done.Epoch, done.Chain)
	}
	l, release, err := g.await(ctx)
	if err != nil {
		return b.String(), err
	}
	defer release()
	r, err := l.awaitReign(ctx, what)
	if err != nil {
		return b.String(), err
	}
	o := recovery.Outcome{URIs: l.urisOf(r)}
	err = l.startHere(ctx, &o)
	closeMachine(o.Machine)
	b.WriteString(stepTimes(o.Steps))
	return b.String(), explain(what, err)
}

// awaitReign waits until the group's disks are open here, which takes its time where they
// are brought to the head first.
func (l *life) awaitReign(ctx context.Context, what string) (*reign, error) {
	for {
		if r := l.reignOf(ctx); r != nil {
			return r, nil
		}
		switch {
		case !l.roleNow().Role.Captures():
			return nil, fault.New(fault.RunbookMode, what, "the group is %s here", l.roleNow().Stage())
		case l.ctx.Err() != nil:
			return nil, fault.New(fault.GroupFailed, what, "its disks were not opened").Advise("group show tells why; then resume the run.")
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		}
	}
}
