package recovery

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/novacron/afterimage/cbt/nbd"
)

// CanStart is nil if each machine of m that does not run can start with its disks at uris,
// as far as that is seen without starting one: its definition, its disks, the program or
// the host that runs it, and that its name and its UUID are free. It names all that cannot.
func (m Machine) CanStart(ctx context.Context, uris map[string]string) error {
	if err := m.validate(); err != nil {
		return err
	}
	var errs []error
	for _, one := range m.Each() {
		one = one.withDefaults()
		if _, err := one.Process(); err == nil {
			continue
		}
		if err := one.canStart(ctx, uris); err != nil {
			errs = append(errs, fmt.Errorf("start machine %s: %w", one.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (m Machine) canStart(ctx context.Context, uris map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, m.Ready)
	defer cancel()
	for _, v := range slices.Compact(slices.Sorted(slices.Values(m.volumes()))) {
		uri, served := uris[v]
		if !served {
			return fmt.Errorf("%w: machine %q: volume %q is not served", ErrMachine, m.Name, v)
		}
		if err := reaches(ctx, uri); err != nil {
			return fmt.Errorf("volume %s: %w", v, err)
		}
	}
	if m.Host != nil {
		uuid, err := m.identified(ctx)
		if err == nil {
			err = m.Host.CanStart(ctx, uuid, uris)
		}
		return err
	}
	if err := sameDevices(uris); err != nil {
		return err
	}
	id, err := m.identity()
	if errors.Is(err, fs.ErrNotExist) {
		id, err = machineFile{UUID: newUUID()}, nil
	}
	if err == nil {
		_, err = m.Argv(uris, id.UUID)
	}
	if err == nil {
		_, err = exec.LookPath(m.Binary)
	}
	return err
}

// reaches is nil if what a URI names is there: a file, or an export that can be opened.
func reaches(ctx context.Context, uri string) error {
	u, err := url.Parse(uri)
	if err != nil {
		return err
	}
	network, address := "tcp", u.Host
	switch {
	case u.Scheme == "file":
		_, err := os.Stat(u.Path)
		return err
	case u.Scheme == "nbd+unix":
		network, address = "unix", u.Query().Get("socket")
	case u.Port() == "":
		address = net.JoinHostPort(u.Hostname(), "10809")
	}
	c, err := nbd.Dial(ctx, network, address, nbd.DialOptions{Export: strings.TrimPrefix(u.Path, "/")})
	if err != nil {
		return err
	}
	return c.Close()
}
