package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/novacron/afterimage/cbt/qmp"
	"github.com/novacron/afterimage/testbed/guest"
	"github.com/novacron/afterimage/testbed/stamp"
)

// guestDisk is the disk of a real guest at site a, tapped through QMP.
type guestDisk struct {
	dir    string
	config guest.Config
	guest  *guest.Guest
	second *guest.Console // of the machine that b starts
	booted bool           // second has said that it is ready
	at     guest.Config   // its configuration
	argv   []string       // its command line, but for its disk
	last   uint64
	offset time.Duration // of the guest's clock behind ours; valid if known
	known  bool
	qmp    string // of the machine that b started
}

func newGuestDisk(ctx context.Context, dir string) (*guestDisk, error) {
	g := &guestDisk{dir: dir}
	image := filepath.Join(dir, "guest.raw")
	f, err := os.OpenFile(image, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(diskBytes), f.Close()); err != nil {
		return nil, err
	}
	for _, d := range []string{"m1", "m2"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, err
		}
	}
	g.config, err = guest.Complete(ctx, guest.Config{Dir: filepath.Join(dir, "m1"), Disks: []guest.Disk{{Path: image}}})
	if err != nil {
		return nil, fmt.Errorf("build the guest: %w", err)
	}
	g.guest, err = guest.Start(ctx, g.config)
	if err != nil {
		return nil, fmt.Errorf("start the guest: %w", err)
	}
	if _, err := g.guest.Wait(ctx, "ready"); err != nil {
		return nil, errors.Join(fmt.Errorf("boot the guest: %w", err), g.guest.Close())
	}
	g.at = g.config
	g.at.Dir, g.at.Disks = filepath.Join(dir, "m2"), nil
	if g.argv, err = guest.Argv(g.at); err != nil {
		return nil, errors.Join(err, g.guest.Close())
	}
	g.second, err = guest.ListenConsole(g.at.ConsolePath())
	if err != nil {
		return nil, errors.Join(err, g.guest.Close())
	}
	return g, nil
}

func (g *guestDisk) volume() string { return "qemu: {node: disk0}" }

// extra is a's machine to tap, and b's machine to start.
func (g *guestDisk) extra() (a, b string) {
	a = fmt.Sprintf("    qemu: {qmp: %s, watchdog_qmp: %s}\n", g.config.QMPPath(0), g.config.QMPPath(1))
	var args []string
	argv := slices.DeleteFunc(slices.Clone(g.argv[1:]), func(a string) bool { return a == "-qmp" || strings.HasPrefix(a, "unix:") })
	for _, arg := range append(argv, "-device", "virtio-blk-pci,drive=disk0,serial=disk0,werror=stop,rerror=stop") {
		args = append(args, fmt.Sprintf("        - %q\n", arg))
	}
	b = "    machine:\n      name: demo\n      disks: [{volume: disk, id: disk0}]\n      args:\n" + strings.Join(args, "")
	return a, b
}

func (g *guestDisk) attach(context.Context, *daemon) error { return nil }

func (g *guestDisk) run(ctx context.Context, rate int) error {
	order := fmt.Sprintf("stamp rate=%d slots=%d first=%d", rate, slots, g.written()+1)
	return g.guest.Send(ctx, order)
}

func (g *guestDisk) pause(ctx context.Context) (uint64, error) {
	if _, err := g.guest.Ask(ctx, "pause", "paused"); err != nil {
		return 0, err
	}
	g.last = g.guest.Stamped()
	return g.last, nil
}

func (g *guestDisk) written() uint64 {
	return max(g.last, g.guest.Stamped())
}

func (g *guestDisk) attack(ctx context.Context) error {
	_, err := g.guest.Ask(ctx, fmt.Sprintf("attack offset=0 length=%d seed=1", slots*stamp.Size), "attacked")
	return err
}

// A guest without acceleration makes some 250 stamps a second.
func (g *guestDisk) rates() rates { return rates{60, 120, 0, "1MiB"} }

// skew is the least age of a stamp that the guest has just called durable, read from
// the disk's file, or was seen elsewhere: guests' clocks are off by parts of a second.
func (g *guestDisk) skew(seen time.Duration) time.Duration {
	g.least(seen)
	block := make([]byte, stamp.Size)
	f, err := os.Open(filepath.Join(g.dir, "guest.raw"))
	if err != nil {
		return g.offset
	}
	defer f.Close()
	if _, err := f.ReadAt(block, int64(g.guest.Stamped()%slots)*stamp.Size); err != nil {
		return g.offset
	}
	now := time.Now()
	if s, err := stamp.Decode(block); err == nil {
		g.least(now.Sub(s.Time))
	}
	return g.offset
}

func (g *guestDisk) least(age time.Duration) {
	if !g.known || age < g.offset {
		g.offset, g.known = age, true
	}
}

func (g *guestDisk) die() error {
	g.guest.Kill()
	return nil
}

// verify asks the machine that b started for its stamps.
func (g *guestDisk) verify(ctx context.Context, upto uint64) (guest.Verified, error) {
	if !g.booted {
		if _, err := g.second.Wait(ctx, "ready"); err != nil {
			return guest.Verified{}, fmt.Errorf("boot at the other site: %w", err)
		}
		g.booted = true
	}
	return g.second.Verify(ctx, upto, slots)
}

func (g *guestDisk) close() error {
	err := errors.Join(g.guest.Close(), g.second.Close())
	if g.qmp == "" {
		return err
	}
	// The machine outlives the daemon that started it, but not the demo.
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	c, qerr := qmp.Dial(ctx, g.qmp, qmp.Options{})
	if qerr == nil {
		qerr = errors.Join(c.Execute(ctx, "quit", nil, nil), c.Close())
	}
	if qerr != nil {
		err = errors.Join(err, fmt.Errorf("end the machine at b: %w", qerr))
	}
	return err
}
