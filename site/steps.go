package site

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/recovery/runbook"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// stepDriver does a run's steps at this site. What a machine is depends on the mode: a
// drill's, or the group's own.
type stepDriver struct {
	site *Site
	run  *runbook.Run

	mu   sync.Mutex // guards seen
	seen map[string]seen
}

var _ runbook.Driver = (*stepDriver)(nil)

func (d *stepDriver) drills() bool { return d.run.Plan.Mode == runbook.Test }

// machine is that of an action, and its process (0: it does not run).
func (d *stepDriver) machine(a runbook.Action) (m recovery.Machine, pid int, err error) {
	g, err := d.site.group(a.Group)
	if err != nil {
		return m, 0, err
	}
	if m, err = d.site.machineOfRunStep(g, d.drills()); err != nil {
		return m, 0, err
	}
	pid, err = m.Process()
	if errors.Is(err, recovery.ErrNotRunning) {
		err = nil
	}
	return m, pid, err
}

// machineOfRunStep is a group's machine as a run has it: that of a drill, or what runs
// from the group's disks here.
func (s *Site) machineOfRunStep(g *group, drill bool) (recovery.Machine, error) {
	if drill {
		if g.cfg.Machine == nil {
			return recovery.Machine{}, fault.New(fault.RunbookMachine, "find the machine of "+g.cfg.Ref(), "no machine is configured here that a drill could start").
				Advise("A drill needs machine: of the group, at the site that it is replicated to.")
		}
		return s.machineFor(g, g.cfg.Machine).Isolated(s.drillDir(g))
	}
	l, release, err := g.use()
	if err != nil {
		return recovery.Machine{}, err
	}
	defer release()
	m, ok, err := l.machineHere(l.ctx)
	if err == nil && !ok {
		err = fault.New(fault.RunbookMachine, "find the machine of "+g.cfg.Ref(), "the group has none here")
	}
	return m, err
}

// Look implements runbook.Driver.
func (d *stepDriver) Look(ctx context.Context, a runbook.Action) (runbook.Seen, error) {
	seen := func(yes bool, err error) (runbook.Seen, error) {
		switch {
		case err != nil:
			return runbook.CannotTell, err
		case yes:
			return runbook.Happened, nil
		}
		return runbook.NotHappened, nil
	}
	switch a.Step.Kind {
	case runbook.Start:
		m, _, err := d.machine(a)
		if err != nil || !m.RunsWhole() {
			return seen(false, err)
		}
		if d.drills() { // one that no drill of ours holds is a left-over, which Do meets
			g, err := d.site.group(a.Group)
			return seen(err == nil && d.site.drillOf(g) != nil, err)
		}
		return seen(d.site.promotedHere(a.Group), nil)
	case runbook.Stop:
		_, pid, err := d.machine(a)
		return seen(pid == 0, err)
	case runbook.ReIP:
		m, pid, err := d.machine(a)
		if err != nil || pid == 0 {
			return runbook.CannotTell, err
		}
		has, err := m.HasAddress(ctx, addressOf(a.Step))
		if err != nil { // its agent may not answer yet, which Do waits for
			return runbook.CannotTell, nil
		}
		return seen(has, nil)
	case runbook.Script:
		if a.Step.Check == nil {
			return runbook.CannotTell, nil
		}
		if err := d.allowed(a.Step.Check); err != nil {
			return runbook.CannotTell, err
		}
		_, err := runbook.Execute(ctx, a.Step.Check, d.env())
		return seen(err == nil, ctx.Err())
	case runbook.Cleanup:
		for _, name := range groupsOf(d.run.Plan) {
			g, err := d.site.group(name)
			if err != nil || d.site.drillOf(g) != nil {
				return seen(false, err)
			}
		}
		return seen(true, nil)
	}
	return runbook.CannotTell, nil
}

// Do implements runbook.Driver.
func (d *stepDriver) Do(ctx context.Context, a runbook.Action) (string, error) {
	switch a.Step.Kind {
	case runbook.Ping, runbook.TCP, runbook.HTTP:
		return runbook.Probe(ctx, a.Step, d.env())
	case runbook.Program, runbook.Script, runbook.Notify:
		if err := d.allowed(a.Step.Argv); err != nil {
			return "", err
		}
		return runbook.Execute(ctx, a.Step.Argv, d.env())
	case runbook.Cleanup:
		return "", d.cleanUp(ctx)
	case runbook.Start:
		return d.start(ctx, a)
	}
	m, pid, err := d.machine(a)
	if err != nil {
		return "", err
	}
	if pid == 0 && a.Step.Kind != runbook.Stop {
		return "", fmt.Errorf("machine %s: %w", a.Step.Machine, recovery.ErrNotRunning)
	}
	switch a.Step.Kind {
	case runbook.Stop:
		if a.Step.How == "off" {
			return "", m.End(ctx)
		}
		return "", m.Shutdown(ctx)
	case runbook.Agent:
		return "", m.AgentAnswers(ctx)
	case runbook.ReIP:
		return m.SetAddress(ctx, addressOf(a.Step))
	case runbook.Network:
		return "", d.connect(ctx, m, a.Step.Interfaces)
	}
	return "", fmt.Errorf("a step of kind %s is not known here", a.Step.Kind)
}

func addressOf(s runbook.Step) recovery.Address {
	return recovery.Address{Interface: s.Interface, Prefix: s.Address, Gateway: s.Gateway, DNS: s.DNS}
}

// start brings a group's machine up: a drill's, after a promotion, or where the group
// is primary already.
func (d *stepDriver) start(ctx context.Context, a runbook.Action) (string, error) {
	g, err := d.site.group(a.Group)
	if err != nil {
		return "", err
	}
	if d.drills() {
		x, err := d.site.beginDrill(ctx, g, d.run.Plan.Moment(a.Group), func(recovery.StepTime) {})
		if err != nil {
			return "", err
		}
		return stepTimes(x.times), nil
	}
	q := control.FailoverRequest{Group: a.Group, At: d.run.Plan.Moment(a.Group), Operator: d.run.Operator, Force: d.run.Forced}
	if d.run.Plan.Mode != runbook.Unplanned {
		return d.site.bringOver(ctx, a.Group, d.run.Operator)
	}
	out, err := d.site.Failover(ctx, q, func(control.Progress) {})
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(out.Times)) {
		fmt.Fprintf(&b, "%s %.3f s\n", name, out.Times[name])
	}
	if out.Report != "" {
		fmt.Fprintf(&b, "report %s\n", out.Report)
	}
	return b.String(), err
}

// connect plugs cables. A drill's lead nowhere whatever is asked.
func (d *stepDriver) connect(ctx context.Context, m recovery.Machine, interfaces map[string]string) error {
	for _, id := range slices.Sorted(maps.Keys(interfaces)) {
		switch to := interfaces[id]; {
		case to == "up" || to == "down":
			if err := m.SetLink(ctx, id, to == "up"); err != nil {
				return fmt.Errorf("interface %s: %w", id, err)
			}
		case d.drills():
		default:
			if err := m.Connect(ctx, id, to); err != nil {
				return fmt.Errorf("interface %s: %w", id, err)
			}
		}
	}
	return nil
}

// cleanUp ends every drill of the run, and goes on where one cannot be ended.
func (d *stepDriver) cleanUp(ctx context.Context) error {
	var errs []error
	for _, name := range groupsOf(d.run.Plan) {
		g, err := d.site.group(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if x := d.site.drillOf(g); x != nil {
			errs = append(errs, d.site.endDrill(ctx, x))
			d.keep(x)
		}
	}
	return errors.Join(errs...)
}

// allowed asks the list again: the plan may be older than the configuration.
func (d *stepDriver) allowed(argv []string) error {
	if len(argv) == 0 || !slices.Contains(d.site.cfg.RunbookPrograms(), argv[0]) {
		return fault.New(fault.RunbookProgram, "run a step", "program %q is not one that runbooks may run", argv)
	}
	return nil
}

// env is what programs are told.
func (d *stepDriver) env() []string {
	p := d.run.Plan
	return []string{"AFTERIMAGE_RUN=" + d.run.ID, "AFTERIMAGE_RUNBOOK=" + p.Runbook, "AFTERIMAGE_MODE=" + string(p.Mode), "AFTERIMAGE_AT=" + p.At, "AFTERIMAGE_SITE=" + d.site.cfg.Site}
}
