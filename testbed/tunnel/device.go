package tunnel

import (
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// mtu is the largest packet, in bytes.
	mtu = 1500
	// queuePackets is what a device holds for a reader that is late.
	queuePackets = 1 << 15
)

// device makes a TUN device in the namespace of the calling thread, with an address
// of a network of 24 bits, and raises it.
func device(name string, addr netip.Addr) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	if err := attach(fd, name, addr); err != nil {
		unix.Close(fd)
		return nil, err
	}
	// Only now: a descriptor without a device cannot be polled.
	return os.NewFile(uintptr(fd), name), nil
}

func attach(fd int, name string, addr netip.Addr) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return fmt.Errorf("make device %s: %w", name, err)
	}
	for _, set := range []struct {
		request uint
		value   uint32
	}{{unix.SIOCSIFMTU, mtu}, {unix.SIOCSIFTXQLEN, queuePackets}} {
		if err := change(name, set.request, func(ifr *unix.Ifreq) error { ifr.SetUint32(set.value); return nil }); err != nil {
			return err
		}
	}
	if err := address(name, addr); err != nil {
		return err
	}
	return raise(name)
}

// address gives a device its one address, in place of what it had.
func address(name string, addr netip.Addr) error {
	for _, set := range []struct {
		request uint
		value   []byte
	}{{unix.SIOCSIFADDR, addr.AsSlice()}, {unix.SIOCSIFNETMASK, []byte{255, 255, 255, 0}}} {
		if err := change(name, set.request, func(ifr *unix.Ifreq) error { return ifr.SetInet4Addr(set.value) }); err != nil {
			return err
		}
	}
	return nil
}

// raise sets a device up.
func raise(name string) error {
	var flags uint16
	if err := change(name, unix.SIOCGIFFLAGS, func(ifr *unix.Ifreq) error { return nil }, func(ifr *unix.Ifreq) { flags = ifr.Uint16() }); err != nil {
		return err
	}
	return change(name, unix.SIOCSIFFLAGS, func(ifr *unix.Ifreq) error { ifr.SetUint16(flags | unix.IFF_UP); return nil })
}

// change asks the kernel about a device of the calling thread's namespace.
func change(name string, request uint, fill func(*unix.Ifreq) error, after ...func(*unix.Ifreq)) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := fill(ifr); err != nil {
		return err
	}
	if err := unix.IoctlIfreq(s, request, ifr); err != nil {
		return fmt.Errorf("set up device %s (request %#x): %w", name, request, err)
	}
	for _, f := range after {
		f(ifr)
	}
	return nil
}
