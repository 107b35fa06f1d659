package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/novacron/afterimage/testbed/scale"
)

// childDir is the variable that makes this test binary the process that is killed.
const childDir = "AFTERIMAGE_BENCH_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(endChild) != "" {
		if err := EndChild(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if dir := os.Getenv(childDir); dir != "" {
		if err := JournalChild(context.Background(), dir, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if path := os.Getenv(daemonConfig); path != "" {
		if err := runDaemon(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func tiny(t *testing.T) JournalOptions {
	return JournalOptions{
		Dir: t.TempDir(), Span: 200 * time.Millisecond, rounds: 2, ImageBytes: 16 << 20, Versions: 3, Records: 2 * childReports, Seed: 11, pool: 64 << 20,
		Child: func(ctx context.Context, dir string) *exec.Cmd {
			c := exec.CommandContext(ctx, os.Args[0])
			c.Env = append(os.Environ(), childDir+"="+dir)
			return c
		},
	}
}

// A run prints every figure that it promises, each made of bytes that both sides
// moved, and leaves nothing behind.
func TestJournalPrintsEveryFigure(t *testing.T) {
	scale.Lasting(t, "it measures")
	o := tiny(t)
	res, err := Journal(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(res)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", raw)
	var printed map[string]any
	if err := json.Unmarshal(raw, &printed); err != nil {
		t.Fatal(err)
	}
	for _, g := range goals {
		names := []string{g.name}
		if g.name != openingFigure {
			names = append(names, g.name+sealedSuffix)
		}
		for _, n := range names {
			if v, ok := printed[n].(float64); !ok || v <= 0 {
				t.Errorf("%s is printed as %v", n, printed[n])
			}
		}
	}
	for name, f := range res.Figures {
		if f.Rounds == 0 || f.Low > f.High {
			t.Errorf("%s: %+v", name, f)
		}
		if f.Ours == nil || f.Baseline == nil {
			continue
		}
		if f.Ours.Bytes == 0 || f.Baseline.Bytes == 0 || f.Ours.Seconds == 0 || f.Baseline.Seconds == 0 {
			t.Errorf("%s compares %+v with %+v", name, *f.Ours, *f.Baseline)
		}
	}
	left, err := os.ReadDir(o.Dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// The figures follow the work: with larger writes more bytes a record reach the
// disk, and less beside them.
func TestJournalFiguresFollowTheLoad(t *testing.T) {
	scale.Lasting(t, "it measures")
	o := tiny(t)
	o.Only = "write_amplification_"
	res, err := Journal(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	small, large := res.Figures["ingest_4k_qd32_vs_raw"], res.Figures["ingest_64k_qd32_vs_raw"]
	perSmall := small.Ours.MBPerSecond / small.Ours.PerSecond
	perLarge := large.Ours.MBPerSecond / large.Ours.PerSecond
	if perLarge < 8*perSmall {
		t.Errorf("%.0f bytes a record of 64 KiB, %.0f of 4 KiB", perLarge*1e6, perSmall*1e6)
	}
	if _, ok := res.Figures["asof_4k_qd1_vs_file"]; ok {
		t.Error("what was not asked for was measured")
	}
}

// A group that the baseline does not write, or an image that is not the model's,
// ends the run.
func TestJournalRefusesWhatIsNotTheSame(t *testing.T) {
	h := &history{sums: []uint64{sumOf(make([]byte, cellBytes))}}
	p := make([]byte, cellBytes)
	if err := h.verify(0, p); err != nil {
		t.Error(err)
	}
	p[77] ^= 1
	if h.verify(0, p) == nil {
		t.Error("a flipped bit passes")
	}
	g := newGroups()
	g.wrote(8192)
	g.syncs()
	g.wrote(4096)
	g.syncs()
	g.syncs()
	if got := g.take(); !slices.Equal(got, []int64{8192, 4096}) {
		t.Errorf("groups %v", got)
	}
	if f := figure("ingest_64k_qd32_vs_raw", []float64{0.95, 0.7, 0.8}); !f.Missed() || f.Value != 0.8 || f.Low != 0.7 {
		t.Errorf("%+v is not missed", f)
	}
	if o := (JournalOptions{Only: "reads"}).withDefaults(); o.validate() == nil {
		t.Error("a run that measures nothing is a run")
	}
	if got := FiguresWith("materialize_f"); !slices.Equal(got, []string{folded}) {
		t.Errorf("figures %v", got)
	}
	if f := figure("write_amplification_64k", []float64{1.01}); f.Missed() {
		t.Errorf("%+v is missed", f)
	}
}
