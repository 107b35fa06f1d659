package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	product "github.com/novacron/afterimage/site"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/guest"
)

// failoverRig is a replica's site with a group for each failover that is measured.
type failoverRig struct {
	o     FailoverOptions
	dir   string
	image guest.Image
	accel guest.Accel
	cfg   *config.Config
	path  string // of the configuration
	disk  string // a system's disk; "" without an agent
	api   *control.Client

	daemon    *exec.Cmd
	said      *tail
	reopening float64
	pids      []int // of machines
}

// groups are those of one machine, then the others.
func (r *failoverRig) groups() (one, others []string) {
	for i := range r.o.Rounds {
		if !r.o.has(partOne) {
			break
		}
		one = append(one, fmt.Sprintf("one%d", i))
	}
	for i := range r.o.Machines {
		if !r.o.has(partMany) {
			break
		}
		others = append(others, fmt.Sprintf("ten%d", i))
	}
	return one, others
}

func newFailoverRig(ctx context.Context, o FailoverOptions) (*failoverRig, error) {
	dir, err := os.MkdirTemp(o.Dir, "bf")
	if err != nil {
		return nil, err
	}
	r := &failoverRig{o: o, dir: dir}
	if r.image, err = guest.Build(ctx); err == nil && !o.NoAgent {
		r.disk = filepath.Join(dir, "system.raw")
		err = guest.SystemDisk(ctx, r.disk, o.DiskBytes)
	}
	if err == nil {
		r.accel, err = guest.Accelerator(ctx, r.image)
	}
	if err == nil {
		err = r.configure()
	}
	if err == nil {
		err = r.fill(ctx)
	}
	return r, err
}

func (r *failoverRig) configure() error {
	var b strings.Builder
	fmt.Fprintf(&b, "site: b\ndata: %s\ngroups:\n", filepath.Join(r.dir, "b"))
	one, others := r.groups()
	for _, name := range append(one, others...) {
		fmt.Fprintf(&b, "- name: %s\n  machine:\n    disks: [{volume: root, id: disk0}]\n    args:\n", name)
		for _, a := range r.guestArgs("{serial}", r.agentSocket(name)) {
			fmt.Fprintf(&b, "    - %q\n", a)
		}
	}
	r.path = filepath.Join(r.dir, "b.yml")
	if err := os.WriteFile(r.path, []byte(b.String()), 0o600); err != nil {
		return err
	}
	var err error
	r.cfg, err = config.Load(r.path)
	if err == nil {
		r.api = control.NewClient(r.cfg.Control)
	}
	return err
}

// fill makes the journals as a replica has them: the site makes them, a primary's
// records are put in beside it.
func (r *failoverRig) fill(ctx context.Context) error {
	s, err := product.Open(r.cfg, product.Options{})
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- s.Run(running) }()
	err = r.awaitOpen(ctx)
	stop()
	if err = errors.Join(err, <-done, s.Close()); err != nil {
		return err
	}
	one, others := r.groups()
	for i, name := range append(one, others...) {
		r.o.Progress("fill journals", i+1, len(one)+len(others))
		n := r.o.Records
		if i >= len(one) {
			n = r.o.Each
		}
		if err := r.fillOne(ctx, filepath.Join(r.cfg.Data, "groups", config.DefaultTenant, name), n, uint64(i)); err != nil {
			return fmt.Errorf("fill %s: %w", name, err)
		}
	}
	return nil
}

// awaitOpen returns once every group's journal is open.
func (r *failoverRig) awaitOpen(ctx context.Context) error {
	return until(ctx, "the groups are open", func() bool {
		st, err := r.api.Status(ctx)
		for _, g := range st.Groups {
			if g.State == control.StateStarting || g.State == control.StateStopped || g.State == control.StateFailed {
				return false
			}
		}
		return err == nil && len(st.Groups) == len(r.cfg.Groups)
	})
}

// recordBytes is what each record writes; the disk stays sparse.
const recordBytes = 512

// A system's disk is written in records of pieceBytes, and then again, block by block in
// no order, in between the others: what a start reads lies all over the journal.
const (
	pieceBytes = 64 << 10
	blockBytes = 4096
)

// system are the blocks of the system's disk that hold anything, by their offset.
func (r *failoverRig) system() (map[int64][]byte, error) {
	if r.disk == "" {
		return nil, nil
	}
	f, err := os.Open(r.disk)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	blocks := map[int64][]byte{}
	zero := make([]byte, blockBytes)
	for off := int64(0); off < guest.SystemBytes; off += blockBytes {
		b := make([]byte, blockBytes)
		if _, err := f.ReadAt(b, off); err != nil {
			return nil, err
		}
		if !bytes.Equal(b, zero) {
			blocks[off] = b
		}
	}
	return blocks, nil
}

// pieces are neighbouring blocks, together at most pieceBytes, in the disk's order.
func pieces(blocks map[int64][]byte) []cbt.Event {
	var events []cbt.Event
	for _, off := range slices.Sorted(maps.Keys(blocks)) {
		if n := len(events); n > 0 && events[n-1].Extent.Offset+events[n-1].Extent.Length == off && events[n-1].Extent.Length < pieceBytes {
			events[n-1].Data = append(events[n-1].Data, blocks[off]...)
			events[n-1].Extent.Length += blockBytes
			continue
		}
		events = append(events, write(off, blocks[off]))
	}
	return events
}

func write(off int64, data []byte) cbt.Event {
	return cbt.Event{Kind: cbt.EventWrite, Extent: cbt.Extent{Offset: off, Length: int64(len(data))}, Data: bytes.Clone(data)}
}

func (r *failoverRig) fillOne(ctx context.Context, dir string, records int, seed uint64) (err error) {
	j, err := journal.Open(dir, journal.Options{})
	if err != nil {
		return err
	}
	run, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- j.Run(run) }()
	defer func() {
		stop()
		err = errors.Join(err, <-done, j.Close())
	}()
	var w *journal.Writer
	late := until(ctx, "the journal takes records", func() bool {
		w, err = j.BeginEpoch(ctx, "a", journal.Position{}, 0)
		return err == nil || !errors.Is(err, journal.ErrClosed)
	})
	if err = errors.Join(err, late); err != nil {
		return err
	}
	v := cbt.Volume{ID: cbt.VolumeID(cbt.NewID()), Name: "root", Size: r.o.DiskBytes}
	if err := w.AddVolume(ctx, v); err != nil {
		return err
	}
	last, err := w.Record(ctx, cbt.Event{Kind: cbt.EventSynced, Volume: v.ID})
	if err != nil {
		return err
	}
	blocks, err := r.system()
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(seed, 1))
	events := pieces(blocks)
	again := slices.Sorted(maps.Keys(blocks))
	rng.Shuffle(len(again), func(i, j int) { again[i], again[j] = again[j], again[i] })
	free := int64(1 << 20) // the guest finds no partition table
	if len(blocks) > 0 {
		free = guest.SystemBytes
	}
	data := make([]byte, recordBytes)
	for i := range max(records, len(events)+len(again)) {
		var e cbt.Event
		switch every := max(records/(len(again)+1), 1); {
		case i < len(events):
			e = events[i]
		case len(again) > 0 && i%every == 0:
			e, again = write(again[0], blocks[again[0]]), again[1:]
		default:
			data[0] = byte(i)
			e = write(free+rng.Int64N((r.o.DiskBytes-free)/recordBytes)*recordBytes, data)
		}
		e.Volume = v.ID
		if last, err = w.Record(ctx, e); err != nil {
			return err
		}
		if i%4096 == 0 {
			if err := last.Wait(ctx); err != nil {
				return err
			}
		}
	}
	if err := last.Wait(ctx); err != nil {
		return err
	}
	return w.WaitDurable(ctx)
}

// restart ends the daemon and its machines, and starts it again.
func (r *failoverRig) restart(ctx context.Context) error {
	if err := r.stop(); err != nil {
		return err
	}
	if err := forget(r.cfg.Data); err != nil {
		return err
	}
	r.said = &tail{}
	daemon := r.o.Daemon(ctx, r.path)
	daemon.Stderr = r.said
	began := time.Now()
	if err := daemon.Start(); err != nil {
		return err
	}
	r.daemon = daemon
	if err := r.awaitOpen(ctx); err != nil {
		return fmt.Errorf("%w: %s", err, r.said.text())
	}
	r.reopening = time.Since(began).Seconds()
	return nil
}

func (r *failoverRig) stop() error {
	var errs []error
	for _, pid := range r.pids {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended by itself
		// The daemon reaps what it started.
		errs = append(errs, until(context.Background(), "a machine's end", func() bool { return syscall.Kill(pid, 0) != nil }))
	}
	r.pids = nil
	if r.daemon != nil {
		_ = r.daemon.Process.Signal(syscall.SIGTERM) // Wait tells
		errs = append(errs, r.daemon.Wait())
		r.daemon = nil
	}
	return errors.Join(errs...)
}

func (r *failoverRig) close() error { return errors.Join(r.stop(), os.RemoveAll(r.dir)) }

// order fails a group over, and tells how long it took until QEMU said that it runs.
func (r *failoverRig) order(ctx context.Context, name string) (seconds float64, pid int, err error) {
	began := time.Now()
	out, err := r.api.Failover(ctx, control.FailoverRequest{Group: name, At: "latest", Force: true, Operator: "bench"}, func(control.Progress) {})
	return time.Since(began).Seconds(), out.PID, err
}

func (r *failoverRig) failover(ctx context.Context, name string) (power, agent float64, err error) {
	began := time.Now()
	power, pid, err := r.order(ctx, name)
	if pid != 0 {
		r.pids = append(r.pids, pid)
	}
	if err != nil || r.o.NoAgent {
		return power, 0, err
	}
	err = awaitAgent(ctx, r.agentSocket(name))
	return power, time.Since(began).Seconds(), err
}

// together orders the other groups at once; the slowest counts.
func (r *failoverRig) together(ctx context.Context) (float64, error) {
	_, others := r.groups()
	pids := make([]int, len(others))
	began := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for i, name := range others {
		g.Go(func() (err error) {
			_, pids[i], err = r.order(ctx, name)
			return err
		})
	}
	err := g.Wait()
	took := time.Since(began).Seconds()
	for _, pid := range pids {
		if pid != 0 {
			r.pids = append(r.pids, pid)
		}
	}
	return took, err
}

// forget has the kernel's cache give up what it holds of the files below a path that
// are on disk: a machine that is failed over to has not run here.
func forget(path string) error {
	return filepath.WalkDir(path, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := f.Sync(); err != nil {
			return err
		}
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
}

// localDisk makes path the disk that the machines find, outside the cache.
func (r *failoverRig) localDisk(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if r.disk != "" {
		from, err := os.Open(r.disk)
		if err != nil {
			return err
		}
		defer from.Close()
		if _, err := io.CopyN(f, from, guest.SystemBytes); err != nil {
			return err
		}
	}
	if err := f.Truncate(r.o.DiskBytes); err != nil {
		return err
	}
	return forget(path)
}

// plainBoot is the same guest from a local file, by hand.
func (r *failoverRig) plainBoot(ctx context.Context) (float64, error) {
	if err := r.stop(); err != nil { // neither a daemon nor another guest beside it
		return 0, err
	}
	disk, agent := filepath.Join(r.dir, "plain.raw"), filepath.Join(r.dir, "plain.agent")
	if err := r.localDisk(disk); err != nil {
		return 0, err
	}
	args := append([]string{"-blockdev", "driver=file,node-name=disk0,filename=" + disk}, r.guestArgs(filepath.Join(r.dir, "plain.serial"), agent)...)
	cmd := exec.CommandContext(ctx, config.DefaultBinary, args...)
	said := &tail{}
	cmd.Stderr = said
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	err := awaitAgent(ctx, agent)
	took := time.Since(began).Seconds()
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, said.text())
	}
	return took, nil
}

// agentLimit bounds a guest's boot.
const agentLimit = 5 * time.Minute

// awaitAgent returns once the guest agent behind socket has answered. Both kinds of boot
// are asked in the same way: every 20 ms, each time with a number of its own.
func awaitAgent(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, agentLimit)
	defer cancel()
	n := 0
	return until(ctx, "the guest agent answers", func() bool {
		n++
		c, err := net.Dial("unix", socket)
		if err != nil {
			return false
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := fmt.Fprintf(c, "{\"execute\":\"guest-sync\",\"arguments\":{\"id\":%d}}\n", n); err != nil {
			return false
		}
		for s := bufio.NewScanner(c); s.Scan(); {
			if strings.Contains(s.Text(), fmt.Sprintf("\"return\": %d}", n)) {
				return true
			}
		}
		return false
	})
}
