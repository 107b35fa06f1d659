package recovery

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/novacron/afterimage/testbed/scale"
)

var nan = math.NaN()

func wellFormed(t *testing.T, b []byte) {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(b))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatalf("not well-formed: %v", err)
		}
	}
}

func TestPlotGolden(t *testing.T) {
	var rpo, behind []Sample
	for i := range 60 {
		rpo = append(rpo, Sample{float64(i), 0.2 + float64(i%7)/10})
		behind = append(behind, Sample{float64(i), float64(i) / 40})
	}
	rpo[30].V = nan
	b := PlotSVG([]Series{{"RPO", rpo}, {"lag <&>", behind}}, PlotOptions{Title: `RPO & "lag"`, Target: 1, Markers: []Marker{{22, "kill -9"}}})
	wellFormed(t, b)
	golden(t, "plot.svg.golden", b)
}

// Nothing that may come makes a plot that is no picture.
func TestPlotOfOddInput(t *testing.T) {
	for name, s := range map[string][]Series{
		"nothing": nil, "empty": {{Name: "x"}}, "one": {{"x", []Sample{{3, 0}}}}, "gaps only": {{"x", []Sample{{1, nan}, {2, math.Inf(1)}}}},
		"tiny": {{"x", []Sample{{0, 1e-9}, {1e-6, 2e-9}}}}, "huge": {{"x", []Sample{{-1e12, 1e15}, {1e12, 3}}}},
	} {
		b := PlotSVG(s, PlotOptions{})
		wellFormed(t, b)
		if strings.Contains(string(b), "NaN") || strings.Contains(string(b), "Inf") || len(b) > 1<<16 {
			t.Errorf("%s: %d bytes: %s", name, len(b), b)
		}
	}
}

// A peak of one sample in a long run is still drawn.
func TestPlotKeepsPeaks(t *testing.T) {
	long := make([]Sample, 100_000)
	for i := range long {
		long[i] = Sample{float64(i) / 100, 0.1}
	}
	long[54_321].V = 9
	kept := thin(long, plotColumns)
	peak := false
	for _, s := range kept {
		peak = peak || s.V == 9
	}
	if !peak || len(kept) != plotColumns {
		t.Errorf("%d samples kept, peak %v", len(kept), peak)
	}
}

func TestReportFilesCarryTheirSum(t *testing.T) {
	scale.Tools(t, "sha256sum")
	dir := t.TempDir()
	files, err := NewReport(Outcome{Plan: NewPlan(inputs())}, noon).WriteFiles(dir, "failover-web")
	must(t, err)
	if got := fmt.Sprint(names(t, dir)); len(files) != 3 || got != "[failover-web.html failover-web.json failover-web.sha256]" {
		t.Errorf("wrote %v, there are %s", files, got)
	}
	sums := exec.Command("sha256sum", "--check", "--strict", "failover-web.sha256")
	sums.Dir = dir
	if out, err := sums.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	f, err := os.OpenFile(files[0], os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteString("x")
	must(t, errors.Join(err, f.Close()))
	sums = exec.Command("sha256sum", "--check", "--strict", "failover-web.sha256")
	sums.Dir = dir
	if err := sums.Run(); err == nil {
		t.Error("a changed report passes")
	}
}
