package site

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/libvirt"
	"github.com/novacron/afterimage/cbt/qemu"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/fault"
)

// domainDisk is a disk of a domain. Its node is looked up at every attachment: a
// snapshot, a restart or a disk that is plugged again gives it another one.
func domainDisk(v cbt.Volume, target string) qemu.Disk {
	return qemu.Disk{Volume: v, Node: target, Find: libvirt.FindDisk(target)}
}

// throughLibvirt makes o tap the domain of m.
func (l *life) throughLibvirt(m *guestTap, o *qemu.Options) error {
	t, d, defined := m.Tap, m.Libvirt, m.plugs.defined
	owner, err := qemuUser(d)
	if err != nil {
		return err
	}
	if o.Dir, err = enterable(d.Sockets, o.Name.Short(), owner); err != nil {
		return err
	}
	o.SocketOwner = owner
	if d.Passthrough == config.PassthroughForbidden {
		o.Copies = func(ctx context.Context) (c qemu.Copier, err error) {
			err = l.named(t, func(name string) error {
				copies, err := libvirt.DialCopies(ctx, d.URI, name)
				if err == nil {
					c = copies
					defined.note(ctx, copies.Domain())
				}
				return err
			})
			return c, err
		}
		return nil
	}
	if o.Every > 0 { // it stops the guest for an instant, and nobody else would resume it
		name := d.Domain
		if _, err := l.j.Recall(domainKey(t), &name); err != nil {
			return fmt.Errorf("recall which domain is captured: %w", err)
		}
		o.WatchdogQMP = domainAddress(d.URI, name)
	}
	o.Dial = func(ctx context.Context) (m qemu.Monitor, err error) {
		err = l.named(t, func(name string) error {
			monitor, err := libvirt.DialMonitor(ctx, d.URI, name)
			if err == nil {
				m = monitor
				defined.note(ctx, monitor.Domain)
			}
			return err
		})
		return m, err
	}
	return nil
}

// domainKey is where a group's journal remembers which domain it captures.
func domainKey(t config.Tap) string {
	if t.Guest == "" {
		return "site/domain"
	}
	return "site/domain/" + t.Guest
}

// remember notes which domain the configured name was found to be.
func (l *life) remember(t config.Tap, d *libvirt.Domain) {
	var known string
	if _, err := l.j.Recall(domainKey(t), &known); err == nil && known == d.UUID {
		return
	}
	if err := l.j.Remember(domainKey(t), d.UUID); err != nil {
		l.site.o.Log.Warn("the domain's UUID is not remembered", "group", l.cfg.Ref(), "err", err)
	}
}

// named does something to the configured domain by its name; where no domain has that
// name, to the one that had it last, which was renamed.
func (l *life) named(t config.Tap, do func(name string) error) error {
	err := do(t.Libvirt.Domain)
	if !errors.Is(err, libvirt.ErrNoDomain) {
		return err
	}
	var uuid string
	if known, recall := l.j.Recall(domainKey(t), &uuid); recall != nil || !known {
		return err
	}
	if renamed := do(uuid); !errors.Is(renamed, libvirt.ErrNoDomain) {
		return renamed
	}
	return err
}

// qemuUser is the user id that QEMU runs under; 0: ours.
func qemuUser(d *config.Libvirt) (int, error) {
	names := []string{d.User}
	if d.User == "" {
		if d.URI != config.SystemURI || os.Geteuid() != 0 {
			return 0, nil
		}
		names = []string{"libvirt-qemu", "qemu"}
	}
	var failed error
	for _, name := range names {
		if id, err := strconv.Atoi(name); err == nil {
			return id, nil
		}
		u, err := user.Lookup(name)
		if err == nil {
			return strconv.Atoi(u.Uid)
		}
		failed = err
	}
	if d.User == "" {
		return 0, nil // a host of another kind; doctor tells whether QEMU gets in
	}
	return 0, fault.Wrap(fault.ConfigValue, "find the user "+d.User+" that QEMU runs as", failed)
}

// enterable makes a directory for sockets, below one that everybody may pass
// through, that nobody but owner (0: we) may enter.
func enterable(parent, name string, owner int) (string, error) {
	dir := filepath.Join(parent, name)
	err := os.MkdirAll(parent, 0o711)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil && owner != 0 {
		err = os.Chown(dir, owner, -1)
	}
	if err != nil {
		return "", fault.Wrap(fault.FileTrouble, "make "+dir, err)
	}
	return dir, nil
}

// definitions records what the domain is, whenever that is not what was recorded
// last: so every point carries the definition that its disks belong to, and what its
// firmware remembers.
type definitions struct {
	life  *life
	reign *reign

	mu    sync.Mutex // guards what follows
	last  string
	nvram []byte
	stamp fileStamp // of the file that nvram was read from
}

// fileStamp is what a file changes when it is written to.
type fileStamp struct {
	path string
	size int64
	time time.Time
}

// nvramSuffix follows a domain's name where its firmware's variables are recorded.
const nvramSuffix = "#nvram"

// largestNVRAM is more than firmware has, and fits in a record.
const largestNVRAM = 640 << 10

// note does not fail: without a definition there are still points.
func (n *definitions) note(ctx context.Context, d *libvirt.Domain) {
	text, err := d.Equipped(ctx)
	n.mu.Lock()
	defer n.mu.Unlock()
	if err == nil && text != n.last {
		if err = n.reign.writer.Machine(ctx, d.Name, []byte(text)); err == nil {
			n.last = text
		}
	}
	if err == nil {
		err = n.noteNVRAM(ctx, d.Name, libvirt.NVRAM(text))
	}
	if err = errors.Join(err, n.life.noteDrives(ctx, d)); err != nil {
		n.life.site.o.Log.Warn("the domain's definition is not recorded", "group", n.life.cfg.Ref(), "domain", d.Name, "err", fmt.Errorf("record definition: %w", err))
	}
}

// noteNVRAM records what the firmware of a domain remembers, when the file was written
// to; n.mu is held. A guest that is just writing to it is read again at the next look.
func (n *definitions) noteNVRAM(ctx context.Context, name, path string) error {
	if path == "" {
		return nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	now := fileStamp{path, info.Size(), info.ModTime()}
	if now == n.stamp {
		return nil
	}
	if !info.Mode().IsRegular() || info.Size() > largestNVRAM {
		n.stamp = now
		return fmt.Errorf("the firmware's variables in %s are no file of at most %s", path, bytesText(largestNVRAM))
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if n.nvram == nil || !bytes.Equal(b, n.nvram) {
		if err := n.reign.writer.Machine(ctx, name+nvramSuffix, b); err != nil {
			return err
		}
	}
	n.nvram, n.stamp = b, now
	return nil
}
