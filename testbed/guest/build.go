package guest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// kernelPackage is Debian's smallest kernel with virtio.
const kernelPackage = "linux-image-cloud-amd64"

// initPackage is built as the guest's process 1; the working directory must lie in
// the module.
const initPackage = "github.com/novacron/afterimage/testbed/guest/init"

// modules are inserted in this order; ext4 and the serial port are built in.
var modules = []string{
	"virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_blk",
}

// further are inserted after them in a guest with an agent: its channel and its network
// card.
var further = []string{"virtio_console", "failover", "net_failover", "virtio_net"}

// oldImages is the age at which an initramfs that no longer is the newest goes.
const oldImages = 24 * time.Hour

// Image is a guest's kernel and initramfs.
type Image struct {
	Kernel string // path
	Initrd string // path
}

// CacheDir is where kernels and initramfs lie: outside the tree, kept between runs.
func CacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "afterimage-testbed"), nil
}

// Build makes what is not in the cache yet: seconds the first time, well below one
// after that. It may be called by any number of processes at once.
func Build(ctx context.Context) (Image, error) {
	cache, err := CacheDir()
	if err != nil {
		return Image{}, err
	}
	return buildIn(ctx, cache)
}

func buildIn(ctx context.Context, cache string) (Image, error) {
	unlock, err := lock(cache)
	if err != nil {
		return Image{}, err
	}
	defer unlock()
	kernel, err := fetchKernel(ctx, cache)
	if err != nil {
		return Image{}, err
	}
	program := filepath.Join(cache, "init")
	if err := buildStatic(ctx, program, initPackage); err != nil {
		return Image{}, err
	}
	initrd, err := packInitrd(cache, kernel, program)
	if err != nil {
		return Image{}, err
	}
	return Image{Kernel: filepath.Join(kernel, "vmlinuz"), Initrd: initrd}, nil
}

// lock excludes other builders from dir until unlock is called.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o666)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

func buildStatic(ctx context.Context, to, program string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", to, program)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s (inside the source tree?): %w: %s", program, err, bytes.TrimSpace(out))
	}
	return nil
}

// packInitrd writes the initramfs under the name of its contents' hash.
func packInitrd(cache, kernel, program string) (string, error) {
	init, err := os.ReadFile(program)
	if err != nil {
		return "", err
	}
	entries := []entry{
		{name: "dev", mode: modeDir | 0o755},
		{name: "dev/console", mode: modeChar | 0o600, major: 5, minor: 1},
		{name: "dev/null", mode: modeChar | 0o666, major: 1, minor: 3},
		{name: "init", mode: modeFile | 0o755, data: init},
		{name: "modules", mode: modeDir | 0o755},
	}
	for i, name := range modules {
		data, err := os.ReadFile(filepath.Join(kernel, name+".ko"))
		if err != nil {
			return "", err
		}
		entries = append(entries, entry{name: fmt.Sprintf("modules/%02d-%s.ko", i, name), mode: modeFile | 0o644, data: data})
	}
	image := newc(entries)
	sum := sha256.Sum256(image)
	path := filepath.Join(cache, fmt.Sprintf("initramfs-%x.cpio", sum[:8]))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	dropOld(cache, "initramfs-*.cpio")
	if err := os.WriteFile(path+".part", image, 0o644); err != nil {
		return "", err
	}
	return path, os.Rename(path+".part", path)
}

func dropOld(cache, pattern string) {
	old, _ := filepath.Glob(filepath.Join(cache, pattern))
	for _, path := range old {
		if info, err := os.Stat(path); err == nil && time.Since(info.ModTime()) > oldImages {
			os.Remove(path)
		}
	}
}

// output runs a command in dir and returns what it prints; its complaints are in
// the error.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(complaints.Bytes()))
	}
	return string(out), nil
}
