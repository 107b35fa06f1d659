package libvirt

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	rpc "github.com/digitalocean/go-libvirt"
)

// UUIDOf is the UUID in a definition, "" if it has none.
func UUIDOf(definition string) (string, error) {
	root, err := parse([]byte(definition))
	if err != nil {
		return "", fmt.Errorf("read definition: %w", err)
	}
	u := root.child("uuid")
	if u == nil {
		return "", nil
	}
	return strings.ToLower(unescape([]byte(definition)[u.inner:u.outer])), nil
}

// HasScreen reports whether a machine shows pictures.
func HasScreen(definition string) bool {
	root, err := parse([]byte(definition))
	return err == nil && root.child("devices") != nil && root.child("devices").child("video") != nil
}

// Powerdown asks the guest to switch itself off.
func (m *Machine) Powerdown(ctx context.Context) error {
	return m.host.conn.Call(ctx, "shut down domain "+m.Name, func(l *rpc.Libvirt) error { return l.DomainShutdown(m.RPC()) })
}

// agentPatience is how long libvirtd waits for an agent where ctx says no less.
const agentPatience = time.Minute

// Agent gives the guest's agent a command, in its JSON, and returns the answer's.
func (m *Machine) Agent(ctx context.Context, what, command string) (string, error) {
	patience := agentPatience
	if at, ok := ctx.Deadline(); ok {
		patience = min(patience, time.Until(at))
	}
	var out rpc.OptString
	err := m.host.conn.Call(ctx, what, func(l *rpc.Libvirt) (err error) {
		out, err = l.QEMUDomainAgentCommand(m.RPC(), command, int32(max(1, patience/time.Second)), 0)
		return err
	})
	if err != nil {
		return "", err
	}
	return strings.Join(out, ""), nil
}

// Screenshot is what the first screen shows: a PNG, or a picture of netpbm's.
func (m *Machine) Screenshot(ctx context.Context) ([]byte, error) {
	var picture bytes.Buffer
	err := m.host.conn.Call(ctx, "screenshot of "+m.Name, func(l *rpc.Libvirt) error {
		_, err := l.DomainScreenshot(m.RPC(), &picture, 0, 0)
		return err
	})
	// The RPC client reads the call's answer out of the stream's last packet, which is
	// empty, and calls that an error; whoever reads the picture sees whether it is whole.
	if err != nil && (picture.Len() == 0 || ctx.Err() != nil) {
		return nil, err
	}
	return picture.Bytes(), nil
}

// SetLink plugs a network card's cable: state is up or down.
func (m *Machine) SetLink(ctx context.Context, card, state string) error {
	return m.update(ctx, card, func(n *element) []splice {
		link := "<link state='" + state + "'/>"
		if l := n.child("link"); l != nil {
			return []splice{l.replace(link)}
		}
		return []splice{{n.outer, n.outer, link}}
	})
}

// Plug plugs a card into another network.
func (m *Machine) Plug(ctx context.Context, card string, to Network) error {
	return m.update(ctx, card, func(n *element) []splice { return plug(n, to.kind(), to.source(), append(seen(), "link")) })
}

// update changes a card of the machine that runs, and of its definition.
func (m *Machine) update(ctx context.Context, card string, change func(*element) []splice) error {
	text, err := m.Live(ctx)
	if err != nil {
		return err
	}
	n, err := cardOf([]byte(text), card)
	if err != nil {
		return err
	}
	ss := change(n)
	for i := range ss {
		ss[i].from, ss[i].to = ss[i].from-n.from, ss[i].to-n.from
	}
	next := apply([]byte(text)[n.from:n.to], ss)
	return m.host.conn.Call(ctx, "connect card "+card+" of "+m.Name, func(l *rpc.Libvirt) error {
		return l.DomainUpdateDeviceFlags(m.RPC(), next, rpc.DomainDeviceModifyLive|rpc.DomainDeviceModifyConfig)
	})
}

// cardOf finds a network card by its place (net0 is the first one), its alias or its
// MAC address.
func cardOf(text []byte, card string) (*element, error) {
	root, err := parse(text)
	if err != nil {
		return nil, err
	}
	devices := root.child("devices")
	if devices == nil {
		devices = &element{}
	}
	place := 0
	for _, d := range devices.children {
		if d.name != "interface" {
			continue
		}
		mac, alias := d.child("mac"), d.child("alias")
		switch {
		case card == "net"+strconv.Itoa(place), mac != nil && mac.attr("address") == card, alias != nil && alias.attr("name") == card:
			return d, nil
		}
		place++
	}
	return nil, fmt.Errorf("%w: it has no network card %s", ErrDefinition, card)
}

// Reaches reports whether a definition has a disk that is served at a socket.
func Reaches(definition, socket string) bool {
	root, err := parse([]byte(definition))
	if err != nil || root.child("devices") == nil {
		return false
	}
	for _, d := range root.child("devices").children {
		if source := d.child("source"); d.name == "disk" && source != nil {
			for _, host := range source.children {
				if host.name == "host" && host.attr("socket") == socket {
					return true
				}
			}
		}
	}
	return false
}

// Connects is nil if the networks that a definition's cards belong to are there and active.
func (h *Host) Connects(ctx context.Context, definition string) error {
	root, err := parse([]byte(definition))
	if err != nil || root.child("devices") == nil {
		return err
	}
	for _, d := range root.child("devices").children {
		source := d.child("source")
		if d.name != "interface" || d.attr("type") != "network" || source == nil {
			continue
		}
		name, active := source.attr("network"), int32(0)
		err := h.conn.Call(ctx, "look up network "+name, func(l *rpc.Libvirt) error {
			n, err := l.NetworkLookupByName(name)
			if err == nil {
				active, err = l.NetworkIsActive(n)
			}
			return err
		})
		if err == nil && active == 0 {
			err = fmt.Errorf("%w: network %s is not active", ErrDefinition, name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
