package recovery

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html/template"
	"path/filepath"
	"time"

	"github.com/novacron/afterimage/journal"
)

// Report is the evidence of a failover.
type Report struct {
	Title   string    `json:"title"`
	Made    time.Time `json:"made"`
	Outcome Outcome   `json:"outcome"`
	// Chain is of the frame that holds the point: the same at every site.
	Chain   journal.Chain `json:"chain"`
	Drill   bool          `json:"drill,omitempty"` // nothing was promoted, and nothing of it is left
	Verb    string        `json:"verb,omitempty"`  // what was done, where it was not a failover by force of need
	Decided *Decided      `json:"decided,omitempty"`
	Console Console       `json:"console,omitzero"`
	RPO     RPO           `json:"rpo"`
	Checks  []Check       `json:"checks,omitempty"`
	Curves  []Series      `json:"curves,omitempty"`
	Markers []Marker      `json:"markers,omitempty"`
}

// Decided is what a decision, which recovers nothing, makes of the histories that it is
// about. Of an Outcome it has only the order and the role.
type Decided struct {
	Left []LeftThere `json:"left,omitempty"`
	Away []string    `json:"away,omitempty"` // sites that did not answer; what they leave is not known
}

// LeftThere is what a site holds beyond the record at which histories part, and does not go on
// from: it stays there as a branch.
type LeftThere struct {
	Site    string `json:"site"`
	Head    string `json:"head"` // #EPOCH.SEQ
	Records uint64 `json:"records"`
}

// RPO is what was measured before the failover, in seconds; the zero value says
// that nothing was.
type RPO struct {
	Samples int     `json:"samples"`
	P50     float64 `json:"p50_seconds"`
	P99     float64 `json:"p99_seconds"`
	Max     float64 `json:"max_seconds"`
	Target  float64 `json:"target_seconds,omitempty"`
}

// Check is a claim and whether it held.
type Check struct {
	Claim  string `json:"claim"`
	Held   bool   `json:"held"`
	Detail string `json:"detail,omitempty"`
}

// NewReport is the report of an outcome; the caller adds what else it measured.
func NewReport(o Outcome, now time.Time) Report {
	return Report{Title: "Failover of " + o.Plan.Group, Made: now, Outcome: o, Chain: o.Reign.Chain}
}

//go:embed report.html
var reportHTML string

var reportTemplate = template.Must(template.New("report").Funcs(template.FuncMap{
	"time": instant, "seconds": seconds, "size": size,
	"picture": func(png []byte) template.URL {
		return template.URL("data:image/png;base64," + base64.StdEncoding.EncodeToString(png)) // letters, digits, + and /
	},
	"plot": func(r Report) template.HTML {
		return template.HTML(PlotSVG(r.Curves, PlotOptions{Title: "RPO", Markers: r.Markers, Target: r.RPO.Target})) // PlotSVG escapes
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

// WriteFiles makes base.html, base.json and base.sha256 in dir, durably, and returns
// their paths. The last one is what sha256sum -c reads.
func (r Report) WriteFiles(dir, base string) ([]string, error) {
	page, err := r.HTML()
	if err != nil {
		return nil, err
	}
	data, err := r.JSON()
	if err != nil {
		return nil, err
	}
	return WriteReport(dir, base, page, data)
}

// WriteReport makes the three files of a report: its page, its data and their sums.
func WriteReport(dir, base string, page, data []byte) ([]string, error) {
	var sums bytes.Buffer
	var paths []string
	put := func(name string, b []byte) error {
		path := filepath.Join(dir, name)
		paths = append(paths, path)
		sum := sha256.Sum256(b)
		fmt.Fprintf(&sums, "%s  %s\n", hex.EncodeToString(sum[:]), name)
		return writeFile(path, b)
	}
	if err := put(base+".html", page); err != nil {
		return paths, fmt.Errorf("write report: %w", err)
	}
	if err := put(base+".json", data); err != nil {
		return paths, fmt.Errorf("write report: %w", err)
	}
	path := filepath.Join(dir, base+".sha256")
	if err := writeFile(path, sums.Bytes()); err != nil {
		return paths, fmt.Errorf("write report: %w", err)
	}
	return append(paths, path), nil
}
