package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/novacron/afterimage/site/fault"
)

// maxBody bounds requests and error answers.
const maxBody = 1 << 20

// Server answers requests by calling an API.
type Server struct {
	api  API
	log  *slog.Logger
	http *http.Server
}

// NewServer starts nothing; Serve does.
func NewServer(api API, log *slog.Logger) *Server {
	s := &Server{api: api, log: log}
	s.http = &http.Server{
		Handler: s.routes(), ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 1 << 14,
		ConnContext: withCaller,
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return s
}

// Serve answers at l until ctx ends, then gives requests under way two seconds:
// views with a lease end with it. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	base, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	s.http.BaseContext = func(net.Listener) context.Context { return base }
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		cancel(errors.New("the daemon is stopping"))
		grace, done := context.WithTimeout(context.Background(), 2*time.Second)
		defer done()
		err := s.http.Shutdown(grace)
		if err != nil {
			err = s.http.Close()
		}
		stopped <- err
	})
	err := s.http.Serve(l)
	if !stop() {
		return <-stopped
	}
	return err
}

func (s *Server) routes() http.Handler {
	m := http.NewServeMux()
	get := func(path string, f func(ctx context.Context, r *http.Request) (any, error)) {
		s.route(m, "GET "+path, f)
	}
	post := func(path string, f func(ctx context.Context, r *http.Request) (any, error)) {
		s.route(m, "POST "+path, f)
	}
	get("/v1/status", func(ctx context.Context, _ *http.Request) (any, error) { return s.api.Status(ctx) })
	get("/v1/group", func(ctx context.Context, r *http.Request) (any, error) {
		return s.api.Group(ctx, r.URL.Query().Get("name"))
	})
	get("/v1/views", func(ctx context.Context, _ *http.Request) (any, error) { return s.api.Views(ctx) })
	s.route(m, "DELETE /v1/views/{id}", func(ctx context.Context, r *http.Request) (any, error) {
		return struct{}{}, s.api.CloseView(ctx, r.PathValue("id"))
	})
	post("/v1/points", asked(func(ctx context.Context, q PointsQuery) (any, error) { return s.api.Points(ctx, q) }))
	post("/v1/key", asked(func(ctx context.Context, q KeyRequest) (any, error) { return s.api.Key(ctx, q) }))
	post("/v1/key/rotate", asked(func(ctx context.Context, q KeyRequest) (any, error) { return s.api.RotateKey(ctx, q) }))
	post("/v1/key/shred", asked(func(ctx context.Context, q KeyRequest) (any, error) { return s.api.ShredKey(ctx, q) }))
	post("/v1/limit", asked(func(ctx context.Context, q LimitRequest) (any, error) { return s.api.Limit(ctx, q) }))
	post("/v1/peer/invite", asked(func(ctx context.Context, q InviteRequest) (any, error) { return s.api.Invite(ctx, q) }))
	post("/v1/peer/join", asked(func(ctx context.Context, q JoinRequest) (any, error) { return s.api.Join(ctx, q) }))
	post("/v1/peer/rotate", asked(func(ctx context.Context, q RotateRequest) (any, error) { return s.api.Rotate(ctx, q) }))
	post("/v1/peer/remove", asked(func(ctx context.Context, q RemovePeerRequest) (any, error) { return s.api.RemovePeer(ctx, q) }))
	post("/v1/mark", asked(func(ctx context.Context, q MarkRequest) (any, error) { return s.api.Mark(ctx, q) }))
	post("/v1/pause", asked(func(ctx context.Context, q PauseRequest) (any, error) { return s.api.Pause(ctx, q) }))
	post("/v1/resume", asked(func(ctx context.Context, q ResumeRequest) (any, error) { return s.api.Resume(ctx, q) }))
	post("/v1/pin", asked(func(ctx context.Context, q PinRequest) (any, error) { return s.api.Pin(ctx, q) }))
	post("/v1/unpin", asked(func(ctx context.Context, q UnpinRequest) (any, error) { return s.api.Unpin(ctx, q) }))
	m.HandleFunc("POST /v1/maintain", s.long(asked(func(ctx context.Context, q MaintainRequest) (any, error) {
		return s.api.Maintain(ctx, q, func(p Progress) { tell(ctx, p) })
	})))
	m.HandleFunc("POST /v1/seed/export", s.long(asked(func(ctx context.Context, q SeedExport) (any, error) {
		return s.api.ExportSeed(ctx, q, func(p Progress) { tell(ctx, p) })
	})))
	m.HandleFunc("POST /v1/seed/import", s.long(asked(func(ctx context.Context, q SeedImport) (any, error) {
		return s.api.ImportSeed(ctx, q, func(p Progress) { tell(ctx, p) })
	})))
	m.HandleFunc("POST /v1/verify", s.long(asked(func(ctx context.Context, q VerifyRequest) (any, error) {
		return s.api.Verify(ctx, q, func(p Progress) { tell(ctx, p) })
	})))
	post("/v1/failover/plan", asked(func(ctx context.Context, q FailoverRequest) (any, error) { return s.api.PlanFailover(ctx, q) }))
	post("/v1/handover/plan", asked(func(ctx context.Context, q HandoverRequest) (any, error) { return s.api.PlanHandover(ctx, q) }))
	post("/v1/decision/plan", asked(func(ctx context.Context, q DecisionRequest) (any, error) { return s.api.PlanDecision(ctx, q) }))
	m.HandleFunc("POST /v1/handover", s.long(asked(func(ctx context.Context, q HandoverRequest) (any, error) {
		return s.api.Handover(ctx, q, func(p Progress) { tell(ctx, p) })
	})))
	m.HandleFunc("POST /v1/decision", s.long(asked(func(ctx context.Context, q DecisionRequest) (any, error) {
		return s.api.Decide(ctx, q, func(p Progress) { tell(ctx, p) })
	})))
	m.HandleFunc("POST /v1/views", s.long(asked(func(ctx context.Context, q ServeRequest) (any, error) {
		return struct{}{}, s.api.Serve(ctx, q, func(v View) { tell(ctx, v) })
	})))
	m.HandleFunc("POST /v1/restore", s.long(asked(func(ctx context.Context, q RestoreRequest) (any, error) {
		return s.api.Restore(ctx, q, func(p Progress) { tell(ctx, p) })
	})))
	s.moments(m)
	s.moves(m)
	get("/v1/reports", func(ctx context.Context, _ *http.Request) (any, error) { return s.api.Reports(ctx) })
	get("/v1/ledger/head", func(ctx context.Context, _ *http.Request) (any, error) { return s.api.LedgerHead(ctx) })
	post("/v1/report", asked(func(ctx context.Context, q ReportRequest) (any, error) { return s.api.ExportReport(ctx, q) }))
	post("/v1/ledger/vouch", asked(func(ctx context.Context, q TokenRequest) (any, error) { return s.api.VouchLedger(ctx, q) }))
	post("/v1/ledger/keep", asked(func(ctx context.Context, q TokenRequest) (any, error) { return s.api.KeepAnchor(ctx, q) }))
	post("/v1/runbook/check", asked(func(ctx context.Context, q RunbookRequest) (any, error) { return s.api.CheckRunbook(ctx, q) }))
	post("/v1/runbook/plan", asked(func(ctx context.Context, q RunbookRequest) (any, error) { return s.api.PlanRunbook(ctx, q) }))
	get("/v1/runs", func(ctx context.Context, _ *http.Request) (any, error) { return s.api.Runs(ctx) })
	post("/v1/run", asked(func(ctx context.Context, q RunRequest) (any, error) { return s.api.RunDetail(ctx, q.Run) }))
	m.HandleFunc("POST /v1/runbook/run", s.long(asked(func(ctx context.Context, q RunbookRequest) (any, error) {
		return s.api.RunRunbook(ctx, q, func(p Progress) { tell(ctx, p) })
	})))
	m.HandleFunc("POST /v1/run/resume", s.long(asked(func(ctx context.Context, q RunRequest) (any, error) {
		return s.api.ResumeRun(ctx, q, func(p Progress) { tell(ctx, p) })
	})))
	m.HandleFunc("POST /v1/run/abort", s.long(asked(func(ctx context.Context, q RunRequest) (any, error) {
		return s.api.AbortRun(ctx, q, func(p Progress) { tell(ctx, p) })
	})))
	m.HandleFunc("POST /v1/failover/test", s.long(asked(func(ctx context.Context, q DrillRequest) (any, error) {
		return s.api.TestFailover(ctx, q, func(p Progress) { tell(ctx, p) })
	})))
	m.HandleFunc("POST /v1/failover", s.long(asked(func(ctx context.Context, q FailoverRequest) (any, error) {
		return s.api.Failover(ctx, q, func(p Progress) { tell(ctx, p) })
	})))
	return s.onlyAllowed(m)
}

type verb = func(ctx context.Context, r *http.Request) (any, error)

// asked decodes a request's body, strictly.
func asked[Q any](f func(ctx context.Context, q Q) (any, error)) verb {
	return func(ctx context.Context, r *http.Request) (any, error) {
		var q Q
		body, err := io.ReadAll(r.Body) // to its end: only then is a caller that leaves noticed
		if err == nil {
			d := json.NewDecoder(bytes.NewReader(body))
			d.DisallowUnknownFields()
			err = d.Decode(&q)
		}
		if err != nil {
			return nil, fault.Wrap(fault.ControlVersion, "read the request", err)
		}
		return f(ctx, q)
	}
}

func (s *Server) route(m *http.ServeMux, pattern string, f verb) {
	m.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		v, err := f(r.Context(), r)
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			w.WriteHeader(http.StatusUnprocessableEntity)
			v = fault.Of(err)
		}
		s.write(w, v)
	})
}

func (s *Server) write(w http.ResponseWriter, v any) {
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.log.Debug("control answer not taken", "err", err)
	}
}

type tellKey struct{}

// tell sends one progress line to the caller of ctx.
func tell(ctx context.Context, v any) {
	if f, ok := ctx.Value(tellKey{}).(func(any)); ok {
		f(v)
	}
}

// long answers with lines; see the package's comment. Progress may come from
// several goroutines, but not after f has returned.
func (s *Server) long(f verb) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		w.Header().Set("Content-Type", "application/jsonl")
		lines := make(chan any)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for v := range lines {
				s.write(w, map[string]any{"progress": v})
				_ = http.NewResponseController(w).Flush()
			}
		}()
		ctx := context.WithValue(r.Context(), tellKey{}, func(v any) { lines <- v })
		v, err := f(ctx, r)
		close(lines)
		<-done
		if err != nil {
			s.write(w, map[string]any{"error": fault.Of(err)})
			return
		}
		s.write(w, map[string]any{"result": v})
	}
}
