package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// startDir is what a start of the system on volume 0 reads.
const startDir = mounted + "/usr/lib/start"

// system starts the system that volume 0 holds: it is mounted, what a start reads is
// read, one file after the other, and the guest agent that lies there is run inside.
func (m *machine) system() error {
	if err := os.MkdirAll(mounted, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.volumes[0].file.Name(), mounted, "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", m.volumes[0].file.Name(), err)
	}
	for _, kind := range []struct{ name, at string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := unix.Mount(kind.name, mounted+kind.at, kind.name, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", kind.at, err)
		}
	}
	read := int64(0)
	err := filepath.WalkDir(startDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		n, err := io.Copy(io.Discard, f)
		read += n
		return err
	})
	if err != nil {
		return err
	}
	cmd := exec.Command(agent, "-m", "isa-serial", "-p", "/dev/ttyS1", "-t", "/var/run", "-f", "/var/run/qga.pid", "-l", "/var/run/qga.log")
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: mounted}
	cmd.Dir = "/"
	if err := cmd.Start(); err != nil {
		return err
	}
	m.console.say("started bytes=%d", read)
	return nil
}
