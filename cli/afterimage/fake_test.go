package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 250e6, time.UTC)

func at(sec int) time.Time { return noon.Add(time.Duration(sec) * time.Second) }

func ptr(f float64) *float64 { return &f }

// fake is a site with fixed answers; err, if set, is the answer to everything.
type fake struct {
	err      error
	failover control.FailoverRequest // as it was asked for
	failed   bool
	rewind   control.RewindRequest
	home     control.HomeRequest
	tried    []control.BisectTry
	pinErr   error // of pins alone
	refused  []string
	resumes  bool   // the failover only starts the machine
	halted   bool   // group show and status tell of a halted group
	halt     string // of which kind
}

var web = control.Group{
	Tenant: "default", Name: "web", Role: "primary", State: control.StateSynced, Since: at(-86400), Epoch: 3, EpochID: strings.Repeat("ab", 16),
	Seq: 1200, Durable: 1199, RPOSeconds: ptr(0.35), RPOTarget: 5, BehindWrites: 12, BehindBytes: 49152, WindowSeconds: 93784, LastPoint: at(-1), NextDrill: at(54000), JournalBytes: 5 << 30, Quota: 100 << 30,
	OldestPoint: at(-30 * 86400),
	Notices: []control.Notice{
		{Level: control.Warning, Text: "83% of the quota of 100GiB is used; at 100% history is thinned, then a gap opens", Hint: "Raise quota:, shorten history:, or let pins go"},
		{Level: control.Alarm, Code: "AI-E0409", Text: "peer c is cut off: it has nothing after record 3, and history before record 9 was thinned here", Hint: "Nothing is lost here. explain AI-E0409 says what to do"},
	},
	Lags: []control.Lag{{Peer: "b", Direction: "out", State: "streaming", RPOSeconds: ptr(0.35), BehindWrites: 12, BehindBytes: 49152, Durable: 1188, Moved: 5 << 30,
		Recent: &control.Measured{Since: at(-3600), Samples: 3600, Unknown: 12, P50: 0.021, P99: 0.38, Max: 4.2}}},
}

func (f *fake) Status(context.Context) (control.Status, error) {
	db := control.Group{Tenant: "acme", Name: "db", Role: "replica", State: control.StateWaiting, Epoch: 2, Seq: 9,
		RPOTarget: 1, Lags: []control.Lag{{Peer: "b", Direction: "in", State: "disconnected"}}}
	if f.halted {
		db.State, db.Detail, db.Halt, db.Lags[0].State = control.StateHalted, f.why(), f.halt, "halted"
	}
	return control.Status{Site: "a", Daemon: control.Running, Pin: "sha256:pin", PID: 4711, Since: at(-3600), Time: noon, Groups: []control.Group{web, db},
		Peers: []control.Peer{
			{Name: "b", Address: "192.0.2.2:7700", Pin: "sha256:b", State: "connected", Transport: "tls", Connections: 5, TransportWhy: "no answer over UDP", RPOSeconds: ptr(0.35), Limit: 10 << 20, Groups: 2},
			{Name: "c", State: "unpaired"},
		}}, f.err
}

const conflict = "replicate acme/db with b: split brain after seq 8"

// why is what replication says of the halt.
func (f *fake) why() string {
	if f.halt == control.HaltHistoryLost {
		return "replicate acme/db with b: source lost history that its peer holds after seq 8"
	}
	return conflict
}

func (f *fake) Group(_ context.Context, name string) (control.GroupDetail, error) {
	if f.halted {
		g := control.Group{Tenant: "acme", Name: "db", Role: "replica", State: control.StateHalted, Detail: f.why(), Halt: f.halt, Epoch: 2, Seq: 9}
		return control.GroupDetail{Group: g, Configured: "replica", Conflict: f.why()}, f.err
	}
	return control.GroupDetail{Group: web, ID: "01", Dir: "/var/lib/afterimage/groups/default/web", Sync: "process", Stall: 0.5, Configured: "primary",
		Retention:   control.Retention{History: []control.Rung{{Every: "write", For: "24h"}, {Every: "1m", For: "7d"}, {Every: "1h", For: "ever"}}, Lock: 43200, Quota: 100 << 30, Warn: []int{80, 90}, Every: 60, Rate: 50 << 20},
		Usage:       taken,
		Maintenance: control.Maintenance{Last: &maintained, Next: at(20)},
		Holds: []control.Hold{
			{Peer: "b", State: control.HoldKept, Cursor: "#3.1188", Level: at(-1), Until: at(3 * 86400), Behind: 49152, For: 259200, Bytes: 200 << 30},
			{Peer: "c", State: control.HoldLost, Cursor: "#1.3", Level: at(-9 * 86400), Until: at(-6 * 86400), Behind: 90 << 30, For: 259200, Why: "it has nothing after record 3"},
		},
		Pins:    []control.Pin{{Name: "audit", Point: control.Point{Epoch: 1, Seq: 17, Time: at(-30 * 86400)}, Note: "until 2027"}},
		Machine: "web1", MachineState: control.MachineRuns, MachinePID: 4712, Timing: &measuredRuns,
		Volumes: []control.Volume{
			{Name: "root", ID: "02", Size: 20 << 30, Kind: "embedded", State: "synced", Export: "nbd+unix:///web/root?socket=%2Frun%2Fnbd.sock"},
			{Name: "data", ID: "03", Size: 3 << 29, Kind: "tapped", State: "broken", Cause: "stall"},
		},
		Branches: []control.Branch{
			{Epoch: 2, ID: strings.Repeat("cd", 16), Site: "b", Begun: at(-90000), First: 1, Last: 900, Current: true},
			{Epoch: 3, ID: strings.Repeat("ab", 16), Site: "a", Begun: at(-86400), First: 901, Last: 1200, Current: true},
			{Epoch: 3, ID: strings.Repeat("ef", 16), Site: "b", Begun: at(-86300), First: 901, Last: 900},
		}}, f.err
}

func (f *fake) Points(_ context.Context, q control.PointsQuery) (control.Points, error) {
	ps := control.Points{Group: "default/web",
		Time: noon,
		Kept: []control.Stretch{
			{First: control.Point{Epoch: 1, Seq: 17, Time: at(-30 * 86400)}, Last: control.Point{Epoch: 1, Seq: 17, Time: at(-30 * 86400)}, Points: 1, Reasons: []string{"every 1h", "pin audit"}, Volumes: both},
			hourly(90, -20*86400), hourly(120, -20*86400+3600), hourly(180, -20*86400+7200),
			{First: control.Point{Epoch: 2, Seq: 2, Time: at(-8 * 86400)}, Last: control.Point{Epoch: 2, Seq: 2, Time: at(-8 * 86400)}, Points: 1, Reasons: []string{"every 1h"}, Volumes: both, Invalid: "run 3 is damaged at 4096"},
			{First: control.Point{Epoch: 2, Seq: 3, Time: at(-7200)}, Last: control.Point{Epoch: 2, Seq: 900, Time: at(-3600)}, Points: 898, Reasons: []string{"every write"}, Ended: "stall", Volumes: both[:1]},
			{First: control.Point{Epoch: 3, Seq: 905, Time: at(-3000)}, Last: control.Point{Epoch: 3, Seq: 1200, Time: at(-1)}, Points: 296, Reasons: []string{"every write"}, Open: true, Volumes: both},
			{First: control.Point{Epoch: 3, Seq: 1000, Time: at(-600)}, Last: control.Point{Epoch: 3, Seq: 1000, Time: at(-600)}, Points: 1, Reasons: []string{"view", "mark before-patch"}, Volumes: both},
		},
		Pins: []control.Pin{{Name: "audit", Point: control.Point{Epoch: 1, Seq: 17, Time: at(-30 * 86400)}, Note: "until 2027"}, {Name: "backup", Point: control.Point{Epoch: 3, Seq: 950, Time: at(-900)}, Diff: true}},
		Spans: []control.Span{
			{First: control.Point{Epoch: 2, Seq: 3, Time: at(-7200)}, Last: control.Point{Epoch: 2, Seq: 900, Time: at(-3600)}, Ended: "stall"},
			{First: control.Point{Epoch: 3, Seq: 905, Time: at(-3000)}, Last: control.Point{Epoch: 3, Seq: 1200, Time: at(-1)}, Open: true},
		},
		Gaps:  []control.Gap{{Epoch: 2, Seq: 901, Time: at(-3600), Volume: "root", Cause: "stall", Detail: "a write took 700 ms"}},
		Marks: []control.Point{{Epoch: 3, Seq: 1000, Time: at(-600), Marks: []control.Mark{{Name: "before-patch", App: true, Pin: true, Note: "by hand"}}}},
	}
	left := uint64(12)
	ps.Skipped = []control.Skipped{{After: 17, To: control.Point{Epoch: 1, Seq: 90, Time: at(-20 * 86400)}, At: at(-19 * 86400), Peer: "a", Left: &left}}
	ps.Suspect = []control.Suspicion{{Volume: "root", Since: at(-500), Clean: &control.Point{Epoch: 3, Seq: 1050, Time: at(-501)}, Pin: "clean-20261122T115140Z", Turned: 9 << 20, Ratio: 0.81, Usual: 0.02, Extents: suspectExtents, Widened: true},
		{Volume: "data", Since: at(-9000), Until: at(-8000), Ratio: 0.4}}
	if q.Branches {
		ps.Abandoned = []control.Abandoned{{Epoch: 1, ID: strings.Repeat("ab", 16), Site: "b", Begun: at(-86400), First: 901, Last: 1200, Newest: &control.Point{Epoch: 1, Seq: 1199, Time: at(-7200)}, At: "#1.1199"},
			{Epoch: 2, ID: strings.Repeat("cd", 16), Site: "a", Begun: at(-86000), First: 12, Last: 14}}
	}
	if q.At != "" {
		ps.Resolved = &control.Point{Epoch: 3, Seq: 1000, Time: at(-600)}
	}
	return ps, f.err
}

var both = []string{"data", "root"}

// hourly is a point that only the ladder keeps.
func hourly(seq uint64, sec int) control.Stretch {
	p := control.Point{Epoch: 1, Seq: seq, Time: at(sec)}
	return control.Stretch{First: p, Last: p, Points: 1, Reasons: []string{"every 1h"}, Volumes: both}
}

func (f *fake) Pin(_ context.Context, q control.PinRequest) (control.Pin, error) {
	return control.Pin{Name: q.Name, Point: view.Point, Diff: q.Diff, Note: q.Note, Since: noon}, errors.Join(f.err, f.pinErr)
}

func (f *fake) Unpin(_ context.Context, q control.UnpinRequest) (control.Pin, error) {
	return control.Pin{Name: q.Name, Point: view.Point}, f.err
}

func (f *fake) Key(_ context.Context, q control.KeyRequest) (control.KeyState, error) {
	return control.KeyState{Group: "default/web", DryRun: q.DryRun, Key: "web-2", Keys: []string{"web-1", "web-2"}, DataKeys: 12, Unreadable: 1}, f.err
}

func (f *fake) RotateKey(ctx context.Context, q control.KeyRequest) (control.KeyState, error) {
	k, err := f.Key(ctx, q)
	k.Rewrapped, k.Unreadable = 7, 0
	return k, err
}

func (f *fake) ShredKey(ctx context.Context, q control.KeyRequest) (control.KeyState, error) {
	k, err := f.Key(ctx, q)
	k.Remaining, k.Seconds, k.Bytes = []string{"web-2 (command /usr/local/bin/print-key)"}, 86400, 5<<30
	if !q.DryRun {
		k.Destroyed = []string{"web-1"}
	}
	return k, err
}

func (f *fake) Maintain(_ context.Context, q control.MaintainRequest, progress func(control.Progress)) (control.Maintained, error) {
	m := maintained
	if m.DryRun = q.DryRun; q.DryRun {
		m.Folded, m.Merged, m.Written, m.Freed, m.Warning = 0, 0, 0, 0, ""
		m.Gone = []control.Stretch{{First: control.Point{Epoch: 2, Seq: 3, Time: at(-90000)}, Last: control.Point{Epoch: 2, Seq: 900, Time: at(-86500)}, Points: 898, Reasons: []string{"every write"}}}
		return m, f.err
	}
	for _, done := range []int64{0, 1 << 30, 2 << 30} {
		progress(control.Progress{Step: "fold", Done: done, Total: 2 << 30, Unit: "steps"})
	}
	return m, f.err
}

var seed = control.Seed{Group: "default/web", File: "/media/disk/web.seed", Site: "a", Made: at(-600), Bytes: 40 << 30, Epoch: "e2", Seq: 1200, Time: at(-601), Seconds: 90}

func (f *fake) ExportSeed(_ context.Context, q control.SeedExport, progress func(control.Progress)) (control.Seed, error) {
	progress(control.Progress{Step: "export", Done: 20 << 30})
	return seed, f.err
}

func (f *fake) ImportSeed(_ context.Context, q control.SeedImport, progress func(control.Progress)) (control.Seed, error) {
	progress(control.Progress{Step: "import", Done: 20 << 30, Total: 80 << 30})
	return seed, f.err
}

var taken = control.Usage{Used: 83 << 30, Quota: 100 << 30, Segments: 1200, Runs: 3, SegmentBytes: 75 << 30, RunBytes: 8 << 30, Oldest: &control.Point{Epoch: 1, Seq: 17, Time: at(-30 * 86400)}}

var maintained = control.Maintained{Group: "default/web", Time: at(-40), Seconds: 21.5, Folded: 2 << 30, Merged: 3 << 29, Written: 1 << 30, Freed: 5 << 29, Usage: taken,
	Warning: "history takes 83 % of its quota"}

func (f *fake) Limit(_ context.Context, q control.LimitRequest) (control.Limited, error) {
	l := control.Limited{Peer: q.Peer, Group: q.Group, BytesPerSecond: q.BytesPerSecond, Set: !q.Schedule, Schedule: "08:00,10M 19:00,off"}
	if q.ForSeconds > 0 {
		l.Until = at(int(q.ForSeconds))
	}
	return l, f.err
}

func (f *fake) Invite(_ context.Context, q control.InviteRequest) (control.Invited, error) {
	return control.Invited{Peer: q.Peer, Token: "aijoin1-AAAA", Addresses: []string{"192.0.2.1:7700"}, Expires: at(int(q.ForSeconds))}, f.err
}

func (f *fake) Join(_ context.Context, q control.JoinRequest) (control.Joined, error) {
	return control.Joined{Peer: "b", Pin: "sha256:YmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmI", Address: "192.0.2.2:7700"}, f.err
}

func (f *fake) RemovePeer(_ context.Context, q control.RemovePeerRequest) (control.Joined, error) {
	return control.Joined{Peer: q.Peer}, f.err
}

func (f *fake) Rotate(context.Context, control.RotateRequest) (control.Rotation, error) {
	return control.Rotation{Pin: "sha256:YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE", Next: "sha256:YmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmI", Waiting: []string{"b"}}, f.err
}

func (f *fake) Mark(_ context.Context, q control.MarkRequest) (control.Point, error) {
	return control.Point{Epoch: 3, Seq: 1201, Time: noon, Marks: []control.Mark{{Name: q.Name}}}, f.err
}

var view = control.View{ID: "v1", Group: "default/web", At: "latest", Point: control.Point{Epoch: 3, Seq: 1200, Time: at(-1)}, Listen: "/run/v1", Since: noon,
	Exports: []control.Export{{Volume: "root", Size: 20 << 30, URI: "nbd+unix:///root?socket=%2Frun%2Fv1"}}}

func (f *fake) Serve(_ context.Context, q control.ServeRequest, opened func(control.View)) error {
	if f.err == nil {
		opened(view)
	}
	return f.err
}

func (f *fake) Views(context.Context) ([]control.View, error) { return []control.View{view}, f.err }
func (f *fake) CloseView(context.Context, string) error       { return f.err }

func (f *fake) Restore(_ context.Context, q control.RestoreRequest, progress func(control.Progress)) (control.Restored, error) {
	for _, done := range []int64{0, 5 << 30, 20 << 30} {
		progress(control.Progress{Step: "write root", Done: done, Total: 20 << 30})
	}
	return control.Restored{Group: "default/web", At: q.At, Point: view.Point, Seconds: 3,
		Files: []control.RestoredFile{{Volume: "root", Path: "/srv/root.raw", Format: q.Format, Bytes: 20 << 30, Data: 1 << 20, SHA256: strings.Repeat("0", 64), Verified: true}}}, f.err
}

var _ control.API = (*fake)(nil)

// ran is a command's outcome.
type ran struct {
	exit           int
	stdout, stderr string
}

// stage is where a command is run: with a site, an input, and terminals or not.
type stage struct {
	api   control.API
	stdin string
	tty   bool
	env   map[string]string
	width int // of the terminal
}

// run runs a command with a configuration that is in order. The clock moves a
// second at each look.
func (s stage) run(t *testing.T, args ...string) ran {
	t.Helper()
	file := filepath.Join(t.TempDir(), "a.yml")
	if err := os.WriteFile(file, []byte("site: a\ndata: d\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	now := noon
	w := &world{stdin: strings.NewReader(s.stdin), stdout: &out, stderr: &errs, columns: func() int { return s.width }, stdinTTY: s.tty, stdoutTTY: s.tty, stderrTTY: s.tty,
		getenv: func(k string) string { return s.env[k] }, zone: time.FixedZone("", 3600),
		now:   func() time.Time { now = now.Add(time.Second); return now },
		reach: func(*config.Config) control.API { return s.api }}
	code := run(context.Background(), w, append([]string{"--config", file}, args...))
	return ran{code, strings.ReplaceAll(out.String(), file, "a.yml"), strings.ReplaceAll(errs.String(), file, "a.yml")}
}

var errFake = fault.New(fault.JournalDamage, "look at default/web", "read: damaged record: seq 7")

func remainingOf(spent time.Duration, done, total int64) control.Progress {
	return control.Progress{Step: "x", Done: done, Total: total, Remaining: remaining(spent, done, total)}
}

func (f *fake) Verify(_ context.Context, q control.VerifyRequest, progress func(control.Progress)) (control.Verified, error) {
	progress(control.Progress{Step: "verify", Done: 5 << 30, Total: 5 << 30})
	d := control.Damage{Volume: "root", Epoch: strings.Repeat("ab", 16), First: 900, Last: 903, File: "0000000000000007.seg", Offset: 81920, What: "a payload differs from its checksums"}
	r := control.Verified{Group: "default/web", Time: noon, Seconds: 12, Bytes: 5 << 30, Found: []control.Damage{d}, Left: []control.Damage{}, Invalid: []control.InvalidPoints{}}
	if q.Repair {
		r.Repairs = []control.Repair{{Peer: "b", Files: 1, Frames: 2, Bytes: 128 << 10}}
		return r, f.err
	}
	r.Left, r.Invalid = r.Found, []control.InvalidPoints{{First: 900, Last: 1100, Why: d.What}}
	return r, f.err
}

func (f *fake) TestFailover(_ context.Context, q control.DrillRequest, progress func(control.Progress)) (control.Drilled, error) {
	progress(control.Progress{Step: "start process 7, isolated (0.300 s)"})
	return control.Drilled{Group: "default/web", At: q.At, Point: view.Point, Machine: "drill-web1", RTOSeconds: 0.8, Health: "ready", Report: "/r/web-drill.html"}, f.err
}

func (f *fake) CheckRunbook(context.Context, control.RunbookRequest) (control.RunbookPlan, error) {
	return control.RunbookPlan{Runbook: "shop", Groups: []string{"db", "acme/web"}}, f.err
}

func (f *fake) PlanRunbook(_ context.Context, q control.RunbookRequest) (control.RunbookPlan, error) {
	p := control.RunbookPlan{Runbook: "shop", Mode: q.Mode, At: q.At, Digest: "d2", Groups: []string{"default/web"}, Text: "runbook shop, the plan\n", Warnings: []string{"default/db runs here already"}}
	if q.Mode == "unplanned" {
		p.Failover, p.Refused = []control.Plan{plan}, f.refused
	}
	return p, f.err
}

var booked = control.RunbookRun{Run: "shop-test-20261122-120000", Runbook: "shop", Mode: "test", At: "latest", Operator: "ann", State: "done", Begun: at(-60), Ended: at(-40), RTO: ptr(18.5),
	Steps: []control.RunbookStep{
		{Step: 1, Boot: "data", Name: "start db", Kind: "start", Machine: "db", State: "done", Seconds: ptr(1.5)},
		{Step: 2, Boot: "data", Name: "tell the desk", Kind: "notify", After: []int{1}, State: "given-up", Detail: "exit status 1", Output: "no modem\n\x1b[2Jno line\n"},
	}}

func (f *fake) RunRunbook(_ context.Context, _ control.RunbookRequest, progress func(control.Progress)) (control.RunbookRun, error) {
	progress(control.Progress{Step: "step 1 of 2, start db: done"})
	r := booked
	r.Report = "/r/shop-test.html"
	return r, f.err
}

func (f *fake) ResumeRun(context.Context, control.RunRequest, func(control.Progress)) (control.RunbookRun, error) {
	return booked, f.err
}

func (f *fake) AbortRun(context.Context, control.RunRequest, func(control.Progress)) (control.RunbookRun, error) {
	r := booked
	r.Why = "by ann"
	return r, f.err
}

func (f *fake) Runs(context.Context) ([]control.RunbookRun, error) {
	return []control.RunbookRun{booked}, f.err
}

func (f *fake) RunDetail(context.Context, string) (control.RunbookRun, error) { return booked, f.err }

func (f *fake) Reports(context.Context) ([]control.Report, error) {
	return []control.Report{{N: 1, Name: "default-web-drill-1", Kind: "drill", Group: "default/web", Time: at(-86400), Held: true, RTO: 0.8, Anchored: true},
		{N: 2, Name: "default-web-epoch-4", Kind: "failover", Group: "default/web", Time: at(-60), RTO: 1.5},
		{N: 3, Name: "shop-test-20261122-120000", Kind: "run", Time: at(-40), Held: true, RTO: 18.5}}, f.err
}

func (f *fake) ExportReport(_ context.Context, q control.ReportRequest) (control.ReportFile, error) {
	return control.ReportFile{Name: q.Name, File: []byte("{}")}, f.err
}

func (f *fake) LedgerHead(context.Context) (control.Token, error) {
	return control.Token{Token: "aihead1-AAAA", Site: "a", Entries: 2}, f.err
}

func (f *fake) VouchLedger(context.Context, control.TokenRequest) (control.Token, error) {
	return control.Token{Token: "aianchor1-AAAA", Site: "b", Entries: 7}, f.err
}

func (f *fake) KeepAnchor(_ context.Context, q control.TokenRequest) (control.Token, error) {
	return control.Token{Token: q.Token, Site: "b", Entries: 2}, f.err
}

// suspectExtents are more than are shown without --all.
var suspectExtents = func() (out []control.Extent) {
	for i := range int64(rangesShown + 2) {
		out = append(out, control.Extent{Offset: i << 24, Length: (i + 1) << 16})
	}
	return out
}()
