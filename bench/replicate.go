package bench

import (
	"context"
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

// replicateGoals lists the figures of Replicate, in the order in which they are
// printed.
var replicateGoals = []goal{
	{"goodput_vs_link_loss_0", atLeast, 0.92},
	{"goodput_vs_link_loss_0_1", atLeast, 0.92},
	{"goodput_vs_link_loss_1", atLeast, 0.80},
	{"tcp_goodput_vs_link_loss_0", "", 0},
	{"tcp_goodput_vs_link_loss_0_1", "", 0},
	{"tcp_goodput_vs_link_loss_1", "", 0},
	{connectionsFigure, "", 0},
	{retransmittedFigure, "", 0},
	{competingFigure, "", 0},
	{"quic_loopback_vs_bare_quic", atLeast, 0.75},
	{"tls_loopback_vs_bare_tls", atLeast, 0.55},
	{"cpu_seconds_per_gib", "", 0},
	{"cpu_seconds_per_gib_tls", "", 0},
	{"cpu_seconds_per_gib_bare_quic", "", 0},
	{"cpu_seconds_per_gib_bare_tls", "", 0},
	{wirePrefix + databaseKind, "", 0},
	{wirePrefix + randomKind, "", 0},
	{wirePrefix + zeroKind, "", 0},
	{throttleFigure, atMost, 0.05},
	{besideFigure, atMost, 1.10},
}

// ReplicateFiguresWith lists the figures that have part in their name.
func ReplicateFiguresWith(part string) []string {
	var names []string
	for _, g := range replicateGoals {
		if strings.Contains(g.name, part) {
			names = append(names, g.name)
		}
	}
	return names
}

// ReplicateOptions describe a run. The zero value takes three rounds of 10 s on a link
// of 200 Mbit/s and 50 ms.
type ReplicateOptions struct {
	Dir      string        // a directory is made below it, and removed; default: the temporary one
	Span     time.Duration // of each side of a round; default 10 s
	Rounds   int           // default 3
	RTT      time.Duration // default 50 ms
	LinkRate int64         // bytes a second, of IP packets; default 200 Mbit/s
	Quick    bool          // one short round of each: it shows that all works, and little else
	Only     string        // a part of the names of the figures wanted; empty: all
	Seed     uint64        // 0: drawn
	// End begins this program once more with EndChild as its whole work.
	End func(ctx context.Context) *exec.Cmd
	// Progress, which may be nil, hears of every step that begins.
	Progress func(step string, n, of int)

	tiny bool // for tests: all is measured, none of it for long
}

// ReplicateResult is what `bench replicate -o json` prints.
type ReplicateResult struct {
	Figures map[string]Figure
	Setting ReplicateSetting
}

// ReplicateSetting is where and how a run was made.
type ReplicateSetting struct {
	Seconds    float64 `json:"seconds_per_side"`
	WarmUp     float64 `json:"warm_up_seconds"`
	RTT        float64 `json:"rtt_seconds"`
	LinkRate   int64   `json:"link_bytes_per_second"`
	QueueBytes int64   `json:"queue_bytes"`
	Loopback   int64   `json:"loopback_bytes"`
	Seed       uint64  `json:"seed"`
	CPUs       int     `json:"cpus"`
	Kernel     string  `json:"kernel"`
	Go         string  `json:"go"`
	Congestion string  `json:"tcp_congestion_control"`
	Took       float64 `json:"run_seconds"`
}

func (o ReplicateOptions) withDefaults() ReplicateOptions {
	if o.Dir == "" {
		o.Dir = os.TempDir()
	}
	if o.Span == 0 {
		o.Span = 10 * time.Second
	}
	if o.Rounds == 0 {
		o.Rounds = 3
	}
	if o.Quick {
		o.Span, o.Rounds = 2*time.Second, 1
	}
	if o.RTT == 0 {
		o.RTT = 50 * time.Millisecond
	}
	if o.LinkRate == 0 {
		o.LinkRate = 200_000_000 / 8
	}
	if o.Seed == 0 {
		o.Seed = uint64(time.Now().UnixNano())
	}
	if o.Progress == nil {
		o.Progress = func(string, int, int) {}
	}
	return o
}

func (o ReplicateOptions) validate() error {
	switch {
	case o.End == nil:
		return errors.New("no program for the ends")
	case o.Span < time.Second && !o.tiny || o.Rounds < 1:
		return errors.New("a round takes at least 1 s, and there is at least one")
	case o.RTT < 0 || o.LinkRate < 1<<20:
		return fmt.Errorf("a link of %d bytes a second, RTT %v: want 1 MiB and no RTT below 0", o.LinkRate, o.RTT)
	case len(ReplicateFiguresWith(o.Only)) == 0:
		return fmt.Errorf("no figure has %q in its name", o.Only)
	}
	return nil
}

// warmUp is what passes before a side of a round is measured.
func (o ReplicateOptions) warmUp() time.Duration { return min(o.Span/2, 5*time.Second) }

// queueBytes is what waits at the link's narrow end: what is under way in a round trip.
func (o ReplicateOptions) queueBytes() int64 {
	return max(int64(o.RTT.Seconds()*float64(o.LinkRate)), 64<<10)
}

// loopback is how much is sent where no link limits it.
func (o ReplicateOptions) loopback() int64 {
	switch {
	case o.tiny:
		return 16 << 20
	case o.Quick:
		return 128 << 20
	}
	return 1 << 30
}

// replicateRun is a run under way.
type replicateRun struct {
	*yard
	o     ReplicateOptions
	res   ReplicateResult
	marks map[string][]float64 // rounds by figure
	sides map[string][2][]round
}

// Replicate measures replication beside the bare libraries and TCP: see doc.go.
func Replicate(ctx context.Context, o ReplicateOptions) (res ReplicateResult, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("bench replicate: %w", err)
		}
	}()
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return ReplicateResult{}, err
	}
	dir, err := os.MkdirTemp(o.Dir, "afterimage-bench-")
	if err != nil {
		return ReplicateResult{}, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	r := &replicateRun{yard: &yard{dir: dir, end: o.End}, o: o, marks: map[string][]float64{}, sides: map[string][2][]round{}}
	r.res = ReplicateResult{Figures: map[string]Figure{}, Setting: r.setting()}
	began := time.Now()
	for _, part := range []func(context.Context) error{r.goodputs, r.loopbacks, r.wires, r.throttled, r.besides} {
		if err := part(ctx); err != nil {
			return r.res, err
		}
	}
	for name, rounds := range r.marks {
		f := judged(replicateGoals, name, rounds)
		if s, ok := r.sides[name]; ok {
			f.Ours, f.Baseline = rateOf(s[0]), rateOf(s[1])
		}
		r.res.Figures[name] = f
	}
	r.res.Setting.Took = time.Since(began).Seconds()
	return r.res, nil
}

func (r *replicateRun) setting() ReplicateSetting {
	var u unix.Utsname
	_ = unix.Uname(&u)                                                     // it fails only for a bad pointer
	control, _ := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control") // shown for what it is worth
	return ReplicateSetting{
		Seconds: r.o.Span.Seconds(), WarmUp: r.o.warmUp().Seconds(), RTT: r.o.RTT.Seconds(), LinkRate: r.o.LinkRate, QueueBytes: r.o.queueBytes(), Loopback: r.o.loopback(),
		Seed: r.o.Seed, CPUs: runtime.GOMAXPROCS(0), Kernel: unix.ByteSliceToString(u.Release[:]), Go: runtime.Version(), Congestion: strings.TrimSpace(string(control)),
	}
}

// wants reports that one of names is asked for.
func (r *replicateRun) wants(names ...string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return strings.Contains(n, r.o.Only) })
}

// note keeps a round's value of a figure that is asked for.
func (r *replicateRun) note(name string, v float64) {
	if r.wants(name) {
		r.marks[name] = append(r.marks[name], v)
	}
}

// beside keeps the two sides that a round of a figure compared.
func (r *replicateRun) beside(name string, ours, theirs round) {
	s := r.sides[name]
	s[0], s[1] = append(s[0], ours), append(s[1], theirs)
	r.sides[name] = s
}

// Names lists the figures that r holds, in order.
func (r ReplicateResult) Names() []string {
	var out []string
	for _, g := range replicateGoals {
		if _, ok := r.Figures[g.name]; ok {
			out = append(out, g.name)
		}
	}
	return out
}

// MissedNames lists the figures whose target is missed.
func (r ReplicateResult) MissedNames() []string {
	out := []string{}
	for _, n := range r.Names() {
		if r.Figures[n].Missed() {
			out = append(out, n)
		}
	}
	return out
}

// MarshalJSON prints one object as JournalResult's does.
func (r ReplicateResult) MarshalJSON() ([]byte, error) {
	return flat(r.Names(), r.Figures, r.MissedNames(), r.Setting)
}
