package guest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// Accel is how QEMU runs a guest's instructions.
type Accel string

// Kinds of Accel: the processor, or translation.
const (
	KVM Accel = "kvm"
	TCG Accel = "tcg"
)

// kvmDeadline is how long a guest has to boot and switch off under KVM.
const kvmDeadline = 10 * time.Second

// Accelerator is KVM where a guest boots with it, else TCG. The first call on a
// machine since its boot tries; the answer is kept in the cache. AFTERIMAGE_ACCEL
// set to kvm or tcg decides without a try.
func Accelerator(ctx context.Context, image Image) (Accel, error) {
	switch a := Accel(os.Getenv("AFTERIMAGE_ACCEL")); a {
	case KVM, TCG:
		return a, nil
	}
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err != nil {
		return TCG, nil
	} else {
		f.Close()
	}
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	note, err := accelNote(ctx, cache)
	if err != nil {
		return "", err
	}
	unlock, err := lock(filepath.Join(cache, "accel"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if kept, err := os.ReadFile(note); err == nil {
		return Accel(kept), nil
	}
	accel := KVM
	if err := bootsUnder(ctx, image, KVM); err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		accel = TCG
	}
	return accel, os.WriteFile(note, []byte(accel), 0o644)
}

// accelNote names the file that keeps the answer: another boot of the machine or
// another QEMU asks again.
func accelNote(ctx context.Context, cache string) (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	version, err := output(ctx, "", qemuProgram, "--version")
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(append(boot, version...))
	return filepath.Join(cache, "accel", fmt.Sprintf("%x", sum[:8])), nil
}

// bootsUnder reports whether a guest without disks comes up and switches itself off.
func bootsUnder(ctx context.Context, image Image, accel Accel) error {
	ctx, cancel := context.WithTimeout(ctx, kvmDeadline)
	defer cancel()
	dir, err := os.MkdirTemp("", "ai")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	g, err := Start(ctx, Config{Image: image, Accel: accel, Dir: dir, Orders: "poweroff"})
	if err != nil {
		return err
	}
	defer g.Close()
	if _, err := g.Wait(ctx, "bye"); err != nil {
		return err
	}
	var exit *exec.ExitError
	if err := g.WaitExit(ctx); err != nil && !errors.As(err, &exit) {
		return err
	}
	return nil
}
