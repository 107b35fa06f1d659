package control

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/novacron/afterimage/site/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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

// start serves api and returns a client and the socket's path.
func start(t *testing.T, api API) (*Client, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "ai")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "run", "control.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- NewServer(api, slog.New(slog.DiscardHandler)).Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the socket is left behind: %v", err)
		}
		os.RemoveAll(dir)
	})
	return NewClient(path), path
}

// every calls each verb once and returns what it answered.
func every(c API) map[string]func() (any, error) {
	ctx := context.Background()
	return map[string]func() (any, error){
		"Status": func() (any, error) { return c.Status(ctx) },
		"Group":  func() (any, error) { return c.Group(ctx, "t/web") },
		"Points": func() (any, error) {
			return c.Points(ctx, PointsQuery{Group: "web", At: "#3", From: time.Unix(7, 0).UTC()})
		},
		"Pin":    func() (any, error) { return c.Pin(ctx, PinRequest{"web", "x", "#3", true, "n"}) },
		"Unpin":  func() (any, error) { return c.Unpin(ctx, UnpinRequest{"web", "x"}) },
		"Pause":  func() (any, error) { return c.Pause(ctx, PauseRequest{"web", 60, "x"}) },
		"Resume": func() (any, error) { return c.Resume(ctx, ResumeRequest{"web"}) },
		"Maintain": func() (any, error) {
			var seen []Progress
			r, err := c.Maintain(ctx, MaintainRequest{Group: "web", DryRun: true}, func(p Progress) { seen = append(seen, p) })
			return []any{r, seen}, err
		},
		"ExportSeed": func() (any, error) {
			var seen []Progress
			r, err := c.ExportSeed(ctx, SeedExport{Group: "web", To: "/x"}, func(p Progress) { seen = append(seen, p) })
			return []any{r, seen}, err
		},
		"ImportSeed": func() (any, error) {
			var seen []Progress
			r, err := c.ImportSeed(ctx, SeedImport{From: "/x"}, func(p Progress) { seen = append(seen, p) })
			return []any{r, seen}, err
		},
		"Verify": func() (any, error) {
			var seen []Progress
			r, err := c.Verify(ctx, VerifyRequest{Group: "web", Repair: true, From: "b"}, func(p Progress) { seen = append(seen, p) })
			return []any{r, seen}, err
		},
		"Key":        func() (any, error) { return c.Key(ctx, KeyRequest{Group: "web"}) },
		"RotateKey":  func() (any, error) { return c.RotateKey(ctx, KeyRequest{Group: "web"}) },
		"ShredKey":   func() (any, error) { return c.ShredKey(ctx, KeyRequest{Group: "web", DryRun: true}) },
		"Limit":      func() (any, error) { return c.Limit(ctx, LimitRequest{"b", "", 5 << 20, 7200, false}) },
		"Invite":     func() (any, error) { return c.Invite(ctx, InviteRequest{"b", []string{"x:1"}, 60}) },
		"Join":       func() (any, error) { return c.Join(ctx, JoinRequest{"t"}) },
		"Rotate":     func() (any, error) { return c.Rotate(ctx, RotateRequest{Now: true}) },
		"RemovePeer": func() (any, error) { return c.RemovePeer(ctx, RemovePeerRequest{"b"}) },
		"Mark":       func() (any, error) { return c.Mark(ctx, MarkRequest{"web", "x", true, true, "n"}) },
		"Serve": func() (any, error) {
			var seen []View
			err := c.Serve(ctx, ServeRequest{Group: "web"}, func(v View) { seen = append(seen, v) })
			return seen, err
		},
		"Views":     func() (any, error) { return c.Views(ctx) },
		"CloseView": func() (any, error) { return nil, c.CloseView(ctx, "a/b") },
		"Restore": func() (any, error) {
			var seen []Progress
			r, err := c.Restore(ctx, RestoreRequest{Group: "web", To: "/x"}, func(p Progress) { seen = append(seen, p) })
			return []any{r, seen}, err
		},
		"TestFailover": func() (any, error) {
			var seen []Progress
			r, err := c.TestFailover(ctx, DrillRequest{Group: "web", At: "#3"}, func(p Progress) { seen = append(seen, p) })
			return []any{r, seen}, err
		},
		"Reports":      func() (any, error) { return c.Reports(ctx) },
		"ExportReport": func() (any, error) { return c.ExportReport(ctx, ReportRequest{"r"}) },
		"LedgerHead":   func() (any, error) { return c.LedgerHead(ctx) },
		"VouchLedger":  func() (any, error) { return c.VouchLedger(ctx, TokenRequest{"t"}) },
		"KeepAnchor":   func() (any, error) { return c.KeepAnchor(ctx, TokenRequest{"t"}) },
		"CheckRunbook": func() (any, error) { return c.CheckRunbook(ctx, RunbookRequest{File: "x.yml"}) },
		"PlanRunbook":  func() (any, error) { return c.PlanRunbook(ctx, RunbookRequest{Text: []byte("x: y"), Mode: "test"}) },
		"RunRunbook": func() (any, error) {
			var seen []Progress
			r, err := c.RunRunbook(ctx, RunbookRequest{File: "x.yml", Mode: "test"}, func(p Progress) { seen = append(seen, p) })
			return []any{r, seen}, err
		},
		"ResumeRun": func() (any, error) {
			var seen []Progress
			r, err := c.ResumeRun(ctx, RunRequest{Run: "r", Step: 3, Answer: "yes"}, func(p Progress) { seen = append(seen, p) })
			return []any{r, seen}, err
		},
		"AbortRun": func() (any, error) {
			var seen []Progress
			r, err := c.AbortRun(ctx, RunRequest{Run: "r", Reason: "x"}, func(p Progress) { seen = append(seen, p) })
			return []any{r, seen}, err
		},
		"Runs":       func() (any, error) { return c.Runs(ctx) },
		"RunDetail":  func() (any, error) { return c.RunDetail(ctx, "r/../x") },
		"PlanRewind": func() (any, error) { return c.PlanRewind(ctx, RewindRequest{Group: "web", At: "#3"}) },
		"MoveDisks": func() (any, error) {
			return c.MoveDisks(ctx, MoveRequest{Group: "web", To: "/x"}, func(Progress) {})
		},
		"Rewind": func() (any, error) {
			var seen []Progress
			r, err := c.Rewind(ctx, RewindRequest{Group: "web", Expect: "d"}, func(p Progress) { seen = append(seen, p) })
			return []any{seen, r}, err
		},
		"Changes": func() (any, error) { return c.Changes(ctx, ChangesRequest{Group: "web", From: "#3", To: "#4"}) },
		"Bisect": func() (any, error) {
			return c.Bisect(ctx, BisectRequest{Group: "web", Check: "x", Tried: &BisectTry{Verdict: "bad"}})
		},
		"PlanHandover": func() (any, error) { return c.PlanHandover(ctx, HandoverRequest{Group: "web", To: "b"}) },
		"Handover": func() (any, error) {
			var seen []Progress
			r, err := c.Handover(ctx, HandoverRequest{Group: "web", Expect: "d"}, func(p Progress) { seen = append(seen, p) })
			return []any{r, seen}, err
		},
		"PlanDecision": func() (any, error) {
			return c.PlanDecision(ctx, DecisionRequest{Verb: VerbResolve, Group: "web", Keep: "b"})
		},
		"Decide": func() (any, error) {
			var seen []Progress
			r, err := c.Decide(ctx, DecisionRequest{Verb: VerbResolve, Group: "web", Keep: "b"}, func(p Progress) { seen = append(seen, p) })
			return []any{r, seen}, err
		},
		"PlanFailover": func() (any, error) { return c.PlanFailover(ctx, FailoverRequest{Group: "web"}) },
		"Failover": func() (any, error) {
			var seen []Progress
			r, err := c.Failover(ctx, FailoverRequest{Group: "web", Expect: "d"}, func(p Progress) { seen = append(seen, p) })
			return []any{r, seen}, err
		},
	}
}

func TestEveryVerbCrossesTheSocket(t *testing.T) {
	api := &echo{closed: make(chan string, 4)}
	client, _ := start(t, api)
	here, there := every(api), every(client)
	if want := reflect.TypeFor[API]().NumMethod(); len(here) != want {
		t.Fatalf("%d verbs are tried, API has %d", len(here), want)
	}
	for name := range here {
		want, err := here[name]()
		if err != nil {
			t.Fatal(err)
		}
		got, err := there[name]()
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("%s: %v\n%s", name, err, d)
		}
	}
}

func TestErrorsKeepCodeTextHintAndExit(t *testing.T) {
	want := fault.New(fault.PointUnknown, "resolve #7", "it lies in a gap").Advise("look at #6")
	client, _ := start(t, &echo{err: want})
	for name, call := range every(client) {
		_, err := call()
		got := fault.Of(err)
		if got.Error() != want.Error() || got.Exit() != want.Exit() || got.Advice() != want.Advice() {
			t.Errorf("%s: %v / exit %d / %q", name, err, got.Exit(), got.Advice())
		}
	}
}

func TestLeaseEndsWithItsCaller(t *testing.T) {
	api := &echo{closed: make(chan string, 1)}
	client, _ := start(t, api)
	ctx, cancel := context.WithCancel(context.Background())
	opened := make(chan View, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- client.Serve(ctx, ServeRequest{Group: "web", Lease: true}, func(v View) { opened <- v })
	}()
	if v := <-opened; v.ID != "v1" {
		t.Errorf("view %q", v.ID)
	}
	cancel()
	if err := <-ended; !fault.Is(err, fault.Interrupted) {
		t.Errorf("caller: %v", err)
	}
	select {
	case <-api.closed:
	case <-time.After(10 * time.Second):
		t.Error("the view outlives its caller")
	}
}

func TestLeaseEndsWithTheDaemon(t *testing.T) {
	api := &echo{closed: make(chan string, 1)}
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- NewServer(api, slog.New(slog.DiscardHandler)).Serve(ctx, l) }()
	opened := make(chan View, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- NewClient(path).Serve(context.Background(), ServeRequest{Lease: true}, func(v View) { opened <- v })
	}()
	<-opened
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
	<-ended
	<-api.closed
}

func TestAbsentDaemonIsTold(t *testing.T) {
	dir := t.TempDir()
	_, err := NewClient(filepath.Join(dir, "none")).Status(context.Background())
	if !Absent(err) {
		t.Errorf("no socket: %v", err)
	}
	dead := filepath.Join(dir, "dead")
	l, err := Listen(dead)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.(*listener).UnixListener.Close(); err != nil { // as a crash leaves it
		t.Fatal(err)
	}
	if _, err := NewClient(dead).Status(context.Background()); !Absent(err) {
		t.Errorf("dead socket: %v", err)
	}
	again, err := Listen(dead)
	if err != nil {
		t.Fatalf("a socket left behind is in the way: %v", err)
	}
	again.Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file); !fault.Is(err, fault.ListenTrouble) {
		t.Errorf("a file was taken for a socket: %v", err)
	}
}

func TestSocketIsOursAlone(t *testing.T) {
	_, path := start(t, &echo{})
	for p, want := range map[string]fs.FileMode{path: 0o600 | fs.ModeSocket, filepath.Dir(path): 0o700 | fs.ModeDir} {
		fi, err := os.Lstat(p)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode() != want {
			t.Errorf("%s: mode %v, want %v", p, fi.Mode(), want)
		}
	}
	for _, c := range []struct {
		caller, self uint32
		want         bool
	}{{0, 1000, true}, {1000, 1000, true}, {1001, 1000, false}, {1000, 0, false}} {
		if allowed(c.caller, c.self) != c.want {
			t.Errorf("user %d at a daemon of user %d: not %v", c.caller, c.self, c.want)
		}
	}
}

func TestCallerWithoutCredentialsIsRefused(t *testing.T) {
	s := NewServer(&echo{}, slog.New(slog.DiscardHandler))
	for _, ctx := range []context.Context{
		context.Background(),
		context.WithValue(context.Background(), callerKey{}, errors.New("not a unix socket")),
		context.WithValue(context.Background(), callerKey{}, uint32(os.Geteuid())+1),
	} {
		w := &recorder{header: http.Header{}}
		r, _ := http.NewRequestWithContext(ctx, http.MethodGet, "/v1/status", nil)
		s.routes().ServeHTTP(w, r)
		if w.code != http.StatusForbidden || !strings.Contains(w.body.String(), string(fault.ControlDenied)) {
			t.Errorf("answered %d: %s", w.code, w.body.String())
		}
	}
}

type recorder struct {
	header http.Header
	code   int
	body   strings.Builder
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(code int)        { r.code = code }
func (r *recorder) Write(b []byte) (int, error) { return r.body.Write(b) }

func TestUnknownRequestsAreRefused(t *testing.T) {
	client, _ := start(t, &echo{})
	for _, c := range []struct {
		method, path string
		body         any
	}{
		{http.MethodGet, "/v1/none", nil},
		{http.MethodPost, "/v1/status", nil},
		{http.MethodPost, "/v1/points", map[string]any{"grup": "web"}},
	} {
		if err := client.call(context.Background(), c.method, c.path, c.body, nil); !fault.Is(err, fault.ControlVersion) {
			t.Errorf("%s %s: %v", c.method, c.path, err)
		}
	}
	big := map[string]string{"group": strings.Repeat("x", 2*maxBody)}
	if err := client.call(context.Background(), http.MethodPost, "/v1/points", big, nil); err == nil {
		t.Error("a request of 2 MiB was taken")
	}
}
