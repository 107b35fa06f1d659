package site

import (
	"context"
	"os"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// open gives a group's journal for a command: the running one, which is waited for
// while it is being opened, or one of this use alone (read).
func (s *Site) open(ctx context.Context, g *group) (*life, func(), error) {
	if s.running() && !g.aside {
		return g.await(ctx)
	}
	return s.read(g)
}

// look is open for who only wants to see how things stand, and does not wait.
func (s *Site) look(g *group) (*life, func(), error) {
	if s.running() && !g.aside {
		return g.use()
	}
	return s.read(g)
}

// read opens a group's journal for this use alone, in a site that only reads; it
// takes no records.
func (s *Site) read(g *group) (*life, func(), error) {
	if !g.aside && held(s.cfg.Data) {
		return nil, nil, fault.New(fault.ControlBroken, "open the journal of "+g.cfg.Ref(), "a daemon holds %s, but its control socket %s does not answer", s.cfg.Data, s.cfg.Control)
	}
	if _, err := os.Stat(g.dir); err != nil {
		return nil, nil, fault.New(fault.JournalAbsent, "open the journal of "+g.cfg.Ref(), "there is none in %s", g.dir)
	}
	ring := s.ring(context.Background(), g.cfg)
	j, err := journal.Open(g.dir, journal.Options{Sync: syncMode(g.cfg.Sync), Keys: keyRing(ring), Now: s.o.Now, Log: s.o.Log})
	if err != nil {
		ring.Close()
		return nil, nil, explain("open the journal of "+g.cfg.Ref(), err)
	}
	shut := func() {
		defer ring.Close()
		if err := j.Close(); err != nil {
			s.o.Log.Warn("close journal", "group", g.cfg.Ref(), "err", err)
		}
	}
	r, ok, err := recovery.RecallReign(j)
	if err != nil {
		shut()
		return nil, nil, explain("open the journal of "+g.cfg.Ref(), err)
	}
	if !ok || g.aside {
		r = recovery.Reign{Role: recovery.Role(g.cfg.Role)}
	}
	return &life{group: g, j: j, ctx: context.Background(), role: r}, shut, nil
}

// Reach gives the site of c: its daemon where one runs, and for what only reads
// the journals themselves where none does.
func Reach(c *config.Config, o Options) control.API {
	return &reached{daemon: control.NewClient(c.Control), site: newSite(c, o.withDefaults())}
}

// reached asks the daemon first. A daemon that is there but refuses or breaks is
// not passed by.
type reached struct {
	daemon *control.Client
	site   *Site
}

var _ control.API = (*reached)(nil)

func either[T any](here func() (T, error), there func() (T, error)) (T, error) {
	v, err := there()
	if control.Absent(err) {
		return here()
	}
	return v, err
}

func (r *reached) Status(ctx context.Context) (control.Status, error) {
	return either(func() (control.Status, error) { return r.site.Status(ctx) }, func() (control.Status, error) { return r.daemon.Status(ctx) })
}

func (r *reached) Group(ctx context.Context, name string) (control.GroupDetail, error) {
	return either(func() (control.GroupDetail, error) { return r.site.Group(ctx, name) }, func() (control.GroupDetail, error) { return r.daemon.Group(ctx, name) })
}

func (r *reached) Points(ctx context.Context, q control.PointsQuery) (control.Points, error) {
	return either(func() (control.Points, error) { return r.site.Points(ctx, q) }, func() (control.Points, error) { return r.daemon.Points(ctx, q) })
}

func (r *reached) Pin(ctx context.Context, q control.PinRequest) (control.Pin, error) {
	return either(func() (control.Pin, error) { return r.site.Pin(ctx, q) }, func() (control.Pin, error) { return r.daemon.Pin(ctx, q) })
}

func (r *reached) Unpin(ctx context.Context, q control.UnpinRequest) (control.Pin, error) {
	return either(func() (control.Pin, error) { return r.site.Unpin(ctx, q) }, func() (control.Pin, error) { return r.daemon.Unpin(ctx, q) })
}

func (r *reached) Maintain(ctx context.Context, q control.MaintainRequest, progress func(control.Progress)) (control.Maintained, error) {
	return either(func() (control.Maintained, error) { return r.site.Maintain(ctx, q, progress) }, func() (control.Maintained, error) { return r.daemon.Maintain(ctx, q, progress) })
}

func (r *reached) ExportSeed(ctx context.Context, q control.SeedExport, progress func(control.Progress)) (control.Seed, error) {
	return either(func() (control.Seed, error) { return r.site.ExportSeed(ctx, q, progress) }, func() (control.Seed, error) { return r.daemon.ExportSeed(ctx, q, progress) })
}

func (r *reached) ImportSeed(ctx context.Context, q control.SeedImport, progress func(control.Progress)) (control.Seed, error) {
	return either(func() (control.Seed, error) { return r.site.ImportSeed(ctx, q, progress) }, func() (control.Seed, error) { return r.daemon.ImportSeed(ctx, q, progress) })
}

func (r *reached) Key(ctx context.Context, q control.KeyRequest) (control.KeyState, error) {
	return either(func() (control.KeyState, error) { return r.site.Key(ctx, q) }, func() (control.KeyState, error) { return r.daemon.Key(ctx, q) })
}

func (r *reached) RotateKey(ctx context.Context, q control.KeyRequest) (control.KeyState, error) {
	return either(func() (control.KeyState, error) { return r.site.RotateKey(ctx, q) }, func() (control.KeyState, error) { return r.daemon.RotateKey(ctx, q) })
}

func (r *reached) ShredKey(ctx context.Context, q control.KeyRequest) (control.KeyState, error) {
	return either(func() (control.KeyState, error) { return r.site.ShredKey(ctx, q) }, func() (control.KeyState, error) { return r.daemon.ShredKey(ctx, q) })
}

func (r *reached) Limit(ctx context.Context, q control.LimitRequest) (control.Limited, error) {
	return either(func() (control.Limited, error) { return r.site.Limit(ctx, q) }, func() (control.Limited, error) { return r.daemon.Limit(ctx, q) })
}

func (r *reached) Invite(ctx context.Context, q control.InviteRequest) (control.Invited, error) {
	return either(func() (control.Invited, error) { return r.site.Invite(ctx, q) }, func() (control.Invited, error) { return r.daemon.Invite(ctx, q) })
}

func (r *reached) Join(ctx context.Context, q control.JoinRequest) (control.Joined, error) {
	return either(func() (control.Joined, error) { return r.site.Join(ctx, q) }, func() (control.Joined, error) { return r.daemon.Join(ctx, q) })
}

func (r *reached) RemovePeer(ctx context.Context, q control.RemovePeerRequest) (control.Joined, error) {
	return either(func() (control.Joined, error) { return r.site.RemovePeer(ctx, q) }, func() (control.Joined, error) { return r.daemon.RemovePeer(ctx, q) })
}

func (r *reached) Rotate(ctx context.Context, q control.RotateRequest) (control.Rotation, error) {
	return either(func() (control.Rotation, error) { return r.site.Rotate(ctx, q) }, func() (control.Rotation, error) { return r.daemon.Rotate(ctx, q) })
}

func (r *reached) Mark(ctx context.Context, q control.MarkRequest) (control.Point, error) {
	return either(func() (control.Point, error) { return r.site.Mark(ctx, q) }, func() (control.Point, error) { return r.daemon.Mark(ctx, q) })
}

func (r *reached) Pause(ctx context.Context, q control.PauseRequest) (control.Paused, error) {
	return either(func() (control.Paused, error) { return r.site.Pause(ctx, q) }, func() (control.Paused, error) { return r.daemon.Pause(ctx, q) })
}

func (r *reached) Resume(ctx context.Context, q control.ResumeRequest) (control.Paused, error) {
	return either(func() (control.Paused, error) { return r.site.Resume(ctx, q) }, func() (control.Paused, error) { return r.daemon.Resume(ctx, q) })
}

func (r *reached) Verify(ctx context.Context, q control.VerifyRequest, progress func(control.Progress)) (control.Verified, error) {
	return either(func() (control.Verified, error) { return r.site.Verify(ctx, q, progress) }, func() (control.Verified, error) { return r.daemon.Verify(ctx, q, progress) })
}

// Serve without a daemon lasts as long as this process: there is nobody to leave
// a view without a lease to.
func (r *reached) Serve(ctx context.Context, q control.ServeRequest, opened func(control.View)) error {
	err := r.daemon.Serve(ctx, q, opened)
	if !control.Absent(err) {
		return err
	}
	if !q.Lease {
		return fault.New(fault.NeedsDaemon, "serve a view of "+q.Group, "a detached view lives in the daemon")
	}
	return r.site.Serve(ctx, q, opened)
}

func (r *reached) Views(ctx context.Context) ([]control.View, error) {
	return either(func() ([]control.View, error) { return r.site.Views(ctx) }, func() ([]control.View, error) { return r.daemon.Views(ctx) })
}

func (r *reached) CloseView(ctx context.Context, id string) error {
	err := r.daemon.CloseView(ctx, id)
	if control.Absent(err) {
		return r.site.CloseView(ctx, id)
	}
	return err
}

func (r *reached) Restore(ctx context.Context, q control.RestoreRequest, progress func(control.Progress)) (control.Restored, error) {
	return either(func() (control.Restored, error) { return r.site.Restore(ctx, q, progress) }, func() (control.Restored, error) { return r.daemon.Restore(ctx, q, progress) })
}

func (r *reached) PlanFailover(ctx context.Context, q control.FailoverRequest) (control.Plan, error) {
	return either(func() (control.Plan, error) { return r.site.PlanFailover(ctx, q) }, func() (control.Plan, error) { return r.daemon.PlanFailover(ctx, q) })
}

func (r *reached) Failover(ctx context.Context, q control.FailoverRequest, progress func(control.Progress)) (control.FailedOver, error) {
	return either(func() (control.FailedOver, error) { return r.site.Failover(ctx, q, progress) }, func() (control.FailedOver, error) { return r.daemon.Failover(ctx, q, progress) })
}

func (r *reached) PlanRewind(ctx context.Context, q control.RewindRequest) (control.RewindPlan, error) {
	return either(func() (control.RewindPlan, error) { return r.site.PlanRewind(ctx, q) }, func() (control.RewindPlan, error) { return r.daemon.PlanRewind(ctx, q) })
}

func (r *reached) Rewind(ctx context.Context, q control.RewindRequest, progress func(control.Progress)) (control.Rewound, error) {
	return either(func() (control.Rewound, error) { return r.site.Rewind(ctx, q, progress) }, func() (control.Rewound, error) { return r.daemon.Rewind(ctx, q, progress) })
}

func (r *reached) MoveDisks(ctx context.Context, q control.MoveRequest, progress func(control.Progress)) (control.Moved, error) {
	return either(func() (control.Moved, error) { return r.site.MoveDisks(ctx, q, progress) }, func() (control.Moved, error) { return r.daemon.MoveDisks(ctx, q, progress) })
}

func (r *reached) HomeDisks(ctx context.Context, q control.HomeRequest) (control.Home, error) {
	return either(func() (control.Home, error) { return r.site.HomeDisks(ctx, q) }, func() (control.Home, error) { return r.daemon.HomeDisks(ctx, q) })
}

func (r *reached) Changes(ctx context.Context, q control.ChangesRequest) (control.Changes, error) {
	return either(func() (control.Changes, error) { return r.site.Changes(ctx, q) }, func() (control.Changes, error) { return r.daemon.Changes(ctx, q) })
}

func (r *reached) Bisect(ctx context.Context, q control.BisectRequest) (control.Bisection, error) {
	return either(func() (control.Bisection, error) { return r.site.Bisect(ctx, q) }, func() (control.Bisection, error) { return r.daemon.Bisect(ctx, q) })
}

func (r *reached) PlanHandover(ctx context.Context, q control.HandoverRequest) (control.HandoverPlan, error) {
	return either(func() (control.HandoverPlan, error) { return r.site.PlanHandover(ctx, q) }, func() (control.HandoverPlan, error) { return r.daemon.PlanHandover(ctx, q) })
}

func (r *reached) Handover(ctx context.Context, q control.HandoverRequest, progress func(control.Progress)) (control.HandedOver, error) {
	return either(func() (control.HandedOver, error) { return r.site.Handover(ctx, q, progress) }, func() (control.HandedOver, error) { return r.daemon.Handover(ctx, q, progress) })
}

func (r *reached) PlanDecision(ctx context.Context, q control.DecisionRequest) (control.Decision, error) {
	return either(func() (control.Decision, error) { return r.site.PlanDecision(ctx, q) }, func() (control.Decision, error) { return r.daemon.PlanDecision(ctx, q) })
}

func (r *reached) Decide(ctx context.Context, q control.DecisionRequest, progress func(control.Progress)) (control.Decision, error) {
	return either(func() (control.Decision, error) { return r.site.Decide(ctx, q, progress) }, func() (control.Decision, error) { return r.daemon.Decide(ctx, q, progress) })
}

func (r *reached) TestFailover(ctx context.Context, q control.DrillRequest, progress func(control.Progress)) (control.Drilled, error) {
	return either(func() (control.Drilled, error) { return r.site.TestFailover(ctx, q, progress) }, func() (control.Drilled, error) { return r.daemon.TestFailover(ctx, q, progress) })
}

func (r *reached) CheckRunbook(ctx context.Context, q control.RunbookRequest) (control.RunbookPlan, error) {
	return r.site.CheckRunbook(ctx, q) // against the configuration as it is, also where the daemon has an older one
}

func (r *reached) PlanRunbook(ctx context.Context, q control.RunbookRequest) (control.RunbookPlan, error) {
	return either(func() (control.RunbookPlan, error) { return r.site.PlanRunbook(ctx, q) }, func() (control.RunbookPlan, error) { return r.daemon.PlanRunbook(ctx, q) })
}

func (r *reached) RunRunbook(ctx context.Context, q control.RunbookRequest, progress func(control.Progress)) (control.RunbookRun, error) {
	return either(func() (control.RunbookRun, error) { return r.site.RunRunbook(ctx, q, progress) }, func() (control.RunbookRun, error) { return r.daemon.RunRunbook(ctx, q, progress) })
}

func (r *reached) ResumeRun(ctx context.Context, q control.RunRequest, progress func(control.Progress)) (control.RunbookRun, error) {
	return either(func() (control.RunbookRun, error) { return r.site.ResumeRun(ctx, q, progress) }, func() (control.RunbookRun, error) { return r.daemon.ResumeRun(ctx, q, progress) })
}

func (r *reached) AbortRun(ctx context.Context, q control.RunRequest, progress func(control.Progress)) (control.RunbookRun, error) {
	return either(func() (control.RunbookRun, error) { return r.site.AbortRun(ctx, q, progress) }, func() (control.RunbookRun, error) { return r.daemon.AbortRun(ctx, q, progress) })
}

func (r *reached) Runs(ctx context.Context) ([]control.RunbookRun, error) {
	return either(func() ([]control.RunbookRun, error) { return r.site.Runs(ctx) }, func() ([]control.RunbookRun, error) { return r.daemon.Runs(ctx) })
}

func (r *reached) RunDetail(ctx context.Context, id string) (control.RunbookRun, error) {
	return either(func() (control.RunbookRun, error) { return r.site.RunDetail(ctx, id) }, func() (control.RunbookRun, error) { return r.daemon.RunDetail(ctx, id) })
}

func (r *reached) Reports(ctx context.Context) ([]control.Report, error) {
	return either(func() ([]control.Report, error) { return r.site.Reports(ctx) }, func() ([]control.Report, error) { return r.daemon.Reports(ctx) })
}

func (r *reached) ExportReport(ctx context.Context, q control.ReportRequest) (control.ReportFile, error) {
	return either(func() (control.ReportFile, error) { return r.site.ExportReport(ctx, q) }, func() (control.ReportFile, error) { return r.daemon.ExportReport(ctx, q) })
}

func (r *reached) LedgerHead(ctx context.Context) (control.Token, error) {
	return either(func() (control.Token, error) { return r.site.LedgerHead(ctx) }, func() (control.Token, error) { return r.daemon.LedgerHead(ctx) })
}

func (r *reached) VouchLedger(ctx context.Context, q control.TokenRequest) (control.Token, error) {
	return either(func() (control.Token, error) { return r.site.VouchLedger(ctx, q) }, func() (control.Token, error) { return r.daemon.VouchLedger(ctx, q) })
}

func (r *reached) KeepAnchor(ctx context.Context, q control.TokenRequest) (control.Token, error) {
	return either(func() (control.Token, error) { return r.site.KeepAnchor(ctx, q) }, func() (control.Token, error) { return r.daemon.KeepAnchor(ctx, q) })
}
