package libvirt

import (
	"cmp"
	"context"
	"encoding/xml"
	"fmt"
	"strings"

	"github.com/novacron/afterimage/cbt/qemu"
)

// Disk is one writable disk of a running domain.
type Disk struct {
	Target string // vda, sda, …: unique in its domain
	Source string // a file, device or export, for people
	Format string // raw, qcow2, …
	Node   string // QEMU's root node, through which the guest writes
	Size   int64  // bytes
}

// definedDisk is what we read of a <disk> (libvirt, docs/formatdomain.rst).
type definedDisk struct {
	Type     string    `xml:"type,attr"`
	Device   string    `xml:"device,attr"` // disk if absent
	ReadOnly *struct{} `xml:"readonly"`
	Driver   struct {
		Type string `xml:"type,attr"`
	} `xml:"driver"`
	Source struct {
		File     string `xml:"file,attr"`
		Dev      string `xml:"dev,attr"`
		Protocol string `xml:"protocol,attr"`
		Name     string `xml:"name,attr"`
		Pool     string `xml:"pool,attr"`
		Volume   string `xml:"volume,attr"`

		Encryption *struct{} `xml:"encryption"`
		Slices     *struct{} `xml:"slices"`
	} `xml:"source"`
	Target struct {
		Dev string `xml:"dev,attr"`
	} `xml:"target"`
	Alias struct {
		Name string `xml:"name,attr"`
	} `xml:"alias"`
	Mirror *mirror `xml:"mirror"`

	Encryption *struct{} `xml:"encryption"` // as older libvirts have it
	Transient  *struct{} `xml:"transient"`
	Shareable  *struct{} `xml:"shareable"` // then no lock keeps another QEMU off
}

// image is the file or block device in which all of the disk lies, as plain as its
// format says; "" if it is not so simple.
func (d definedDisk) image() string {
	if s := d.Source; s.Encryption == nil && s.Slices == nil && d.Encryption == nil && d.Transient == nil && d.Shareable == nil {
		return cmp.Or(s.File, s.Dev)
	}
	return ""
}

func (d definedDisk) source() string {
	s := d.Source
	switch {
	case s.File != "":
		return s.File
	case s.Dev != "":
		return s.Dev
	case s.Protocol != "":
		return s.Protocol + ":" + s.Name
	case s.Volume != "":
		return s.Pool + "/" + s.Volume
	}
	return ""
}

// drive is an entry of QEMU's query-block (qapi/block-core.json, BlockInfo).
type drive struct {
	Device   string `json:"device"`
	QDev     string `json:"qdev"`
	Inserted *struct {
		Node  string `json:"node-name"`
		Image struct {
			VirtualSize int64 `json:"virtual-size"`
		} `json:"image"`
	} `json:"inserted"`
}

// Disks lists the writable disks of d, which must run, in the definition's order.
func (d *Domain) Disks(ctx context.Context) ([]Disk, error) {
	text, err := d.xml(ctx, 0)
	if err != nil {
		return nil, err
	}
	var def struct {
		Disks []definedDisk `xml:"devices>disk"`
	}
	if err := xml.Unmarshal([]byte(text), &def); err != nil {
		return nil, fmt.Errorf("%w: definition of %s: %w", ErrReply, d.Name, err)
	}
	var drives []drive
	if err := d.Execute(ctx, "query-block", nil, &drives); err != nil {
		return nil, err
	}
	return join(def.Disks, drives)
}

// FindDisk tells the node of the disk whose target it is; it fits Disk.Find of
// package qemu where the monitor is ours.
func FindDisk(target string) func(context.Context, qemu.Monitor) (string, error) {
	return func(ctx context.Context, m qemu.Monitor) (string, error) {
		ours, ok := m.(*Monitor)
		if !ok {
			return "", fmt.Errorf("%w: the monitor is not libvirt's", ErrReply)
		}
		disks, err := ours.Disks(ctx)
		if err != nil {
			return "", err
		}
		for _, d := range disks {
			if d.Target == target {
				return d.Node, nil
			}
		}
		return "", fmt.Errorf("%w: %s has no writable disk %s", ErrNoDisk, ours.Name, target)
	}
}

// join pairs each disk with the drive that its device uses. A device's path in
// QEMU (QOM) ends in libvirt's alias, with the backend that virtio adds behind it.
func join(defined []definedDisk, drives []drive) ([]Disk, error) {
	var out []Disk
	for _, d := range defined {
		if d.ReadOnly != nil || (d.Device != "" && d.Device != "disk" && d.Device != "lun") {
			continue
		}
		var found *drive
		for i := range drives {
			path := strings.TrimSuffix(drives[i].QDev, "/virtio-backend")
			if path[strings.LastIndexByte(path, '/')+1:] == d.Alias.Name && d.Alias.Name != "" {
				found = &drives[i]
			}
		}
		if found == nil || found.Inserted == nil || found.Inserted.Node == "" {
			return nil, fmt.Errorf("%w: QEMU has no node for disk %s (%s)", ErrReply, d.Target.Dev, d.Alias.Name)
		}
		out = append(out, Disk{
			Target: d.Target.Dev, Source: d.source(), Format: d.Driver.Type,
			Node: found.Inserted.Node, Size: found.Inserted.Image.VirtualSize,
		})
	}
	return out, nil
}
