package recovery

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/novacron/afterimage/testbed/loop"
)

// A device is known by what it says of itself, a partition by its disk and its place there,
// and by nothing that a host gives anew.
func TestADeviceIsKnownByWhatItSays(t *testing.T) {
	for name, c := range map[string]struct {
		says map[string]string // of sda and its partition
		of   string
		want string
	}{
		"logical volume":  {map[string]string{"dm-3/dm/uuid": "LVM-abc\n"}, "dm-3", "dm/uuid LVM-abc"},
		"nvme":            {map[string]string{"nvme0n1/wwid": "eui.01\n", "nvme0n1/device/serial": "7"}, "nvme0n1", "wwid eui.01"},
		"scsi":            {map[string]string{"sda/device/wwid": "naa.5"}, "sda", "device/wwid naa.5"},
		"virtio":          {map[string]string{"vda/serial": "disk7"}, "vda", "serial disk7"},
		"loop":            {map[string]string{"loop0/loop/backing_file": "/a b", "loop0/loop/offset": "512"}, "loop0", "loop 512 /a b"},
		"partition":       {map[string]string{"sda/device/wwid": "naa.5", "sda/sda1/partition": "1", "sda/sda1/start": "2048"}, "sda/sda1", "device/wwid naa.5 from 2048"},
		"nothing":         {map[string]string{"vda/serial": "\n"}, "vda", ""},
		"part of nothing": {map[string]string{"vda/vda1/partition": "1", "vda/vda1/start": "2048"}, "vda/vda1", ""},
	} {
		dir := t.TempDir()
		for path, text := range c.says {
			path = filepath.Join(dir, path)
			must(t, os.MkdirAll(filepath.Dir(path), 0o700))
			must(t, os.WriteFile(path, []byte(text), 0o600))
		}
		if got := identityIn(filepath.Join(dir, c.of)); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if _, err := DeviceIdentity("/dev/null"); !errors.Is(err, ErrDrive) {
		t.Errorf("a terminal: %v", err)
	}
	d := loop.New(t, 1<<20)
	id, err := DeviceIdentity(d.Path)
	must(t, err)
	must(t, SameDevice(d.Path, id))
	must(t, sameDevices(map[string]string{"root": DeviceURI(d.Path, 1<<20, id), "data": FileURI("/nowhere")}))
	d.Another(1 << 20)
	if err := SameDevice(d.Path, id); !errors.Is(err, ErrDrive) {
		t.Errorf("another device: %v", err)
	}
	if err := sameDevices(map[string]string{"root": DeviceURI(d.Path, 1<<20, id)}); !errors.Is(err, ErrDrive) {
		t.Errorf("another device to start from: %v", err)
	}
}

// A machine has of a device what is the disk's, and through the driver for devices.
func TestArgvOfABlockDevice(t *testing.T) {
	argv, err := testMachine("/m").Argv(map[string]string{"root": DeviceURI("/dev/vg/a b", 1<<20, "dm/uuid x&y"), "data": FileURI("/d")}, "u")
	must(t, err)
	for _, want := range []string{
		`{"discard":"unmap","driver":"raw","file":{"discard":"unmap","driver":"host_device","filename":"/dev/vg/a b"},"node-name":"disk0","size":1048576}`,
		`"driver":"file","filename":"/d"`,
	} {
		if text := strings.Join(argv, "\n"); !strings.Contains(text, want) {
			t.Errorf("want %s in\n%s", want, text)
		}
	}
}
