package site

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// restoreQCOW2 lets qemu-img convert an export of the view to path, and compare
// the two afterwards.
func restoreQCOW2(ctx context.Context, view *journal.View, v cbt.Volume, path string, out *control.RestoredFile, progress func(control.Progress)) error {
	tool, err := exec.LookPath("qemu-img")
	if err != nil {
		return fault.New(fault.ToolMissing, "write qcow2", "qemu-img is not in PATH")
	}
	dir, err := os.MkdirTemp("", "ai")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l, err := nbd.ListenUnix(filepath.Join(dir, "s"), 0o600)
	if err != nil {
		return err
	}
	serving, stop := context.WithCancel(ctx)
	exports := []*nbd.Export{{Name: "v", Size: v.Size, ReadOnly: true, MultiConn: true, Device: viewDevice{view, v.ID}}}
	served := make(chan error, 1)
	go func() { served <- nbd.NewServer(nbd.ServerOptions{Lookup: lookupIn(exports)}).Serve(serving, l) }()
	defer func() { stop(); <-served }()
	uri := nbdURI("unix", l.Addr().String(), "v")
	sum, data, err := sumOfView(ctx, view, v)
	if err != nil {
		return err
	}
	out.SHA256, out.Data = sum, data
	if err := qemuImg(ctx, tool, step("write", v), v.Size, progress, "convert", "-p", "-f", "raw", "-O", "qcow2", uri, path); err != nil {
		return err
	}
	if err := qemuImg(ctx, tool, step("verify", v), v.Size, progress, "compare", "-p", "-f", "raw", "-F", "qcow2", uri, path); err != nil {
		var ended *exec.ExitError
		if errors.As(err, &ended) && ended.ExitCode() == 1 { // qemu-img(1): images differ
			return fault.Wrap(fault.RestoreDiffers, "verify "+path, err)
		}
		return err
	}
	out.Verified = true
	return nil
}

// qemuImg runs qemu-img and turns its "(12.34/100%)" into progress.
func qemuImg(ctx context.Context, tool, name string, size int64, progress func(control.Progress), args ...string) error {
	cmd := exec.CommandContext(ctx, tool, args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	r := bufio.NewReader(out)
	for {
		chunk, err := r.ReadString('\r')
		if text, _, ok := strings.Cut(chunk, "/100%"); ok {
			if p, perr := strconv.ParseFloat(strings.TrimLeft(text, " \r\n("), 64); perr == nil {
				progress(control.Progress{Step: name, Done: int64(p / 100 * float64(size)), Total: size})
			}
		}
		if err != nil {
			break // io.EOF; Wait tells the rest
		}
	}
	_, _ = io.Copy(io.Discard, r)
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("qemu-img %s: %w: %s", args[0], err, strings.TrimSpace(said.String()))
	}
	return nil
}

// sumOfView is the SHA-256 of a volume's content and how much of it is data.
func sumOfView(ctx context.Context, view image, v cbt.Volume) (string, int64, error) {
	sum := sha256.New()
	buf := make([]byte, copyBytes)
	data := int64(0)
	for at := int64(0); at < v.Size; {
		piece := cbt.Extent{Offset: at, Length: min(copyBytes, v.Size-at)}
		runs, err := view.Status(ctx, v.ID, piece)
		if err != nil {
			return "", 0, err
		}
		for _, r := range runs {
			p := buf[:r.Length]
			clear(p)
			if r.Data {
				if err := view.ReadAt(ctx, v.ID, p, r.Offset); err != nil {
					return "", 0, err
				}
				data += r.Length
			}
			sum.Write(p)
		}
		at += piece.Length
	}
	return hex.EncodeToString(sum.Sum(nil)), data, nil
}
