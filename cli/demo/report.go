package demo

import (
	"bytes"
	"encoding/json"
	"fmt"
	"html/template"
	"os"
	"path/filepath"
	"time"
)

// report writes report.html, report.json and rpo.svg.
func (s *story) report() error {
	plot := plotSVG(s.samples, s.behindSamples)
	var page bytes.Buffer
	err := reportPage.Execute(&page, map[string]any{
		"Result": s.result, "Plot": template.HTML(plot), // our own drawing of numbers
		"When": s.begun.Format(time.RFC3339), "Plan": s.done, "Mark": s.mark, "Marked": s.marked,
	})
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	raw, err := json.MarshalIndent(s.result, "", "  ")
	if err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	for name, b := range map[string][]byte{"report.html": page.Bytes(), "report.json": append(raw, '\n'), "rpo.svg": plot} {
		if err := os.WriteFile(filepath.Join(s.o.Dir, name), b, 0o600); err != nil {
			return fmt.Errorf("write report: %w", err)
		}
	}
	return nil
}

var reportPage = template.Must(template.New("report").Funcs(template.FuncMap{
	"ms": func(seconds float64) string { return fmt.Sprintf("%.0f ms", seconds*1000) },
}).Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Afterimage: report of a demo</title>
<style>
:root { color-scheme: light dark; --fg:#1c2430; --bg:#fff; --mute:#5d6b7c; --line:#d6dde6; --good:#12704a; --bad:#b3261e; --ink:#1f5fbf }
@media (prefers-color-scheme: dark) { :root { --fg:#e4e9f0; --bg:#12171f; --mute:#97a5b7; --line:#2c3644; --good:#54c795; --bad:#ff8a80; --ink:#7fb0ff } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--fg); background: var(--bg); max-width: 54rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin-top: 2rem }
.mute { color: var(--mute) } .good { color: var(--good); font-weight: 600 } .bad { color: var(--bad); font-weight: 600 }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.5rem 0 }
.figures div { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem 1rem; flex: 1 1 9rem }
.figures b { display: block; font-size: 1.5rem } 
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .35rem .6rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
svg { width: 100%; height: auto } code { font-size: .92em }
</style></head><body>
<h1>Demo: one disk, two sites, one dead primary</h1>
<p class="mute">{{.When}} · {{.Result.Mode}} disk · {{printf "%.0f" .Result.Seconds}} s in all</p>
<p>{{if .Result.Verified}}<span class="good">Everything claimed held.</span>{{else}}<span class="bad">Not everything claimed held.</span>{{end}}</p>
<div class="figures">
<div>RPO, median<b>{{ms .Result.RPOP50}}</b></div>
<div>RPO, 99th percentile<b>{{ms .Result.RPOP99}}</b></div>
<div>RTO<b>{{printf "%.2f s" .Result.RTO}}</b></div>
<div>Lost, of {{.Result.Writes}} writes<b>{{.Result.Lost}}</b></div>
<div>Reported before the order<b>{{.Result.ReportedLoss}}</b></div>
</div>
<h2>RPO, measured at the other site</h2>
<p class="mute">Age of the newest stamp in the newest point there, read every 100 ms by a reader that knows only how to open a point and read a disk.</p>
{{.Plot}}
<h2>Claims</h2>
<table><thead><tr><th>Claim</th><th>Held</th><th>Seen</th></tr></thead><tbody>
{{range .Result.Checks}}<tr><td>{{.Claim}}</td><td>{{if .Held}}<span class="good">yes</span>{{else}}<span class="bad">no</span>{{end}}</td><td>{{.Seen}}</td></tr>
{{end}}</tbody></table>
<h2>Failover</h2>
<table><tbody>
<tr><td>Point</td><td><code>#{{.Plan.Point.Epoch}}.{{.Plan.Point.Seq}}</code>, {{.Plan.Point.Time.Format "2006-01-02T15:04:05.000Z07:00"}}</td></tr>
<tr><td>New epoch</td><td>{{.Plan.Epoch}}</td></tr>
<tr><td>Loss in the plan</td><td>{{.Plan.Loss.Writes}} writes, {{printf "%.2f" .Plan.Loss.Seconds}} s</td></tr>
<tr><td>Fenced</td><td>{{if .Plan.Unfenced}}no: nobody proved that the old primary is off (it was killed by the demo){{else}}yes{{end}}</td></tr>
<tr><td>Mark</td><td><code>before-attack</code> at <code>#{{.Mark.Epoch}}.{{.Mark.Seq}}</code>, after stamp {{.Marked}}</td></tr>
{{range $step, $seconds := .Plan.Times}}<tr><td>{{$step}}</td><td>{{ms $seconds}}</td></tr>
{{end}}</tbody></table>
</body></html>
`))
