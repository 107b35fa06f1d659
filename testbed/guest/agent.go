package guest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// agentProgram is where the initramfs holds Debian's qemu-guest-agent; process 1 runs
// it on the second serial port where it is there.
const agentProgram = "usr/sbin/qemu-ga"

// tools are programs of this machine that the agent runs inside.
var tools = []string{"ip", "tee"}

// WithAgent is a whose initramfs also holds a real qemu-guest-agent with the programs
// in tools, the libraries of this machine that they need, and the modules of a network
// card and of virtio's ports. The agent talks on the port that is called
// org.qemu.guest_agent.0, where there is one, else on a second serial port: see
// AgentArgs.
func WithAgent(ctx context.Context, a Image) (Image, error) {
	cache, err := CacheDir()
	if err != nil {
		return Image{}, err
	}
	unlock, err := lock(cache)
	if err != nil {
		return Image{}, err
	}
	defer unlock()
	program, err := fetchAgent(ctx, cache)
	if err != nil {
		return Image{}, err
	}
	wanted := map[string]string{agentProgram: program}
	for _, name := range tools {
		path, err := exec.LookPath(name)
		if err != nil {
			return Image{}, fmt.Errorf("%w: %w", ErrNoAgent, err)
		}
		wanted["usr/bin/"+name] = path
	}
	files, err := closure(ctx, wanted)
	if err != nil {
		return Image{}, err
	}
	for i, name := range further {
		data, err := os.ReadFile(filepath.Join(filepath.Dir(a.Kernel), name+".ko"))
		if err != nil {
			return Image{}, err
		}
		files = append(files, entry{name: fmt.Sprintf("modules/%02d-%s.ko", len(modules)+i, name), mode: modeFile | 0o644, data: data})
	}
	base, err := os.ReadFile(a.Initrd)
	if err != nil {
		return Image{}, err
	}
	// The agent's way to end the guest; process 1 is that program too.
	files = append(files, entry{name: "sbin", mode: modeDir | 0o755}, entry{name: "sbin/shutdown", mode: modeLink | 0o777, data: []byte("/init")})
	// The kernel unpacks one archive after the other.
	image := append(base, newc(files)...)
	sum := sha256.Sum256(image)
	a.Initrd = filepath.Join(cache, fmt.Sprintf("agentfs-%x.cpio", sum[:8]))
	if _, err := os.Stat(a.Initrd); err == nil {
		return a, nil
	}
	dropOld(cache, "agentfs-*.cpio")
	if err := os.WriteFile(a.Initrd+".part", image, 0o644); err != nil {
		return Image{}, err
	}
	return a, os.Rename(a.Initrd+".part", a.Initrd)
}

// AgentArgs are QEMU's further arguments for an agent whose channel ends in socket.
func AgentArgs(socket string) []string {
	return []string{"-chardev", "socket,id=agent,path=" + escape(socket) + ",server=on,wait=off", "-serial", "chardev:agent"}
}

// fetchAgent is the program's path in the cache. The caller holds the lock.
func fetchAgent(ctx context.Context, cache string) (string, error) {
	path := filepath.Join(cache, "qemu-ga")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	scratch, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(scratch)
	if _, err := output(ctx, scratch, "apt-get", "download", "-q", "qemu-guest-agent"); err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoAgent, err)
	}
	debs, err := filepath.Glob(filepath.Join(scratch, "*.deb"))
	if err != nil || len(debs) != 1 {
		return "", fmt.Errorf("%w: apt-get download left %d packages", ErrNoAgent, len(debs))
	}
	if _, err := output(ctx, scratch, "dpkg", "-x", debs[0], scratch); err != nil {
		return "", err
	}
	return path, os.Rename(filepath.Join(scratch, agentProgram), path)
}

// closure is programs, by where they lie in the guest, with the directories and
// libraries that they need.
func closure(ctx context.Context, programs map[string]string) ([]entry, error) {
	files := maps.Clone(programs)
	for _, program := range programs {
		out, err := output(ctx, "", "ldd", program)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNoAgent, err)
		}
		for line := range strings.Lines(out) {
			name, at, found := strings.Cut(strings.TrimSpace(line), " => ")
			if !found {
				at = name // the loader stands by itself
			}
			at, _, _ = strings.Cut(at, " (")
			switch {
			case strings.HasPrefix(at, "/"):
				files[strings.TrimPrefix(at, "/")] = at
			case strings.Contains(at, "not found"):
				return nil, fmt.Errorf("%w: this machine has no %s", ErrNoAgent, name)
			}
		}
	}
	made := map[string]bool{}
	var entries []entry
	var directory func(string)
	directory = func(d string) {
		if d == "." || made[d] {
			return
		}
		directory(filepath.Dir(d))
		made[d] = true
		entries = append(entries, entry{name: d, mode: modeDir | 0o755})
	}
	directory("var/run")
	directory("etc")
	for _, to := range slices.Sorted(maps.Keys(files)) { // always the same archive
		data, err := os.ReadFile(files[to])
		if err != nil {
			return nil, err
		}
		directory(filepath.Dir(to))
		entries = append(entries, entry{name: to, mode: modeFile | 0o755, data: data})
	}
	return entries, nil
}
