package site

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// MachineDisk is a block node of a machine and the NBD export behind it.
type MachineDisk struct {
	Node   string // -blockdev node-name
	Socket string // unix socket of the NBD server
	Export string
}

// MachineSpec is a machine to start. Args are the configured ones; {dir},
// {serial}, {qmp}, {nbd} and {name} in them are the starter's to replace.
type MachineSpec struct {
	Name   string
	Binary string
	Disks  []MachineDisk
	Args   []string
	Dir    string        // its own, made by the site: QMP socket, serial log, pid file
	NBD    string        // this site's NBD socket
	Ready  time.Duration // how long its QMP may take to answer
}

// MachineRunning is what a started machine can be reached by.
type MachineRunning struct {
	PID    int
	QMP    string
	Serial string
}

// MachineStarter starts machines; package recovery has one. The machine outlives
// ctx and this process.
type MachineStarter interface {
	Start(ctx context.Context, m MachineSpec) (MachineRunning, error)
}

// startMachine starts the group's machine from the disks that its reign serves.
func (l *life) startMachine(ctx context.Context, out *control.FailedOver) error {
	if l.site.o.Machines == nil {
		return errors.New("this program was built without a way to start machines")
	}
	spec, err := l.machineSpec(l.cfg.Machine)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(spec.Dir, 0o700); err != nil {
		return err
	}
	m, err := l.site.o.Machines.Start(ctx, spec)
	if err != nil {
		return err
	}
	out.Started, out.QMP, out.Serial = true, m.QMP, m.Serial
	l.site.o.Log.Info("machine started", "group", l.cfg.Ref(), "machine", spec.Name, "pid", m.PID, "qmp", m.QMP)
	return nil
}

func (l *life) machineSpec(m *config.Machine) (MachineSpec, error) {
	spec := MachineSpec{Name: m.Name, Binary: m.Binary, Args: m.Args, NBD: l.site.cfg.NBD, Ready: time.Duration(m.Ready),
		Dir: filepath.Join(l.site.cfg.Data, "m", named("machine", l.cfg.Tenant, l.cfg.Name).Short())}
	for _, d := range m.Disks {
		found := false
		for _, k := range l.reigning().disks {
			found = found || k.volume.Name == d.Volume && k.device != nil
		}
		if !found {
			return spec, fault.New(fault.VolumeUnknown, "start machine "+m.Name, "its disk %s is volume %s, which the group does not have at that point", d.ID, d.Volume)
		}
		spec.Disks = append(spec.Disks, MachineDisk{Node: d.ID, Socket: l.site.cfg.NBD, Export: l.exportName(d.Volume)})
	}
	return spec, nil
}
