package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// agent is there only in the initramfs of a guest with one; it talks on the port of
// its name, or on the second serial port.
const agent = "/usr/sbin/qemu-ga"

// agentPort is virtio's port of the agent.
const agentPort = "org.qemu.guest_agent.0"

// portPatience is how long a host may take to tell of a device's ports.
const portPatience = 20 * time.Second

// startAgent runs it for as long as the guest does.
func startAgent() error {
	if _, err := os.Stat(agent); err != nil {
		return nil
	}
	method, path := "isa-serial", "/dev/ttyS1"
	if port := findPort(); port != "" {
		method, path = "virtio-serial", port
	}
	cmd := exec.Command(agent, "-m", method, "-p", path, "-t", "/var/run", "-f", "/var/run/qga.pid", "-l", "/var/run/qga.log")
	cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/usr/bin")
	return cmd.Start()
}

// findPort waits for the agent's port where the machine has a device with ports.
func findPort() string {
	devices, _ := filepath.Glob("/sys/bus/virtio/drivers/virtio_console/virtio*")
	if len(devices) == 0 {
		return ""
	}
	for late := time.Now().Add(portPatience); time.Now().Before(late); time.Sleep(20 * time.Millisecond) {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, n := range names {
			if b, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(b)) == agentPort {
				return "/dev/" + filepath.Base(filepath.Dir(n))
			}
		}
	}
	return ""
}
