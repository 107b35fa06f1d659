package recovery

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
)

// restoreQCOW2 has qemu-img write v to path from an NBD export of the view, and
// compare the two.
func restoreQCOW2(ctx context.Context, view Image, v cbt.Volume, path string, o RestoreOptions, r *Restored) error {
	img, err := exec.LookPath("qemu-img")
	if err != nil {
		return fmt.Errorf("%w: qemu-img: %w", ErrNoTool, err)
	}
	return withExport(ctx, ViewDevice(view, v.ID), v.Size, func(ctx context.Context, uri string) error {
		if err := run(ctx, img, "convert", "-f", "raw", "-O", "qcow2", uri, path); err != nil {
			return err
		}
		o.Progress("write", v.Size, v.Size)
		err := run(ctx, img, "compare", "-f", "raw", "-F", "qcow2", uri, path)
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 1 { // qemu-img(1): images differ
			return fmt.Errorf("%w: %w", ErrDiffers, err)
		}
		if err != nil {
			return err
		}
		o.Progress("verify", v.Size, v.Size)
		r.SHA256, err = sumOf(ctx, view, v)
		return err
	})
}

func sumOf(ctx context.Context, view Image, v cbt.Volume) (string, error) {
	sum := sha256.New()
	buf := make([]byte, copyBytes)
	err := eachPiece(ctx, view, v, func(e cbt.Extent, data bool) error {
		p := buf[:e.Length]
		if !data {
			clear(p)
		} else if err := view.ReadAt(ctx, v.ID, p, e.Offset); err != nil {
			return err
		}
		sum.Write(p)
		return nil
	})
	return hex.EncodeToString(sum.Sum(nil)), err
}

// withExport serves d, read-only, on a socket that only this user reaches while f
// runs.
func withExport(ctx context.Context, d nbd.Device, size int64, f func(ctx context.Context, uri string) error) (err error) {
	dir, err := os.MkdirTemp("", "ai")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	socket := filepath.Join(dir, "s")
	l, err := nbd.ListenUnix(socket, 0)
	if err != nil {
		return err
	}
	serving, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	server := nbd.NewServer(nbd.ServerOptions{Lookup: func(context.Context, string) (*nbd.Export, error) {
		return &nbd.Export{Size: size, ReadOnly: true, MultiConn: true, Device: d}, nil
	}})
	go func() { ended <- server.Serve(serving, l) }()
	err = f(ctx, "nbd+unix:///?socket="+url.QueryEscape(socket))
	stop()
	return errors.Join(err, <-ended)
}

// run runs a program to its end, or kills it when ctx ends; its complaints are in
// the error.
func run(ctx context.Context, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("%s %s: %w: %s", filepath.Base(program), args[0], err, bytes.TrimSpace(said.Bytes()))
	}
	return nil
}
