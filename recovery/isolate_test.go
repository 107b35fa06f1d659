package recovery

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestIsolatedMachineReachesNothing(t *testing.T) {
	m := Machine{Name: "web", Binary: "qemu", Dir: "/m", Disks: []MachineDisk{{"root", "disk0"}}}
	for _, c := range []struct{ in, out string }{
		{"", "-nic none"},
		{"-nodefaults", "-nodefaults"},
		{"-m 256 -netdev bridge,id=n0,br=br0 -device virtio-net,netdev=n0,mac=52:54:00:00:00:01", "-m 256 -netdev hubport,hubid=0,id=n0 -device virtio-net,netdev=n0,mac=52:54:00:00:00:01"},
		{"--netdev tap,ifname=t0,id=a -netdev user,id=b,hostfwd=tcp::80-:80", "--netdev hubport,hubid=0,id=a -netdev hubport,hubid=0,id=b"},
		{"-nic tap,ifname=t0,model=virtio,mac=52:54:00:00:00:01", "-nic hubport,hubid=0,model=virtio,mac=52:54:00:00:00:01"},
		{"-nic none", "-nic none"},
		{"-blockdev {disk:root} -nodefaults", "-blockdev {disk:root} -nodefaults"},
		{"-drive file=/iso,readonly=on -nodefaults", "-drive file=/iso,readonly=on -nodefaults"},
		{"-name web -uuid 1 -nodefaults", "-msg timestamp=off -msg timestamp=off -nodefaults"},
	} {
		m.Args = strings.Fields(c.in)
		was := slices.Clone(m.Args)
		got, err := m.Isolated("/d")
		if err != nil || strings.Join(got.Args, " ") != c.out || got.Dir != "/d" || got.Name == m.Name {
			t.Errorf("%s: %q, %v", c.in, strings.Join(got.Args, " "), err)
		}
		if !slices.Equal(m.Args, was) {
			t.Errorf("%s: the definition was changed", c.in)
		}
	}
	for _, in := range []string{"-drive file=/srv/x.img", "-hda /x", "-net tap", "-netdev tap,ifname=t0", "-virtfs local,path=/", "-device vfio-pci,host=1", "-blockdev driver=file,filename=/x"} {
		m.Args = strings.Fields(in)
		if _, err := m.Isolated("/d"); !errors.Is(err, ErrMachine) {
			t.Errorf("%s: %v", in, err)
		}
	}
}

func TestEndOfAMachineThatDoesNotRun(t *testing.T) {
	if err := (Machine{Name: "web", Dir: t.TempDir()}).End(context.Background()); err != nil {
		t.Error(err)
	}
}
