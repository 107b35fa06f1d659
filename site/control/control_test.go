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
		"HomeDisks": func() (any, error) {
			return c.HomeDisks(ctx, HomeRequest{Group: "web", Disks: map[string]string{"root": "/x"}, Operator: "ops"})
		},
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

func TestWhoInterruptsWhatGoesOnIsNotToldToRepeatIt(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	c := NewClient("/nowhere")
	repeat := fault.New(fault.Interrupted, "", "").Advice()
	for what, err := range map[string]error{
		"failover": last(c.Failover(ctx, FailoverRequest{}, nil)), "handover": last(c.Handover(ctx, HandoverRequest{}, nil)), "decision": last(c.Decide(ctx, DecisionRequest{}, nil)),
		"rewind": last(c.Rewind(ctx, RewindRequest{}, nil)), "run": last(c.RunRunbook(ctx, RunbookRequest{}, nil)), "resume": last(c.ResumeRun(ctx, RunRequest{}, nil)), "abort": last(c.AbortRun(ctx, RunRequest{}, nil)),
	} {
		if f := fault.Of(err); f.Code != fault.Interrupted || !strings.Contains(f.Advice(), "The daemon goes on") || !strings.Contains(f.Advice(), "Do not repeat") {
			t.Errorf("%s: %v: %q", what, err, f.Advice())
		}
	}
	if f := fault.Of(last(c.PlanFailover(ctx, FailoverRequest{}))); f.Code != fault.Interrupted || f.Advice() != repeat {
		t.Errorf("a plan: %v", f)
	}
}

func last[T any](_ T, err error) error { return err }

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
