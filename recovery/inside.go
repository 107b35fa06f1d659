package recovery

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/novacron/afterimage/cbt/qemu"
	"github.com/novacron/afterimage/cbt/qmp"
)

// Agent is the machine's guest agent; its channel is a device of the definition:
//
//	-chardev socket,path={agent},server=on,wait=off,id=qga
//	-device virtio-serial -device virtserialport,chardev=qga,name=org.qemu.guest_agent.0
func (m Machine) Agent() qemu.Agent { return qemu.Agent{Socket: m.agent()} }

// agentDo has the guest's agent do a command.
func (m Machine) agentDo(ctx context.Context, command string, arguments map[string]any, result any) error {
	if err := m.alone(); err != nil {
		return err
	}
	if m.Host == nil {
		return m.Agent().Execute(ctx, command, arguments, result)
	}
	uuid, err := m.hosted()
	if err != nil {
		return err
	}
	return m.Host.Agent(ctx, uuid, command, arguments, result)
}

// AgentAnswers asks the guest agent whether it is there.
func (m Machine) AgentAnswers(ctx context.Context) error {
	for _, c := range m.Besides {
		if err := c.AgentAnswers(ctx); err != nil {
			return fmt.Errorf("machine %s: %w", c.Name, err)
		}
	}
	m.Besides = nil
	var nothing any
	return m.agentDo(ctx, "guest-ping", nil, &nothing)
}

// Address is what an interface of a guest gets.
type Address struct {
	Interface string
	Prefix    string // CIDR
	Gateway   string // may be empty
	DNS       []string
}

// HasAddress asks the guest whether its interface has the address.
func (m Machine) HasAddress(ctx context.Context, a Address) (bool, error) {
	want, err := netip.ParsePrefix(a.Prefix)
	if err != nil {
		return false, err
	}
	var cards []struct {
		Name      string `json:"name"`
		Addresses []struct {
			Address string `json:"ip-address"`
			Prefix  int    `json:"prefix"`
		} `json:"ip-addresses"`
	}
	if err := m.agentDo(ctx, "guest-network-get-interfaces", nil, &cards); err != nil {
		return false, err
	}
	for _, c := range cards {
		for _, has := range c.Addresses {
			ip, err := netip.ParseAddr(has.Address)
			if c.Name == a.Interface && err == nil && ip == want.Addr() && has.Prefix == want.Bits() {
				return true, nil
			}
		}
	}
	return false, nil
}

// SetAddress gives the guest's interface its address, and only that, through programs
// that the agent runs inside (guest-exec, iproute2). It may be repeated.
func (m Machine) SetAddress(ctx context.Context, a Address) (string, error) {
	commands := [][]string{
		{"ip", "address", "flush", "dev", a.Interface, "scope", "global"},
		{"ip", "address", "replace", a.Prefix, "dev", a.Interface},
		{"ip", "link", "set", a.Interface, "up"},
	}
	if a.Gateway != "" {
		commands = append(commands, []string{"ip", "route", "replace", "default", "via", a.Gateway, "dev", a.Interface})
	}
	var out strings.Builder
	for _, argv := range commands {
		text, err := m.execute(ctx, argv, "")
		out.WriteString(text)
		if err != nil {
			return out.String(), err
		}
	}
	if len(a.DNS) == 0 {
		return out.String(), nil
	}
	text, err := m.execute(ctx, []string{"tee", "/etc/resolv.conf"}, "nameserver "+strings.Join(a.DNS, "\nnameserver ")+"\n")
	return out.String() + text, err
}

// execute runs a program inside the guest and waits for it.
func (m Machine) execute(ctx context.Context, argv []string, input string) (string, error) {
	args := map[string]any{"path": argv[0], "arg": argv[1:], "capture-output": true}
	if input != "" {
		args["input-data"] = base64.StdEncoding.EncodeToString([]byte(input))
	}
	var begun struct {
		PID int `json:"pid"`
	}
	if err := m.agentDo(ctx, "guest-exec", args, &begun); err != nil {
		return "", err
	}
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		var is struct {
			Exited bool   `json:"exited"`
			Code   int    `json:"exitcode"`
			Out    []byte `json:"out-data"`
			Err    []byte `json:"err-data"`
		}
		if err := m.agentDo(ctx, "guest-exec-status", map[string]any{"pid": begun.PID}, &is); err != nil {
			return "", err
		}
		text := string(is.Out) + string(is.Err)
		switch {
		case is.Exited && is.Code != 0:
			return text, fmt.Errorf("%s in the guest: exit status %d", strings.Join(argv, " "), is.Code)
		case is.Exited:
			return text, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return text, context.Cause(ctx)
		}
	}
}

// SetLink plugs a network card's cable in or out, by the id of its -netdev or device.
func (m Machine) SetLink(ctx context.Context, id string, up bool) error {
	if err := m.alone(); err != nil {
		return err
	}
	if m.Host != nil {
		to := "down"
		if up {
			to = "up"
		}
		return m.Connect(ctx, id, to)
	}
	c, err := qmp.Dial(ctx, m.qmp(), qmp.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Execute(ctx, "set_link", map[string]any{"name": id, "up": up}, nil)
}

// Connect plugs a card of a machine that a Host runs into a network.
func (m Machine) Connect(ctx context.Context, id, to string) error {
	if err := m.alone(); err != nil {
		return err
	}
	if m.Host == nil {
		return fmt.Errorf("%w: a plain QEMU's cards are plugged up or down, not moved to %q", ErrMachine, to)
	}
	uuid, err := m.hosted()
	if err != nil {
		return err
	}
	return m.Host.Connect(ctx, uuid, id, to)
}

// Shutdown asks the guest to power off, again and again until it is gone: a guest
// that boots does not hear the first time.
func (m Machine) Shutdown(ctx context.Context) error {
	if len(m.Besides) > 0 {
		return m.backward(func(one Machine) error { return one.Shutdown(ctx) })
	}
	pidfd, err := m.handle()
	if errors.Is(err, ErrNotRunning) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("shut down machine %s: %w", m.Name, err)
	}
	r := Running{pidfd: pidfd}
	defer r.Close()
	for {
		asked := m.powerdown(ctx)
		again, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := r.Wait(again)
		cancel()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("shut down machine %s: %w", m.Name, errors.Join(err, asked))
		}
	}
}

// handle is of the machine's process.
func (m Machine) handle() (pidfd int, err error) {
	if m.Host == nil {
		_, pidfd, err = owner(m.withDefaults().pidFile())
		return pidfd, err
	}
	_, pidfd, err = m.hostedProcess()
	return pidfd, err
}

func (m Machine) powerdown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if m.Host != nil {
		uuid, err := m.hosted()
		if err != nil {
			return err
		}
		return m.Host.Powerdown(ctx, uuid)
	}
	c, err := qmp.Dial(ctx, m.qmp(), qmp.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Execute(ctx, "system_powerdown", nil, nil)
}
