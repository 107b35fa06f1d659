package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CaptureOptions describe a run. The zero value takes five rounds of two seconds.
type CaptureOptions struct {
	Dir       string        // a directory is made below it, and removed; default: the temporary one
	Span      time.Duration // of each round; default 2 s
	Rounds    int           // default 5
	DiskBytes int64         // of each disk; default 256 MiB
	Progress  func(step string, n, of int)
}

func (o CaptureOptions) withDefaults() CaptureOptions {
	if o.Dir == "" {
		o.Dir = os.TempDir()
	}
	if o.Span <= 0 {
		o.Span = 2 * time.Second
	}
	if o.Rounds <= 0 {
		o.Rounds = 5
	}
	if o.DiskBytes <= 0 {
		o.DiskBytes = 256 << 20
	}
	if o.Progress == nil {
		o.Progress = func(string, int, int) {}
	}
	return o
}

// CaptureResult is what `bench capture -o json` prints.
type CaptureResult struct {
	Figures map[string]Figure
	Setting CaptureSetting
}

// CaptureSetting is where and how a run was made.
type CaptureSetting struct {
	Seconds   float64           `json:"seconds_per_round"`
	Rounds    int               `json:"rounds"`
	DiskBytes int64             `json:"disk_bytes"`
	CPUs      int               `json:"cpus"`
	Kernel    string            `json:"kernel"`
	Go        string            `json:"go"`
	Tools     map[string]string `json:"tools"`
	Floor     string            `json:"floor"`
	Took      float64           `json:"took_seconds"`
}

// captureGoals lists the figures of Capture, in the order in which they are
// printed. What has no goal is the mirror's own price, which is QEMU's.
var captureGoals = []goal{
	{"latency_4k_qd1_vs_floor", atMost, 1.10},
	{"p99_4k_qd1_vs_floor", atMost, 1.25},
	{"iops_4k_qd32_vs_floor", atLeast, 0.90},
	{"throughput_64k_qd8_vs_floor", atLeast, 0.90},
	{"floor_latency_4k_qd1_vs_none", "", 0},
	{"floor_iops_4k_qd32_vs_none", "", 0},
	{"floor_throughput_64k_qd8_vs_none", "", 0},
	{"latency_4k_qd1_vs_none", "", 0},
	{"bitmap_overhead_4k_qd1_vs_none", "", 0},
	{"power_latency_4k_qd1_vs_floor", "", 0},
	{"power_p99_4k_qd1_vs_floor", "", 0},
	{"power_iops_4k_qd32_vs_floor", "", 0},
	{"power_throughput_64k_qd8_vs_floor", "", 0},
}

// tapLoad is one load of fio's.
type tapLoad struct {
	name  string
	block string
	depth int
}

var captureShapes = []tapLoad{{"4k_qd1", "4k", 1}, {"4k_qd32", "4k", 32}, {"64k_qd8", "64k", 8}}

// sides, in the order in which they take turns: without a mirror, mirrored to a server
// that throws everything away, tapped into a journal whose answers survive the death of
// the process (ours) or of the machine (power).
var sides = []string{"none", "floor", "ours", "power"}

// bitmapSide follows its disk by bitmap cycles. It takes turns with none alone, behind
// the others, for a cycle costs a little though nothing is written.
const bitmapSide = "bitmap"

// bitmapEvery is the time between its points. A round of it lasts for several: the reads
// that close a cycle take turns with the guest, and a round with one cycle more than
// another tells of that and of nothing else.
const (
	bitmapEvery = time.Second
	bitmapSpans = 2 // rounds of the others that one of it lasts for
)

// lap is what fio measured in one round.
type lap struct{ mean, p99, perSecond, bytesPerSecond float64 } // ns, ns, 1/s, B/s

// Capture measures what the tap adds to a guest's writes. fio writes at random
// through qemu-storage-daemon, QEMU's real block layer, to a disk without a
// mirror (none), to one that is mirrored to an NBD server that throws everything
// away (floor: what any tap by mirror costs), and to ones that are tapped by ours
// into a journal whose answer survives the death of the process, or of the machine.
// They take turns in every round, in another order each time, and each begins with
// nothing left to write back; a figure is the median of the rounds' ratios. Then
// it writes by turns to a disk that is followed by bitmap cycles and to one that is
// not followed at all.
func Capture(ctx context.Context, o CaptureOptions) (CaptureResult, error) {
	o = o.withDefaults()
	began := time.Now()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return CaptureResult{}, err
	}
	res := CaptureResult{Figures: map[string]Figure{}, Setting: CaptureSetting{
		Seconds: o.Span.Seconds(), Rounds: o.Rounds, DiskBytes: o.DiskBytes, CPUs: runtime.NumCPU(), Kernel: unix.ByteSliceToString(u.Release[:]), Go: runtime.Version(), Tools: map[string]string{},
		Floor: "mirror sync=none copy-mode=write-blocking to nbdkit null over a unix socket",
	}}
	for _, tool := range []string{"fio", "nbdkit", "qemu-storage-daemon"} {
		out, err := exec.CommandContext(ctx, tool, "--version").Output()
		if err != nil {
			return res, fmt.Errorf("find %s: %w", tool, err)
		}
		first, _, _ := strings.Cut(string(out), "\n")
		res.Setting.Tools[tool] = first
	}
	rig, err := newCaptureRig(ctx, o)
	if err != nil {
		return res, errors.Join(err, rig.close())
	}
	laps, err := rig.measure(ctx, o)
	if err = errors.Join(err, rig.close()); err != nil {
		return res, err
	}
	res.figures(laps)
	res.Setting.Took = time.Since(began).Seconds()
	return res, nil
}

// laps are the rounds of each shape and side.
type laps map[string]map[string][]lap

func (r *captureRig) measure(ctx context.Context, o CaptureOptions) (laps, error) {
	out := laps{}
	for _, s := range captureShapes {
		out[s.name] = map[string][]lap{}
	}
	n, of := 0, (o.Rounds+1)*(len(captureShapes)+1)
	turn := func(i int, s tapLoad, name string, span time.Duration, sides ...string) error { // the first warms up and is dropped
		n++
		o.Progress(name, n, of)
		for k := range sides {
			side := sides[(i+k)%len(sides)]
			if err := r.settle(); err != nil {
				return err
			}
			l, err := fio(ctx, r.sockets[side], s, o.DiskBytes, span, i)
			if err == nil {
				err = r.stillThere(side)
			}
			if err != nil {
				return fmt.Errorf("measure %s of %s: %w", s.name, side, err)
			}
			if i > 0 {
				out[name][side] = append(out[name][side], l)
			}
		}
		return nil
	}
	for i := range o.Rounds + 1 {
		for _, s := range captureShapes {
			if err := turn(i, s, s.name, o.Span, sides...); err != nil {
				return nil, err
			}
		}
	}
	if err := r.tap(ctx, bitmapSide, o.DiskBytes); err != nil {
		return nil, fmt.Errorf("follow a disk by bitmap: %w", err)
	}
	out[bitmapSide] = map[string][]lap{}
	for i := range o.Rounds + 1 {
		if err := turn(i, captureShapes[0], bitmapSide, bitmapSpans*o.Span, "none", bitmapSide); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// figures makes the ratios of the rounds.
func (r *CaptureResult) figures(l laps) {
	put := func(name, shape, above, below string, of func(lap) float64) {
		var ratios []float64
		for i := range l[shape][above] {
			ratios = append(ratios, of(l[shape][above][i])/of(l[shape][below][i]))
		}
		f := Figure{Value: median(ratios), Low: slices.Min(ratios), High: slices.Max(ratios), Rounds: len(ratios), Ours: rateOfLaps(l[shape][above]), Baseline: rateOfLaps(l[shape][below])}
		for _, g := range captureGoals {
			if g.name == name && g.want != "" {
				met, target := f.Value >= g.target, g.target
				if g.want == atMost {
					met = f.Value <= g.target
				}
				f.Target, f.Want, f.Met = &target, g.want, &met
			}
		}
		r.Figures[name] = f
	}
	mean := func(x lap) float64 { return x.mean }
	rate := func(x lap) float64 { return x.perSecond }
	moved := func(x lap) float64 { return x.bytesPerSecond }
	put("latency_4k_qd1_vs_floor", "4k_qd1", "ours", "floor", mean)
	put("p99_4k_qd1_vs_floor", "4k_qd1", "ours", "floor", func(x lap) float64 { return x.p99 })
	put("iops_4k_qd32_vs_floor", "4k_qd32", "ours", "floor", rate)
	put("throughput_64k_qd8_vs_floor", "64k_qd8", "ours", "floor", moved)
	put("floor_latency_4k_qd1_vs_none", "4k_qd1", "floor", "none", mean)
	put("floor_iops_4k_qd32_vs_none", "4k_qd32", "floor", "none", rate)
	put("floor_throughput_64k_qd8_vs_none", "64k_qd8", "floor", "none", moved)
	put("latency_4k_qd1_vs_none", "4k_qd1", "ours", "none", mean)
	put("bitmap_overhead_4k_qd1_vs_none", bitmapSide, bitmapSide, "none", mean)
	put("power_latency_4k_qd1_vs_floor", "4k_qd1", "power", "floor", mean)
	put("power_p99_4k_qd1_vs_floor", "4k_qd1", "power", "floor", func(x lap) float64 { return x.p99 })
	put("power_iops_4k_qd32_vs_floor", "4k_qd32", "power", "floor", rate)
	put("power_throughput_64k_qd8_vs_floor", "64k_qd8", "power", "floor", moved)
}

// rateOfLaps is the medians; P50 is that of the mean latencies.
func rateOfLaps(ls []lap) *Rate {
	of := func(f func(lap) float64) float64 {
		var v []float64
		for _, l := range ls {
			v = append(v, f(l))
		}
		return median(v)
	}
	return &Rate{
		MBPerSecond: of(func(l lap) float64 { return l.bytesPerSecond / 1e6 }), PerSecond: of(func(l lap) float64 { return l.perSecond }),
		P50: of(func(l lap) float64 { return l.mean / 1e3 }), P99: of(func(l lap) float64 { return l.p99 / 1e3 }),
	}
}

// Names lists the figures, in order.
func (r CaptureResult) Names() []string { return namesOf(captureGoals, r.Figures) }

// MarshalJSON is flatJSON.
func (r CaptureResult) MarshalJSON() ([]byte, error) { return flatJSON(r.Figures, r.Setting) }

// fio runs one round against the export at a socket.
func fio(ctx context.Context, socket string, s tapLoad, size int64, span time.Duration, seed int) (lap, error) {
	cmd := exec.CommandContext(ctx, "fio", "--name=w", "--ioengine=nbd", "--uri=nbd+unix:///d?socket="+socket, "--rw=randwrite", "--bs="+s.block,
		fmt.Sprintf("--iodepth=%d", s.depth), fmt.Sprintf("--size=%d", size), "--time_based", fmt.Sprintf("--runtime=%dms", span.Milliseconds()),
		fmt.Sprintf("--randseed=%d", seed+1), "--output-format=json")
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return lap{}, fmt.Errorf("run fio: %w: %s%s", err, said.Bytes(), out)
	}
	var report struct {
		Jobs []struct {
			Error int `json:"error"`
			Write struct {
				IOPS  float64 `json:"iops"`
				Bytes float64 `json:"bw_bytes"`
				Clat  struct {
					Mean       float64            `json:"mean"`
					Percentile map[string]float64 `json:"percentile"`
				} `json:"clat_ns"`
			} `json:"write"`
		} `json:"jobs"`
	}
	if i := bytes.IndexByte(out, '{'); i > 0 {
		out = out[i:] // it may talk first
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return lap{}, fmt.Errorf("read fio's report: %w", err)
	}
	if len(report.Jobs) != 1 || report.Jobs[0].Error != 0 || report.Jobs[0].Write.IOPS == 0 {
		return lap{}, fmt.Errorf("fio failed: %s", out)
	}
	w := report.Jobs[0].Write
	return lap{w.Clat.Mean, w.Clat.Percentile["99.000000"], w.IOPS, w.Bytes}, nil
}
