package runbook

import (
	"bytes"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"time"
)

// Report is the evidence of a run that is over.
type Report struct {
	Title    string          `json:"title"`
	Made     time.Time       `json:"made"`
	Site     string          `json:"site"`
	Run      string          `json:"run"`
	Runbook  string          `json:"runbook"`
	Mode     Mode            `json:"mode"`
	At       string          `json:"at,omitempty"`
	Operator string          `json:"operator,omitempty"`
	Forced   bool            `json:"forced,omitempty"`
	Plan     string          `json:"plan"` // its digest
	State    string          `json:"state"`
	Why      string          `json:"why,omitempty"` // it was aborted
	Begun    time.Time       `json:"begun"`
	Ended    time.Time       `json:"ended"`
	RTO      float64         `json:"rto_seconds,omitempty"`      // until the last machine had passed its checks
	Expected float64         `json:"expected_seconds,omitempty"` // by earlier runs, when it was planned
	Steps    []ReportStep    `json:"steps"`
	Machines []ReportMachine `json:"machines"`
}

// ReportStep is a step as it went.
type ReportStep struct {
	Step     int       `json:"step"` // from 1
	Boot     string    `json:"boot,omitempty"`
	Name     string    `json:"name"`
	State    Phase     `json:"state"`
	Attempts int       `json:"attempts,omitempty"`
	Began    time.Time `json:"began,omitzero"`
	Seconds  float64   `json:"seconds"`
	Expected *float64  `json:"expected_seconds,omitempty"`
	Detail   string    `json:"detail,omitempty"`
	Output   string    `json:"output,omitempty"`
	// Left and Width are where it lies in the run, in percent.
	Left  float64 `json:"-"`
	Width float64 `json:"-"`
}

// ReportMachine is what a run brought up.
type ReportMachine struct {
	Machine string `json:"machine"`
	Group   string `json:"group"`
	Point   string `json:"point,omitempty"`
	Chain   string `json:"chain,omitempty"` // of the frame that holds the point
	Loss    *Loss  `json:"loss,omitempty"`  // as it was told; none of a drill
	Report  string `json:"report,omitempty"`
	Picture []byte `json:"picture_png,omitempty"`
	Text    string `json:"console_text,omitempty"`
	Why     string `json:"no_picture,omitempty"`
}

// Loss is what a group's failover gave up.
type Loss struct {
	Known   bool    `json:"known"`
	Seconds float64 `json:"seconds"`
	Writes  uint64  `json:"writes"`
	Bytes   int64   `json:"bytes"`
}

// NewReport is the report of r, which is over; the caller adds its machines.
func NewReport(r Run, s State, site string, now time.Time) Report {
	out := Report{Title: fmt.Sprintf("Run of %s, %s", r.Plan.Runbook, r.Plan.Mode), Made: now, Site: site, Run: r.ID, Runbook: r.Plan.Runbook, Mode: r.Plan.Mode, At: r.Plan.At,
		Operator: r.Operator, Forced: r.Forced, Plan: r.Digest, State: s.Word(), Why: s.Why, Begun: r.Begun, Ended: s.Ended, Steps: []ReportStep{}, Machines: []ReportMachine{}}
	if r.Plan.Estimate.Runs > 0 {
		out.Expected = r.Plan.Estimate.Total.Seconds()
	}
	span := s.Ended.Sub(r.Begun).Seconds()
	for _, a := range r.Plan.Actions {
		is := s.Actions[a.ID]
		st := ReportStep{Step: a.ID + 1, Boot: a.Boot, Name: a.Name(), State: is.Phase, Attempts: is.Attempts, Began: is.Began, Detail: is.Detail, Output: is.Output}
		if a.ID < len(r.Plan.Estimate.Steps) && r.Plan.Estimate.Steps[a.ID] != nil {
			d := r.Plan.Estimate.Steps[a.ID].Seconds()
			st.Expected = &d
		}
		if !is.Done.IsZero() && !is.Began.IsZero() {
			st.Seconds = is.Done.Sub(is.Began).Seconds()
			if a.Step.Kind != Cleanup && a.Step.Kind != Wait {
				out.RTO = max(out.RTO, is.Done.Sub(r.Begun).Seconds())
			}
		}
		if span > 0 && !is.Began.IsZero() {
			st.Left, st.Width = 100*is.Began.Sub(r.Begun).Seconds()/span, 100*st.Seconds/span
		}
		out.Steps = append(out.Steps, st)
	}
	return out
}

// Held reports whether the run did all that it should.
func (r Report) Held() bool { return r.State == "done" }

//go:embed report.html
var reportHTML string

var reportTemplate = template.Must(template.New("run").Funcs(template.FuncMap{
	"time":    func(t time.Time) string { return t.Format("2006-01-02 15:04:05.000 -07:00") },
	"seconds": func(s float64) string { return fmt.Sprintf("%.2f s", s) },
	"picture": func(png []byte) template.URL {
		return template.URL("data:image/png;base64," + base64.StdEncoding.EncodeToString(png)) // letters, digits, + and /
	},
	"bar": func(s ReportStep) template.CSS {
		return template.CSS(fmt.Sprintf("margin-left:%.2f%%;width:%.2f%%", s.Left, s.Width))
	},
}).Parse(reportHTML))

// HTML is one file that needs no other and runs no script.
func (r Report) HTML() ([]byte, error) {
	var b bytes.Buffer
	if err := reportTemplate.Execute(&b, r); err != nil {
		return nil, fmt.Errorf("write report: %w", err)
	}
	return b.Bytes(), nil
}

// JSON is the same for machines; fields may be added.
func (r Report) JSON() ([]byte, error) {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write report: %w", err)
	}
	return append(b, '\n'), nil
}
