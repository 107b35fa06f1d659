package control

import (
	"context"
	"time"
)

// echo is an API that answers with what it was asked.
type echo struct {
	closed chan string
	err    error
}

func (e *echo) Status(context.Context) (Status, error) { return Status{Site: "a", PID: 7}, e.err }
func (e *echo) Group(_ context.Context, name string) (GroupDetail, error) {
	return GroupDetail{Group: Group{Name: name}}, e.err
}
func (e *echo) Points(_ context.Context, q PointsQuery) (Points, error) {
	return Points{Group: q.Group + "@" + q.At}, e.err
}
func (e *echo) Pin(_ context.Context, q PinRequest) (Pin, error) {
	return Pin{Name: q.Name + "@" + q.At, Diff: q.Diff, Note: q.Note}, e.err
}
func (e *echo) Unpin(_ context.Context, q UnpinRequest) (Pin, error) { return Pin{Name: q.Name}, e.err }
func (e *echo) Pause(_ context.Context, q PauseRequest) (Paused, error) {
	return Paused{Since: time.Unix(9, 0).UTC(), Until: time.Unix(9+int64(q.Seconds), 0).UTC(), Reason: q.Group + q.Reason}, e.err
}
func (e *echo) Resume(_ context.Context, q ResumeRequest) (Paused, error) {
	return Paused{Reason: q.Group}, e.err
}
func (e *echo) Maintain(_ context.Context, q MaintainRequest, progress func(Progress)) (Maintained, error) {
	progress(Progress{Step: "fold", Done: 1, Total: 2})
	return Maintained{Group: q.Group, DryRun: q.DryRun}, e.err
}
func (e *echo) ExportSeed(_ context.Context, q SeedExport, progress func(Progress)) (Seed, error) {
	progress(Progress{Step: "export", Done: 1})
	return Seed{Group: q.Group, File: q.To}, e.err
}
func (e *echo) ImportSeed(_ context.Context, q SeedImport, progress func(Progress)) (Seed, error) {
	progress(Progress{Step: "import", Done: 1, Total: 2})
	return Seed{File: q.From}, e.err
}
func (e *echo) Verify(_ context.Context, q VerifyRequest, progress func(Progress)) (Verified, error) {
	progress(Progress{Step: "verify", Done: 1, Total: 2})
	return Verified{Group: q.Group, Left: []Damage{{File: q.From}}}, e.err
}
func (e *echo) Key(_ context.Context, q KeyRequest) (KeyState, error) {
	return KeyState{Group: q.Group, Key: "acme-1", Keys: []string{"acme-1"}}, e.err
}
func (e *echo) RotateKey(_ context.Context, q KeyRequest) (KeyState, error) {
	return KeyState{Group: q.Group, DryRun: q.DryRun, Rewrapped: 3}, e.err
}
func (e *echo) ShredKey(_ context.Context, q KeyRequest) (KeyState, error) {
	return KeyState{Group: q.Group, DryRun: q.DryRun, Destroyed: []string{"acme-1"}}, e.err
}
func (e *echo) Limit(_ context.Context, q LimitRequest) (Limited, error) {
	return Limited{Peer: q.Peer, Group: q.Group, BytesPerSecond: q.BytesPerSecond, Set: !q.Schedule}, e.err
}
func (e *echo) Invite(_ context.Context, q InviteRequest) (Invited, error) {
	return Invited{Peer: q.Peer, Token: "t", Addresses: q.Addresses}, e.err
}
func (e *echo) Join(_ context.Context, q JoinRequest) (Joined, error) {
	return Joined{Peer: "a", Pin: q.Token}, e.err
}
func (e *echo) Rotate(_ context.Context, q RotateRequest) (Rotation, error) {
	return Rotation{Pin: "p", Waiting: []string{}}, e.err
}

func (e *echo) RemovePeer(_ context.Context, q RemovePeerRequest) (Joined, error) {
	return Joined{Peer: q.Peer}, e.err
}
func (e *echo) Mark(_ context.Context, q MarkRequest) (Point, error) {
	return Point{Seq: 9, Marks: []Mark{{Name: q.Name, App: q.App, Pin: q.Pin, Note: q.Note}}}, e.err
}
func (e *echo) Serve(ctx context.Context, q ServeRequest, opened func(View)) error {
	if e.err != nil {
		return e.err
	}
	opened(View{ID: "v1", Group: q.Group})
	if q.Lease {
		<-ctx.Done()
		e.closed <- "v1"
	}
	return nil
}
func (e *echo) Views(context.Context) ([]View, error) { return []View{{ID: "v1"}}, e.err }
func (e *echo) CloseView(_ context.Context, id string) error {
	if e.err == nil {
		e.closed <- id
	}
	return e.err
}
func (e *echo) Restore(_ context.Context, q RestoreRequest, progress func(Progress)) (Restored, error) {
	for i := range 3 {
		progress(Progress{Step: q.To, Done: int64(i), Total: 3})
	}
	return Restored{Group: q.Group}, e.err
}
func (e *echo) PlanFailover(_ context.Context, q FailoverRequest) (Plan, error) {
	return Plan{Group: q.Group, Loss: Loss{Known: true, Seconds: 1.5}}, e.err
}
func (e *echo) PlanRewind(_ context.Context, q RewindRequest) (RewindPlan, error) {
	return RewindPlan{Group: q.Group, At: q.At}, e.err
}
func (e *echo) MoveDisks(_ context.Context, q MoveRequest, progress func(Progress)) (Moved, error) {
	progress(Progress{Step: "copy root", Done: 1, Total: 2})
	return Moved{Group: q.Group, Volumes: []MovedVolume{{Volume: "root", Image: q.To}}}, e.err
}

func (e *echo) HomeDisks(_ context.Context, q HomeRequest) (Home, error) {
	return Home{Group: q.Group, Domain: q.Operator, Disks: []HomeDisk{{Volume: "root", Named: q.Disks["root"], Said: !q.DryRun}}}, e.err
}

func (e *echo) Rewind(_ context.Context, q RewindRequest, progress func(Progress)) (Rewound, error) {
	progress(Progress{Step: "fork"})
	return Rewound{RewindPlan: RewindPlan{Group: q.Group, Digest: q.Expect}}, e.err
}
func (e *echo) Changes(_ context.Context, q ChangesRequest) (Changes, error) {
	return Changes{Group: q.Group + q.From + q.To}, e.err
}
func (e *echo) Bisect(_ context.Context, q BisectRequest) (Bisection, error) {
	return Bisection{Group: q.Group, Check: q.Check, Tries: []BisectTry{*q.Tried}}, e.err
}
func (e *echo) Failover(_ context.Context, q FailoverRequest, progress func(Progress)) (FailedOver, error) {
	progress(Progress{Step: "begin epoch"})
	return FailedOver{Plan: Plan{Group: q.Group, Digest: q.Expect}}, e.err
}

func (e *echo) PlanHandover(_ context.Context, q HandoverRequest) (HandoverPlan, error) {
	return HandoverPlan{Group: q.Group, To: q.To}, e.err
}

func (e *echo) Handover(_ context.Context, q HandoverRequest, progress func(Progress)) (HandedOver, error) {
	progress(Progress{Step: "drain"})
	return HandedOver{HandoverPlan: HandoverPlan{Group: q.Group, Digest: q.Expect}, Epoch: 7}, e.err
}

func (e *echo) PlanDecision(_ context.Context, q DecisionRequest) (Decision, error) {
	return Decision{Verb: q.Verb, Group: q.Group}, e.err
}

func (e *echo) Decide(_ context.Context, q DecisionRequest, progress func(Progress)) (Decision, error) {
	progress(Progress{Step: q.Verb})
	return Decision{Verb: q.Verb, Group: q.Group, Done: true, Following: []string{q.Keep}}, e.err
}

func (e *echo) TestFailover(_ context.Context, q DrillRequest, progress func(Progress)) (Drilled, error) {
	progress(Progress{Step: "start"})
	return Drilled{Group: q.Group, At: q.At}, e.err
}
func (e *echo) CheckRunbook(_ context.Context, q RunbookRequest) (RunbookPlan, error) {
	return RunbookPlan{Runbook: q.File}, e.err
}
func (e *echo) PlanRunbook(_ context.Context, q RunbookRequest) (RunbookPlan, error) {
	return RunbookPlan{Text: string(q.Text), Mode: q.Mode}, e.err
}
func (e *echo) RunRunbook(_ context.Context, q RunbookRequest, progress func(Progress)) (RunbookRun, error) {
	progress(Progress{Step: "one"})
	return RunbookRun{Runbook: q.File, Mode: q.Mode}, e.err
}
func (e *echo) ResumeRun(_ context.Context, q RunRequest, progress func(Progress)) (RunbookRun, error) {
	progress(Progress{Step: q.Answer})
	return RunbookRun{Run: q.Run}, e.err
}
func (e *echo) AbortRun(_ context.Context, q RunRequest, progress func(Progress)) (RunbookRun, error) {
	progress(Progress{Step: q.Reason})
	return RunbookRun{Run: q.Run, State: "aborted"}, e.err
}
func (e *echo) Runs(context.Context) ([]RunbookRun, error) { return []RunbookRun{{Run: "r"}}, e.err }
func (e *echo) RunDetail(_ context.Context, id string) (RunbookRun, error) {
	return RunbookRun{Run: id}, e.err
}

func (e *echo) Reports(context.Context) ([]Report, error) { return []Report{{Name: "x"}}, e.err }
func (e *echo) ExportReport(_ context.Context, q ReportRequest) (ReportFile, error) {
	return ReportFile{Name: q.Name, File: []byte("f")}, e.err
}
func (e *echo) LedgerHead(context.Context) (Token, error) { return Token{Token: "h"}, e.err }
func (e *echo) VouchLedger(_ context.Context, q TokenRequest) (Token, error) {
	return Token{Token: q.Token, Site: "vouched"}, e.err
}
func (e *echo) KeepAnchor(_ context.Context, q TokenRequest) (Token, error) {
	return Token{Token: q.Token, Site: "kept"}, e.err
}
