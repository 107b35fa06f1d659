package fence

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/novacron/afterimage/recovery/libvirt"
	"github.com/novacron/afterimage/testbed/libvirtd"
)

// A real libvirtd of the old host: its machine is destroyed, seen off by libvirt and by
// another channel; a domain that is not there, and a libvirtd that is gone, prove nothing.
func TestDomain(t *testing.T) {
	d := libvirtd.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	h, err := libvirt.Connect(ctx, d.URI)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	m, err := h.Start(ctx, d.Domain("web", d.Image(t, "root.qcow2", 1<<20)))
	if err != nil {
		t.Fatal(err)
	}
	c := Domain{URI: d.URI, Domain: "web", Timeout: time.Minute}
	if s, said, err := c.Read(ctx); s != SeenOn || err != nil {
		t.Fatalf("%s %q %v", s, said, err)
	}
	// The second channel asks libvirtd past our package.
	second := seen{"second", func() (State, error) {
		if s, err := m.State(ctx); err != nil || s != "shut off" {
			return SeenOn, err
		}
		return SeenOff, nil
	}}
	if p := (Fence{Channels: []Channel{c, second}}).Prove(ctx); p.Result != Off {
		t.Errorf("%s: %s\n%v", p.Result, p.Why, p.Seen)
	}
	if p := (Fence{Channels: []Channel{c}}).Prove(ctx); p.Result != Unproven { // off already, and alone with it
		t.Errorf("alone: %s: %s", p.Result, p.Why)
	}
	absent := c
	absent.Domain = "another"
	if p := (Fence{Channels: []Channel{absent}}).Prove(ctx); p.Result == Off {
		t.Errorf("absent: %s: %s", p.Result, p.Why)
	}
	if _, err := absent.SwitchOff(ctx); !errors.Is(err, ErrRefused) {
		t.Errorf("absent: %v", err)
	}
	gone := c
	gone.URI = "qemu:///session?socket=" + d.Path("nowhere")
	if p := (Fence{Channels: []Channel{gone}}).Prove(ctx); p.Result != Unreachable {
		t.Errorf("gone: %s: %s", p.Result, p.Why)
	}
}
