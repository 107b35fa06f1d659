package libvirt

import (
	"context"
	"encoding/xml"
	"fmt"

	rpc "github.com/digitalocean/go-libvirt"
)

// Inspection is what protecting a domain depends on. It is asked without
// passthrough, so looking taints nothing.
type Inspection struct {
	LibvirtVersion, QEMUVersion Version // of the host
	State                       State
	Saved                       bool            // off with its memory saved: its next start goes on from there
	Disks                       []InspectedDisk // all of the definition, read-only ones too
	Agent                       bool            // a guest agent answers
	AgentChannel                bool            // the definition has a channel for one
	Confined                    []string        // security models that confine QEMU: apparmor, selinux
}

// Runs reports that the domain is there in a QEMU, if only to stand still.
func (in Inspection) Runs() bool { return in.State != StateOff && in.State != StateCrashed }

// InspectedDisk is a disk of a definition.
type InspectedDisk struct {
	Target, Source, Format string
	Writable               bool
	Image                  string // file or block device of the host in which it lies; "": none, or not that alone
	Size                   int64  // bytes; 0: not told
	Job                    string // of a block job that libvirt knows: copy, active-commit, …
	JobSocket              string // where a copy goes
}

// Version is libvirt's form: 1,000,000 × major + 1,000 × minor + release.
type Version uint64

func (v Version) String() string {
	return fmt.Sprintf("%d.%d.%d", v/1_000_000, v/1_000%1_000, v%1_000)
}

// Inspect looks at a host and the domain called name.
func Inspect(ctx context.Context, uri, name string) (Inspection, error) {
	c, err := Connect(ctx, uri)
	if err != nil {
		return Inspection{}, err
	}
	defer c.Close()
	_, in, err := c.inspect(ctx, name, make(sizes))
	return in, err
}

// sizes of disks that were asked for, in bytes, by target and source. Asking is not
// free of danger: libvirtd has QEMU list its nodes, and QEMU 7.2 was seen to abort there
// (qcow2_get_specific_info) while a backup of somebody else's began and its scratch
// image was being formatted. So what is known is not asked again.
type sizes map[[2]string]int64

// inspect asks for the sizes that known lacks, and adds them.
func (c *Conn) inspect(ctx context.Context, name string, known sizes) (*Domain, Inspection, error) {
	// What a call writes to is read only after its nil error: one that was given up goes on.
	var lib, qemu uint64
	err := c.Call(ctx, "ask for versions", func(l *rpc.Libvirt) (err error) {
		if lib, err = l.ConnectGetLibVersion(); err == nil {
			qemu, err = l.ConnectGetVersion()
		}
		return err
	})
	if err != nil {
		return nil, Inspection{}, err
	}
	in := Inspection{LibvirtVersion: Version(lib), QEMUVersion: Version(qemu)}
	d, err := c.Domain(ctx, name)
	if err != nil {
		return nil, in, err
	}
	if in.State, err = d.State(ctx); err != nil {
		return nil, in, err
	}
	if !in.Runs() {
		if in.Saved, err = d.saved(ctx); err != nil {
			return nil, in, err
		}
	}
	text, err := d.xml(ctx, 0)
	if err != nil {
		return nil, in, err
	}
	if err := in.read([]byte(text)); err != nil {
		return nil, in, fmt.Errorf("%w: definition of %s: %w", ErrReply, d.Name, err)
	}
	for i, k := range in.Disks {
		place := [2]string{k.Target, k.Source}
		if size, ok := known[place]; ok {
			in.Disks[i].Size = size
			continue
		}
		var capacity uint64
		err := c.Call(ctx, "size of "+k.Target, func(l *rpc.Libvirt) (err error) {
			_, capacity, _, err = l.DomainGetBlockInfo(d.dom, k.Target, 0)
			return err
		})
		switch {
		case err == nil:
			in.Disks[i].Size = int64(capacity)
			if capacity > 0 {
				known[place] = int64(capacity)
			}
		case c.Err() != nil || ctx.Err() != nil:
			return nil, in, err
		} // else a drive without a medium, which has no size
	}
	return d, in, nil
}

// read takes from a live definition what Inspection tells.
func (in *Inspection) read(text []byte) error {
	var def struct {
		Disks    []definedDisk `xml:"devices>disk"`
		Channels []struct {
			Target struct {
				Name  string `xml:"name,attr"`
				State string `xml:"state,attr"`
			} `xml:"target"`
		} `xml:"devices>channel"`
		Labels []struct {
			Model string `xml:"model,attr"`
			Type  string `xml:"type,attr"`
		} `xml:"seclabel"`
	}
	if err := xml.Unmarshal(text, &def); err != nil {
		return err
	}
	for _, k := range def.Disks {
		d := InspectedDisk{Target: k.Target.Dev, Source: k.source(), Image: k.image(), Format: k.Driver.Type,
			Writable: k.ReadOnly == nil && (k.Device == "" || k.Device == "disk" || k.Device == "lun")}
		if k.Mirror != nil {
			d.Job, d.JobSocket = k.Mirror.Job, k.Mirror.Source.Host.Socket
		}
		in.Disks = append(in.Disks, d)
	}
	for _, c := range def.Channels {
		if c.Target.Name == "org.qemu.guest_agent.0" {
			in.AgentChannel, in.Agent = true, c.Target.State == "connected"
		}
	}
	for _, l := range def.Labels {
		if (l.Model == "apparmor" || l.Model == "selinux") && l.Type != "none" {
			in.Confined = append(in.Confined, l.Model)
		}
	}
	return nil
}
