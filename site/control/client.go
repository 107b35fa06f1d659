package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"

	"github.com/novacron/afterimage/site/fault"
)

// Client talks to the daemon behind a socket. It implements API.
type Client struct {
	socket string
	http   *http.Client
}

var _ API = (*Client)(nil)

// NewClient is a client of the daemon at the unix socket. It connects on use.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Absent reports whether err says that no daemon listens, so that what only
// reads may be done without one.
func Absent(err error) bool { return fault.Is(err, fault.DaemonAbsent) }

func (c *Client) do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	what := "ask the daemon at " + c.socket
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fault.Wrap(fault.Unexpected, what, err)
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://afterimage"+path, r)
	if err != nil {
		return nil, fault.Wrap(fault.Unexpected, what, err)
	}
	resp, err := c.http.Do(req)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return nil, interrupted(ctx, what, path)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, &fault.Error{Code: fault.DaemonAbsent, What: what, Why: "nothing listens there", Err: err}
	case errors.Is(err, fs.ErrPermission):
		return nil, &fault.Error{Code: fault.ControlDenied, What: what, Why: "permission denied", Err: err}
	default:
		return nil, fault.Wrap(fault.ControlBroken, what, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return nil, fault.Wrap(fault.ControlBroken, what, err)
	}
	var e fault.Error
	if json.Unmarshal(b, &e) == nil && e.Code != "" {
		return nil, &e
	}
	if resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusMethodNotAllowed {
		return nil, fault.New(fault.ControlVersion, what, "it does not know %s %s", method, path)
	}
	return nil, fault.New(fault.ControlBroken, what, "it answered %s", resp.Status)
}

func (c *Client) call(ctx context.Context, method, path string, body, answer any) error {
	resp, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if answer == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(answer); err != nil {
		return fault.Wrap(fault.ControlBroken, "read the daemon's answer", err)
	}
	return nil
}

// line is one line of an answer that takes long.
type line struct {
	Progress json.RawMessage `json:"progress,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
	Error    *fault.Error    `json:"error,omitempty"`
}

// follow reads lines until the result, which it decodes.
func (c *Client) follow(ctx context.Context, path string, body any, progress func(json.RawMessage) error, result any) error {
	resp, err := c.do(ctx, http.MethodPost, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	d := json.NewDecoder(resp.Body)
	for {
		var l line
		err := d.Decode(&l)
		switch {
		case err != nil && ctx.Err() != nil:
			return interrupted(ctx, "wait for the daemon", path)
		case err != nil:
			return fault.Wrap(fault.ControlBroken, "read the daemon's answer", err)
		case l.Error != nil:
			return l.Error
		case l.Progress != nil:
			err = progress(l.Progress)
		case l.Result != nil:
			if result == nil {
				return nil
			}
			if err = json.Unmarshal(l.Result, result); err == nil {
				return nil
			}
		}
		if err != nil {
			return fault.Wrap(fault.ControlBroken, "read the daemon's answer", err)
		}
	}
}

// outliving is where to look for what became of a request that the daemon does not give
// up because its caller has gone.
var outliving = map[string]string{
	"/v1/failover": "group show", "/v1/handover": "group show", "/v1/decision": "group show", "/v1/rewind": "group show",
	"/v1/runbook/run": "runbook list and runbook show", "/v1/run/resume": "runbook show", "/v1/run/abort": "runbook show",
}

// interrupted is the fault of a caller that did not wait for the answer. Who repeats what
// goes on would order it twice.
func interrupted(ctx context.Context, what, path string) error {
	e := &fault.Error{Code: fault.Interrupted, What: what, Why: context.Cause(ctx).Error(), Err: ctx.Err()}
	if look, ok := outliving[path]; ok {
		return e.Advise("The daemon goes on with what it has begun: %s tells how it ends. Do not repeat the command before that.", look)
	}
	return e
}

func each[T any](f func(T)) func(json.RawMessage) error {
	return func(raw json.RawMessage) error {
		var v T
		if err := json.Unmarshal(raw, &v); err != nil {
			return fmt.Errorf("progress: %w", err)
		}
		if f != nil {
			f(v)
		}
		return nil
	}
}

// Status implements API.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.call(ctx, http.MethodGet, "/v1/status", nil, &s)
}

// Group implements API.
func (c *Client) Group(ctx context.Context, name string) (g GroupDetail, err error) {
	return g, c.call(ctx, http.MethodGet, "/v1/group?name="+url.QueryEscape(name), nil, &g)
}

// Points implements API.
func (c *Client) Points(ctx context.Context, q PointsQuery) (p Points, err error) {
	return p, c.call(ctx, http.MethodPost, "/v1/points", q, &p)
}

// Pin implements API.
func (c *Client) Pin(ctx context.Context, q PinRequest) (p Pin, err error) {
	return p, c.call(ctx, http.MethodPost, "/v1/pin", q, &p)
}

// Unpin implements API.
func (c *Client) Unpin(ctx context.Context, q UnpinRequest) (p Pin, err error) {
	return p, c.call(ctx, http.MethodPost, "/v1/unpin", q, &p)
}

// Maintain implements API.
func (c *Client) Maintain(ctx context.Context, q MaintainRequest, progress func(Progress)) (r Maintained, err error) {
	return r, c.follow(ctx, "/v1/maintain", q, each(progress), &r)
}

// ExportSeed implements API.
func (c *Client) ExportSeed(ctx context.Context, q SeedExport, progress func(Progress)) (r Seed, err error) {
	return r, c.follow(ctx, "/v1/seed/export", q, each(progress), &r)
}

// ImportSeed implements API.
func (c *Client) ImportSeed(ctx context.Context, q SeedImport, progress func(Progress)) (r Seed, err error) {
	return r, c.follow(ctx, "/v1/seed/import", q, each(progress), &r)
}

// Key implements API.
func (c *Client) Key(ctx context.Context, q KeyRequest) (k KeyState, err error) {
	return k, c.call(ctx, http.MethodPost, "/v1/key", q, &k)
}

// RotateKey implements API.
func (c *Client) RotateKey(ctx context.Context, q KeyRequest) (k KeyState, err error) {
	return k, c.call(ctx, http.MethodPost, "/v1/key/rotate", q, &k)
}

// ShredKey implements API.
func (c *Client) ShredKey(ctx context.Context, q KeyRequest) (k KeyState, err error) {
	return k, c.call(ctx, http.MethodPost, "/v1/key/shred", q, &k)
}

// Limit implements API.
func (c *Client) Limit(ctx context.Context, q LimitRequest) (l Limited, err error) {
	return l, c.call(ctx, http.MethodPost, "/v1/limit", q, &l)
}

// Invite implements API.
func (c *Client) Invite(ctx context.Context, q InviteRequest) (i Invited, err error) {
	return i, c.call(ctx, http.MethodPost, "/v1/peer/invite", q, &i)
}

// Join implements API.
func (c *Client) Join(ctx context.Context, q JoinRequest) (j Joined, err error) {
	return j, c.call(ctx, http.MethodPost, "/v1/peer/join", q, &j)
}

// RemovePeer implements API.
func (c *Client) RemovePeer(ctx context.Context, q RemovePeerRequest) (j Joined, err error) {
	return j, c.call(ctx, http.MethodPost, "/v1/peer/remove", q, &j)
}

// Rotate implements API.
func (c *Client) Rotate(ctx context.Context, q RotateRequest) (r Rotation, err error) {
	return r, c.call(ctx, http.MethodPost, "/v1/peer/rotate", q, &r)
}

// Mark implements API.
func (c *Client) Mark(ctx context.Context, q MarkRequest) (p Point, err error) {
	return p, c.call(ctx, http.MethodPost, "/v1/mark", q, &p)
}

// Serve implements API.
func (c *Client) Serve(ctx context.Context, q ServeRequest, opened func(View)) error {
	return c.follow(ctx, "/v1/views", q, each(opened), nil)
}

// Views implements API.
func (c *Client) Views(ctx context.Context) (vs []View, err error) {
	return vs, c.call(ctx, http.MethodGet, "/v1/views", nil, &vs)
}

// CloseView implements API.
func (c *Client) CloseView(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, "/v1/views/"+url.PathEscape(id), nil, nil)
}

// Restore implements API.
func (c *Client) Restore(ctx context.Context, q RestoreRequest, progress func(Progress)) (r Restored, err error) {
	return r, c.follow(ctx, "/v1/restore", q, each(progress), &r)
}

// PlanFailover implements API.
func (c *Client) PlanFailover(ctx context.Context, q FailoverRequest) (p Plan, err error) {
	return p, c.call(ctx, http.MethodPost, "/v1/failover/plan", q, &p)
}

// Failover implements API.
func (c *Client) Failover(ctx context.Context, q FailoverRequest, progress func(Progress)) (r FailedOver, err error) {
	return r, c.follow(ctx, "/v1/failover", q, each(progress), &r)
}

// PlanHandover implements API.
func (c *Client) PlanHandover(ctx context.Context, q HandoverRequest) (p HandoverPlan, err error) {
	return p, c.call(ctx, http.MethodPost, "/v1/handover/plan", q, &p)
}

// Handover implements API.
func (c *Client) Handover(ctx context.Context, q HandoverRequest, progress func(Progress)) (r HandedOver, err error) {
	return r, c.follow(ctx, "/v1/handover", q, each(progress), &r)
}

// PlanDecision implements API.
func (c *Client) PlanDecision(ctx context.Context, q DecisionRequest) (d Decision, err error) {
	return d, c.call(ctx, http.MethodPost, "/v1/decision/plan", q, &d)
}

// Decide implements API.
func (c *Client) Decide(ctx context.Context, q DecisionRequest, progress func(Progress)) (d Decision, err error) {
	return d, c.follow(ctx, "/v1/decision", q, each(progress), &d)
}

// TestFailover implements API.
func (c *Client) TestFailover(ctx context.Context, q DrillRequest, progress func(Progress)) (r Drilled, err error) {
	return r, c.follow(ctx, "/v1/failover/test", q, each(progress), &r)
}

// CheckRunbook implements API.
func (c *Client) CheckRunbook(ctx context.Context, q RunbookRequest) (p RunbookPlan, err error) {
	return p, c.call(ctx, http.MethodPost, "/v1/runbook/check", q, &p)
}

// PlanRunbook implements API.
func (c *Client) PlanRunbook(ctx context.Context, q RunbookRequest) (p RunbookPlan, err error) {
	return p, c.call(ctx, http.MethodPost, "/v1/runbook/plan", q, &p)
}

// RunRunbook implements API.
func (c *Client) RunRunbook(ctx context.Context, q RunbookRequest, progress func(Progress)) (r RunbookRun, err error) {
	return r, c.follow(ctx, "/v1/runbook/run", q, each(progress), &r)
}

// ResumeRun implements API.
func (c *Client) ResumeRun(ctx context.Context, q RunRequest, progress func(Progress)) (r RunbookRun, err error) {
	return r, c.follow(ctx, "/v1/run/resume", q, each(progress), &r)
}

// AbortRun implements API.
func (c *Client) AbortRun(ctx context.Context, q RunRequest, progress func(Progress)) (r RunbookRun, err error) {
	return r, c.follow(ctx, "/v1/run/abort", q, each(progress), &r)
}

// Runs implements API.
func (c *Client) Runs(ctx context.Context) (rs []RunbookRun, err error) {
	return rs, c.call(ctx, http.MethodGet, "/v1/runs", nil, &rs)
}

// RunDetail implements API.
func (c *Client) RunDetail(ctx context.Context, id string) (r RunbookRun, err error) {
	return r, c.call(ctx, http.MethodPost, "/v1/run", RunRequest{Run: id}, &r)
}

// Reports implements API.
func (c *Client) Reports(ctx context.Context) (rs []Report, err error) {
	return rs, c.call(ctx, http.MethodGet, "/v1/reports", nil, &rs)
}

// ExportReport implements API.
func (c *Client) ExportReport(ctx context.Context, q ReportRequest) (f ReportFile, err error) {
	return f, c.call(ctx, http.MethodPost, "/v1/report", q, &f)
}

// LedgerHead implements API.
func (c *Client) LedgerHead(ctx context.Context) (t Token, err error) {
	return t, c.call(ctx, http.MethodGet, "/v1/ledger/head", nil, &t)
}

// VouchLedger implements API.
func (c *Client) VouchLedger(ctx context.Context, q TokenRequest) (t Token, err error) {
	return t, c.call(ctx, http.MethodPost, "/v1/ledger/vouch", q, &t)
}

// KeepAnchor implements API.
func (c *Client) KeepAnchor(ctx context.Context, q TokenRequest) (t Token, err error) {
	return t, c.call(ctx, http.MethodPost, "/v1/ledger/keep", q, &t)
}
