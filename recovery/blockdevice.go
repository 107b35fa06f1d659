package recovery

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// DeviceIdentity is what tells a block device of this host from any other that bears its
// path some day: names like /dev/sdb are given anew at every start of a host, and what is
// brought to a history's head there must not be somebody else's disk. A device that says
// nothing of itself has none, and is refused.
func DeviceIdentity(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", fmt.Errorf("%w: %s: %w", ErrDrive, path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return "", fmt.Errorf("%w: %s is no block device", ErrDrive, path)
	}
	dir, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)))
	if err != nil {
		return "", fmt.Errorf("%w: look at %s: %w", ErrDrive, path, err)
	}
	if id := identityIn(dir); id != "" {
		return id, nil
	}
	return "", fmt.Errorf("%w: %s tells nothing by which it is known after a restart of the host: give it a serial number, or take a logical volume", ErrDrive, path)
}

// identityIn reads it from a device's directory (Linux, Documentation/ABI/*/sysfs-block,
// sysfs-block-dm, sysfs-block-loop). Of a partition it is its disk's, with its place there.
func identityIn(dir string) string {
	if start := said(dir, "start"); said(dir, "partition") != "" && start != "" {
		if whole := identityIn(filepath.Dir(dir)); whole != "" {
			return whole + " from " + start
		}
		return ""
	}
	if file := said(dir, "loop/backing_file"); file != "" {
		return "loop " + said(dir, "loop/offset") + " " + file
	}
	for _, name := range []string{"dm/uuid", "md/uuid", "wwid", "device/wwid", "serial", "device/serial"} {
		if id := said(dir, name); id != "" {
			return name + " " + id
		}
	}
	return ""
}

// said is what the kernel says of a device; "": nothing.
func said(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// SameDevice is nil if the block device at path is the one that had an identity.
func SameDevice(path, identity string) error {
	switch now, err := DeviceIdentity(path); {
	case err != nil:
		return err
	case now != identity:
		return fmt.Errorf("%w: %s is another device (%s) than the one that holds the disk (%s)", ErrDrive, path, now, identity)
	}
	return nil
}

// DeviceURI is the URI of a block device of this host whose first size bytes are a
// volume, as FileURI is that of a file. A machine is started from it only while the device
// has that identity.
func DeviceURI(path string, size int64, identity string) string {
	q := url.Values{"size": {fmt.Sprint(size)}, "device": {identity}}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String()
}

// sameDevices is nil if all the block devices among uris are those that they were.
func sameDevices(uris map[string]string) error {
	for volume, uri := range uris {
		u, err := url.Parse(uri)
		if err != nil || u.Scheme != "file" || !u.Query().Has("device") {
			continue
		}
		if err := SameDevice(u.Path, u.Query().Get("device")); err != nil {
			return fmt.Errorf("volume %s: %w", volume, err)
		}
	}
	return nil
}
