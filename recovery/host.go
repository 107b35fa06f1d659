package recovery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Host runs a machine in our place: libvirtd. It knows the one machine that it is for
// by the identity that lies in Machine.Dir, durable before anything is started, and
// touches no other of that name. Its calls may be repeated.
type Host interface {
	// Identify is the UUID that the machine gets where it has none yet.
	Identify(ctx context.Context) (uuid string, err error)
	// Find says whether machine uuid runs: ErrNotRunning, ErrWrongMachine where
	// another one has its name, nil.
	Find(ctx context.Context, uuid string) error
	// CanStart is nil if Start of a machine that does not run would work, as far as that
	// is seen without it.
	CanStart(ctx context.Context, uuid string, uris map[string]string) error
	// Start defines the machine with its disks at uris and starts it.
	Start(ctx context.Context, uuid string, uris map[string]string) error
	// End ends it at once and takes its definition away; it need not be there.
	End(ctx context.Context, uuid string) error
	// Powerdown asks the guest to switch itself off.
	Powerdown(ctx context.Context, uuid string) error
	// Agent asks the guest's agent.
	Agent(ctx context.Context, uuid, command string, arguments map[string]any, result any) error
	// Connect plugs the cable of a network card in or out ("up", "down"), or into
	// another network.
	Connect(ctx context.Context, uuid, card, to string) error
	// Screenshot is the console's picture, as a PNG; ErrNoScreen where it has none.
	Screenshot(ctx context.Context, uuid string) ([]byte, error)
	// Console is the file that the first serial port is written to.
	Console() string
	// Isolated is the same machine for a drill, under another name: it reaches nothing.
	Isolated(name string) Host
}

// hosted is the identity of a machine that Host runs.
func (m Machine) hosted() (string, error) {
	if m.UUID != "" {
		return m.UUID, nil
	}
	id, err := m.identity()
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotRunning
	}
	return id.UUID, err
}

// attachHosted finds the machine that Host runs.
func (m Machine) attachHosted(ctx context.Context) (*Running, error) {
	uuid, err := m.hosted()
	if err == nil {
		err = m.Host.Find(ctx, uuid)
	}
	if err != nil {
		return nil, err
	}
	pid, pidfd, err := processOf(uuid)
	if err != nil {
		return nil, err
	}
	return m.running(uuid, pid, pidfd, true), nil
}

// startHosted has Host start the machine.
func (m Machine) startHosted(ctx context.Context, uris map[string]string) (*Running, error) {
	uuid, err := m.identified(ctx)
	if err == nil {
		err = m.Host.Start(ctx, uuid, uris)
	}
	if err != nil {
		return nil, err
	}
	pid, pidfd, err := processOf(uuid)
	if err != nil {
		return nil, err
	}
	return m.running(uuid, pid, pidfd, false), nil
}

// identified is the machine's identity, which is durable from here on.
func (m Machine) identified(ctx context.Context) (string, error) {
	if m.UUID != "" {
		return m.UUID, nil
	}
	if err := os.MkdirAll(m.Dir, 0o700); err != nil {
		return "", err
	}
	id, err := m.identity()
	if errors.Is(err, fs.ErrNotExist) {
		id = machineFile{Name: m.Name}
		if id.UUID, err = m.Host.Identify(ctx); err == nil {
			err = m.keepIdentity(id)
		}
	}
	return id.UUID, err
}

// findLimit bounds the question whether a machine runs.
const findLimit = 5 * time.Second

// Alias is the name that Host has for the machine where that is not its own; "": it is, or
// Host cannot tell.
func (m Machine) Alias(ctx context.Context) string {
	h, ok := m.Host.(interface {
		Called(ctx context.Context, uuid string) (string, error)
	})
	uuid, err := m.hosted()
	if !ok || err != nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, findLimit)
	defer cancel()
	name, err := h.Called(ctx, uuid)
	if err != nil || name == m.Name {
		return ""
	}
	return name
}

// GoOn resumes a machine that stands still because its disks were away, where whoever
// runs it does not do that by itself: libvirt 9.0 starts QEMU without a reconnect-delay,
// whatever its definition says, and then a request that was under way when the NBD server
// went fails, which stops the machine. ErrNotRunning where it does not run.
func (m Machine) GoOn(ctx context.Context) (resumed bool, err error) {
	h, ok := m.Host.(interface {
		GoOn(ctx context.Context, uuid string) (resumed bool, err error)
	})
	if !ok {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, findLimit)
	defer cancel()
	uuid, err := m.hosted()
	if err != nil {
		return false, err
	}
	return h.GoOn(ctx, uuid)
}

// hostedProcess is the process of a machine that Host runs. Host is asked first: a site
// that was moved to may share this computer, and its machine has the same UUID. Where
// Host cannot be asked the process speaks for itself.
func (m Machine) hostedProcess() (pid, pidfd int, err error) {
	uuid, err := m.hosted()
	if err != nil {
		return 0, -1, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), findLimit)
	defer cancel()
	if err := m.Host.Find(ctx, uuid); errors.Is(err, ErrNotRunning) {
		return 0, -1, err
	}
	return processOf(uuid)
}

func (m Machine) keepIdentity(id machineFile) error {
	b, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(m.Dir, "machine.json"), append(b, '\n'))
}

// processOf is the QEMU that was told uuid, which libvirtd does not tell. It is looked
// at again once its handle is open: numbers are given away.
func processOf(uuid string) (pid, pidfd int, err error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, -1, err
	}
	for _, dir := range dirs {
		if !toldUUID(dir, uuid) {
			continue
		}
		if pid, err = strconv.Atoi(filepath.Base(dir)); err != nil {
			continue
		}
		if pidfd, err = unix.PidfdOpen(pid, 0); err != nil {
			continue
		}
		if toldUUID(dir, uuid) {
			return pid, pidfd, nil
		}
		unix.Close(pidfd)
	}
	return 0, -1, fmt.Errorf("%w: no process was told UUID %s", ErrNotRunning, uuid)
}

func toldUUID(dir, uuid string) bool {
	line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	return err == nil && strings.Contains(string(line), "\x00-uuid\x00"+uuid+"\x00")
}

// Screenshot is what the machine's screen shows, as a PNG; ErrNoScreen where it has
// none.
func (m Machine) Screenshot(ctx context.Context) ([]byte, error) {
	if m.Host == nil {
		return m.screendump(ctx)
	}
	uuid, err := m.hosted()
	if err != nil {
		return nil, err
	}
	return m.Host.Screenshot(ctx, uuid)
}
