package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/testbed/guest"
)

// FailoverOptions describe a run. The zero value is what its targets are for.
type FailoverOptions struct {
	Dir       string // a directory is made below it, and removed; default: the temporary one
	Records   int    // of the journal of the one machine; default a million
	Machines  int    // that are failed over at once besides; default 10
	Each      int    // records of each of theirs; default a tenth of Records
	DiskBytes int64  // of each machine's disk; default 20 GiB
	Rounds    int    // boots of each kind for the time to the agent; default 3
	NoAgent   bool   // power-on alone is measured
	Differ    int64  // bytes that a reprotect has to move; default 100 MB, in whole sectors
	// Only are the parts that are measured; none: all of FailoverParts.
	Only []string
	// Daemon is this program's daemon with the configuration at a path.
	Daemon   func(ctx context.Context, config string) *exec.Cmd
	Progress func(step string, n, of int)
}

func (o FailoverOptions) withDefaults() FailoverOptions {
	if o.Dir == "" {
		o.Dir = os.TempDir()
	}
	if o.Records <= 0 {
		o.Records = 1_000_000
	}
	if o.Machines <= 0 {
		o.Machines = 10
	}
	if o.Each <= 0 {
		o.Each = max(o.Records/10, 1)
	}
	if o.DiskBytes <= 0 {
		o.DiskBytes = 20 << 30
	}
	if o.Rounds <= 0 {
		o.Rounds = 3
	}
	if o.Differ <= 0 {
		o.Differ = 100_000_000 / 512 * 512
	}
	if o.Progress == nil {
		o.Progress = func(string, int, int) {}
	}
	return o
}

// Parts of a run: one machine after the other, many at once, the reprotect.
const (
	partOne       = "one"
	partMany      = "many"
	partReprotect = "reprotect"
)

// FailoverParts are the parts of Failover, in order.
var FailoverParts = []string{partOne, partMany, partReprotect}

func (o FailoverOptions) has(part string) bool {
	return len(o.Only) == 0 || slices.Contains(o.Only, part)
}

// FailoverResult is what `bench failover -o json` prints.
type FailoverResult struct {
	Figures map[string]Figure
	Setting FailoverSetting
}

// FailoverSetting is where and how a run was made.
type FailoverSetting struct {
	Records   int     `json:"records"`
	Machines  int     `json:"machines"`
	Each      int     `json:"records_each"`
	DiskBytes int64   `json:"disk_bytes"`
	Accel     string  `json:"accelerator"`
	CPUs      int     `json:"cpus"`
	Kernel    string  `json:"kernel"`
	Go        string  `json:"go"`
	Reopening float64 `json:"reopening_seconds"` // of the journal by the daemon, before the order
	Differ    int64   `json:"differing_bytes"`
	Wire      int64   `json:"reprotect_wire_bytes"`
	Took      float64 `json:"took_seconds"`
}

// failoverGoals lists the figures of Failover in the order in which they are printed.
var failoverGoals = []goal{
	{"rto_to_power_on_seconds", atMost, 1.0},
	{"rto_to_power_on_of_ten_seconds", atMost, 3.0},
	{"rto_to_agent_seconds", "", 0},
	{"plain_boot_to_agent_seconds", "", 0},
	{"rto_to_agent_vs_plain_boot", atMost, 1.25},
	{"reprotect_wire_bytes_per_byte_that_differs", atMost, 1.10},
}

// Failover measures how long a failover takes. A replica's journal of Records records of
// a disk of DiskBytes is made, and the daemon of its site started as a process: nothing
// of the view was read before. From the order at its control socket the clock runs until
// QEMU says that the guest runs (which is after its RESUME event), then until the guest
// agent answers, which lies on the disk and runs once the guest has read some 80 MB of
// files there; beside that stands the same guest booted from a local file by hand. What
// either reads is not in the kernel's cache.
// Then Machines more are ordered at once, and the last one counts; at the end Reprotect.
func Failover(ctx context.Context, o FailoverOptions) (FailoverResult, error) {
	o = o.withDefaults()
	began := time.Now()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return FailoverResult{}, err
	}
	res := FailoverResult{Figures: map[string]Figure{}, Setting: FailoverSetting{Records: o.Records, Machines: o.Machines, Each: o.Each, DiskBytes: o.DiskBytes, Differ: o.Differ,
		CPUs: runtime.NumCPU(), Kernel: unix.ByteSliceToString(u.Release[:]), Go: runtime.Version()}}
	var err error
	if o.has(partOne) || o.has(partMany) {
		err = res.failovers(ctx, o)
	}
	if err == nil && o.has(partReprotect) {
		err = res.reprotect(ctx, o)
	}
	res.Setting.Took = time.Since(began).Seconds()
	return res, err
}

func (r *FailoverResult) failovers(ctx context.Context, o FailoverOptions) error {
	rig, err := newFailoverRig(ctx, o)
	if err == nil {
		r.Setting.Accel = string(rig.accel)
		err = r.measure(ctx, rig)
	}
	if rig != nil {
		err = errors.Join(err, rig.close())
	}
	return err
}

func (r *FailoverResult) measure(ctx context.Context, rig *failoverRig) error {
	one, others := rig.groups()
	var on, ours, plain, ratios []float64
	for i, name := range one {
		rig.o.Progress("fail over one machine", i+1, len(one))
		if err := rig.restart(ctx); err != nil {
			return err
		}
		r.Setting.Reopening = max(r.Setting.Reopening, rig.reopening)
		power, agent, err := rig.failover(ctx, name)
		if err != nil {
			return err
		}
		on = append(on, power)
		if rig.o.NoAgent {
			continue
		}
		beside, err := rig.plainBoot(ctx)
		if err != nil {
			return err
		}
		ours, plain, ratios = append(ours, agent), append(plain, beside), append(ratios, agent/beside)
	}
	r.put(map[string][]float64{"rto_to_power_on_seconds": on, "rto_to_agent_seconds": ours, "plain_boot_to_agent_seconds": plain, "rto_to_agent_vs_plain_boot": ratios})
	if len(others) == 0 {
		return rig.stop()
	}
	rig.o.Progress(fmt.Sprintf("fail over %d machines", len(others)), 1, 1)
	if err := rig.restart(ctx); err != nil {
		return err
	}
	all, err := rig.together(ctx)
	if err = errors.Join(err, rig.stop()); err == nil {
		r.put(map[string][]float64{"rto_to_power_on_of_ten_seconds": {all}})
	}
	return err
}

func (r *FailoverResult) reprotect(ctx context.Context, o FailoverOptions) (err error) {
	o.Progress("protect the old primary again", 1, 1)
	if r.Setting.Wire, err = Reprotect(ctx, o.Dir, o.DiskBytes, o.Differ); err == nil {
		r.put(map[string][]float64{"reprotect_wire_bytes_per_byte_that_differs": {float64(r.Setting.Wire) / float64(o.Differ)}})
	}
	return err
}

func (r *FailoverResult) put(rounds map[string][]float64) {
	for name, v := range rounds {
		if len(v) > 0 {
			r.Figures[name] = judged(failoverGoals, name, v)
		}
	}
}

// Names lists the figures, in order.
func (r FailoverResult) Names() []string { return namesOf(failoverGoals, r.Figures) }

// MarshalJSON is flatJSON.
func (r FailoverResult) MarshalJSON() ([]byte, error) { return flatJSON(r.Figures, r.Setting) }

// guestArgs are QEMU's arguments for the guest, but for its disk; agent is a socket for
// its agent's channel, serial a file for its console.
func (r *failoverRig) guestArgs(serial, agent string) []string {
	cpu, order := "max", ""
	if r.accel == guest.KVM {
		cpu = "host"
	}
	if r.disk != "" {
		order = guest.SystemOrder
	}
	args := []string{"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "pc", "-accel", string(r.accel), "-cpu", cpu, "-m", "256",
		"-kernel", r.image.Kernel, "-initrd", r.image.Initrd, "-append", guest.KernelLine + fmt.Sprintf(` quiet loglevel=1 afterimage="%s"`, order), "-serial", "file:" + serial}
	return append(append(args, guest.AgentArgs(agent)...), "-device", "virtio-blk-pci,drive=disk0")
}

// agentSocket is where a group's machine has its agent's channel.
func (r *failoverRig) agentSocket(name string) string {
	return filepath.Join(r.dir, name+".agent")
}
