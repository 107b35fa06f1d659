package recovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
)

// Drive is where a disk of a machine lies that is not ours: a file or a block device
// of this host, with the format that its machine opens it in.
type Drive struct {
	Path   string `json:"path"`
	Format string `json:"format"`
}

// Check tells, beside a machine that runs, what would keep this process from writing to
// the drive once the machine is off.
func (d Drive) Check() error {
	if _, err := exec.LookPath("qemu-nbd"); err != nil {
		return fmt.Errorf("%w: qemu-nbd: %w", ErrNoTool, err)
	}
	if !filepath.IsAbs(d.Path) {
		return fmt.Errorf("%w: it is no plain file or block device of this host", ErrDrive)
	}
	if d.Format != "raw" && d.Format != "qcow2" {
		return fmt.Errorf("%w: %s has format %q; raw and qcow2 are written to", ErrDrive, d.Path, d.Format)
	}
	if _, err := d.driver(); err != nil {
		return err
	}
	if err := unix.Access(d.Path, unix.R_OK|unix.W_OK); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrDrive, d.Path, err)
	}
	return nil
}

func (d Drive) driver() (string, error) {
	fi, err := os.Stat(d.Path)
	switch {
	case err != nil:
		return "", fmt.Errorf("%w: %w", ErrDrive, err)
	case fi.Mode().IsRegular():
		return "file", nil
	case fi.Mode()&os.ModeDevice != 0 && fi.Mode()&os.ModeCharDevice == 0:
		return "host_device", nil
	}
	return "", fmt.Errorf("%w: %s is neither a file nor a block device", ErrDrive, d.Path)
}

// OpenDrive is a drive that no machine can be started from: qemu-nbd holds QEMU's own
// lock on it, which a guest's device does not share unless somebody said so, and it ends
// with the connection, so that the lock does not outlive us.
type OpenDrive struct {
	Drive
	client *nbd.Client
	lock   *os.File // of one that is only read; else nil
	kill   func() error
	dir    string
	said   *bytes.Buffer // read after exited
	exited chan error    // one value
}

// Bounds of qemu-nbd's beginning and end.
const (
	drivePatience = 30 * time.Second
	driveTick     = 10 * time.Millisecond
)

// Open opens the drive of a machine that is off. While a QEMU has it open that fails.
func (d Drive) Open(ctx context.Context) (*OpenDrive, error) { return d.open(ctx) }

func (d Drive) open(ctx context.Context, flags ...string) (*OpenDrive, error) {
	protocol, err := d.driver()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "ai")
	if err != nil {
		return nil, err
	}
	o := &OpenDrive{Drive: d, dir: dir, said: new(bytes.Buffer), exited: make(chan error, 1)}
	options := fmt.Sprintf("driver=%s,file.driver=%s,file.filename=%s", d.Format, protocol, strings.ReplaceAll(d.Path, ",", ",,"))
	cmd := exec.Command("qemu-nbd", append(flags, "--socket", o.socket(), "--export-name", "d", "--cache", "writeback", "--discard", "unmap", "--image-opts", options)...)
	cmd.Stdout, cmd.Stderr = o.said, o.said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the death signal is that of the thread which started it
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			o.exited <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrNoTool, err), os.RemoveAll(dir))
	}
	o.kill = cmd.Process.Kill
	if err := o.connect(ctx); err != nil {
		_ = o.kill()
		<-o.exited
		return nil, errors.Join(fmt.Errorf("%w: open %s: %w", ErrDrive, d.Path, err), os.RemoveAll(dir))
	}
	return o, nil
}

func (o *OpenDrive) socket() string { return filepath.Join(o.dir, "s") }

func (o *OpenDrive) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, drivePatience)
	defer cancel()
	tick := time.NewTicker(driveTick)
	defer tick.Stop()
	for {
		c, err := nbd.Dial(ctx, "unix", o.socket(), nbd.DialOptions{Export: "d", MetaContexts: []string{nbd.ContextAllocation}})
		if err == nil {
			o.client = c
			return nil
		}
		select {
		case end := <-o.exited:
			o.exited <- end
			return fmt.Errorf("qemu-nbd: %w: %s", errors.Join(end, errDriveShut), bytes.TrimSpace(o.said.Bytes()))
		case <-tick.C:
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		}
	}
}

var errDriveShut = errors.New("it ended")

// Size is the disk's, in bytes.
func (o *OpenDrive) Size() int64 { return o.client.Info().Size }

// Close ends the writing, and qemu-nbd, which closes the image; an error means that what was written is not to be relied on.
func (o *OpenDrive) Close() error {
	err := o.client.Close()
	late := time.NewTimer(drivePatience)
	defer late.Stop()
	select {
	case end := <-o.exited:
		if end != nil {
			err = errors.Join(err, fmt.Errorf("%w: close %s: qemu-nbd: %w: %s", ErrDrive, o.Path, end, bytes.TrimSpace(o.said.Bytes())))
		}
		o.exited <- end // for who closes again
	case <-late.C:
		err = errors.Join(err, fmt.Errorf("%w: close %s: qemu-nbd does not end", ErrDrive, o.Path), o.kill())
	}
	if o.lock != nil {
		err = errors.Join(err, o.lock.Close())
	}
	return errors.Join(err, os.RemoveAll(o.dir))
}

// Level makes the drive equal to head, whose length is size: all of it is read and
// compared, for what a machine wrote last may be on the disk and nowhere else. Only
// what differs is written; that is made durable, and read back past the page cache. It
// may be repeated from any moment of itself.
func (o *OpenDrive) Level(ctx context.Context, size int64, head func(ctx context.Context, p []byte, off int64) error, progress func(step string, done, total int64)) (wrote int64, err error) {
	if o.Size() != size {
		return 0, fmt.Errorf("%w: %s has %d bytes, the volume %d", ErrDrive, o.Path, o.Size(), size)
	}
	l := levelling{o: o, head: head, progress: progress, have: make([]byte, copyBytes), want: make([]byte, copyBytes)}
	changed, wrote, err := l.write(ctx, size)
	if err == nil {
		err = o.client.Flush(ctx)
	}
	if err == nil {
		o.forget()
		err = l.readBack(ctx, changed)
	}
	if err != nil {
		return wrote, fmt.Errorf("level %s: %w", o.Path, err)
	}
	return wrote, nil
}

// forget drops what the page cache has of the file, so that the disk answers; advice only.
func (o *OpenDrive) forget() {
	if f, err := os.Open(o.Path); err == nil {
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
		f.Close()
	}
}

type levelling struct {
	o          *OpenDrive
	head       func(ctx context.Context, p []byte, off int64) error
	progress   func(step string, done, total int64)
	have, want []byte
}

// write goes over the drive; changed are the pieces in which something was written.
func (l *levelling) write(ctx context.Context, size int64) (changed []cbt.Extent, wrote int64, err error) {
	for off := int64(0); off < size; off += copyBytes {
		e := cbt.Extent{Offset: off, Length: min(copyBytes, size-off)}
		n, err := l.piece(ctx, e)
		if err != nil {
			return nil, wrote, fmt.Errorf("at %d: %w", off, err)
		}
		if n > 0 {
			changed, wrote = append(changed, e), wrote+n
		}
		l.progress("write", e.End(), size)
	}
	return cbt.Union(changed), wrote, nil
}

// piece writes what differs in e.
func (l *levelling) piece(ctx context.Context, e cbt.Extent) (wrote int64, err error) {
	have, want := l.have[:e.Length], l.want[:e.Length]
	if err := l.head(ctx, want, e.Offset); err != nil {
		return 0, err
	}
	if zeros(want) {
		if empty, err := l.readsZero(ctx, e); err != nil || empty {
			return 0, err
		}
	}
	if err := l.o.client.ReadAt(ctx, have, e.Offset); err != nil {
		return 0, err
	}
	for _, d := range differing(have, want) {
		at := cbt.Extent{Offset: e.Offset + d.Offset, Length: d.Length}
		if p := want[d.Offset:d.End()]; zeros(p) {
			err = l.o.client.Zero(ctx, at, false, false)
		} else {
			err = l.o.client.WriteAt(ctx, p, at.Offset, false)
		}
		if err != nil {
			return wrote, err
		}
		wrote += at.Length
	}
	return wrote, nil
}

// readsZero reports whether the drive knows, without being read, that e is zeros.
func (l *levelling) readsZero(ctx context.Context, e cbt.Extent) (bool, error) {
	if !l.o.client.HasMetaContext(nbd.ContextAllocation) {
		return false, nil
	}
	told, err := l.o.client.Status(ctx, e)
	for _, s := range told {
		if !s.Zero {
			return false, err
		}
	}
	return err == nil && len(told) > 0, err
}

func (l *levelling) readBack(ctx context.Context, changed []cbt.Extent) error {
	var done, total int64
	for _, c := range changed {
		total += c.Length
	}
	for _, c := range changed {
		for off := c.Offset; off < c.End(); off += copyBytes {
			n := min(copyBytes, c.End()-off)
			have, want := l.have[:n], l.want[:n]
			err := l.o.client.ReadAt(ctx, have, off)
			if err == nil {
				err = l.head(ctx, want, off)
			}
			if err == nil && !bytes.Equal(have, want) {
				err = ErrWriteLost
			}
			if err != nil {
				return fmt.Errorf("read back at %d: %w", off, err)
			}
			done += n
			l.progress("read back", done, total)
		}
	}
	return nil
}

// differing are the cells in which the two differ.
func differing(have, want []byte) []cbt.Extent {
	var out []cbt.Extent
	for at := 0; at < len(have); at += cbt.CellBytes {
		end := min(at+cbt.CellBytes, len(have))
		if !bytes.Equal(have[at:end], want[at:end]) {
			out = append(out, cbt.Extent{Offset: int64(at), Length: int64(end - at)})
		}
	}
	return cbt.Union(out)
}
