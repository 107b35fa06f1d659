package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// The kinds of workload, which the program of that name on volume 0 does.
const (
	workEncrypt = iota + 1
	workDatabase
)

// workload mounts volume 0, has its program work there, and tells when what that wrote
// is on the disk.
func (m *machine) workload(p params) error {
	if err := os.MkdirAll(mounted, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.volumes[0].file.Name(), mounted, "ext4", 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount %s: %w", m.volumes[0].file.Name(), err)
	}
	args := []string{"encrypt", mounted + "/home"}
	if p.get("kind", workEncrypt) == workDatabase {
		args = []string{"database", mounted + "/db", fmt.Sprint(p.get("mib", 64))}
	}
	out, err := exec.Command(mounted+"/workload", args...).Output() // its database says much else
	if err != nil {
		return fmt.Errorf("workload %q: %w: %s", args, err, bytes.TrimSpace(out))
	}
	unix.Sync()
	m.console.say("worked %s", bytes.TrimSpace(out))
	return nil
}
