package site

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery/witness"
)

// guardKept is what the next life of the daemon needs to know of a guard. It is durable,
// and there from the first time that the group was a replica under a guard: a primary
// without it does not know what others did meanwhile.
type guardKept struct {
	Lease     witness.Saved `json:"lease"`
	Dog       int           `json:"dog"`       // process
	DogArgs   []string      `json:"dog_args"`  // all that its command line has after the program
	Boot      string        `json:"boot"`      // of the host, that the process is of
	Promotion cbt.ID        `json:"promotion"` // of the reign that took it; zero: the first
	// Gave is the revision at which this site gave the right back since it took Lease;
	// givingBack: it may have; 0: it did not.
	Gave int64 `json:"gave"`
	// Taking is whom this site takes the group over from, until that stands.
	Taking string `json:"taking,omitempty"`

	known bool // it was there
}

const givingBack = -1

// refuses is why the primary of a reign may not take the right, where last, written at a
// revision, is who took it last: errTakenSince if another had it in the time of the same
// reign, so that what this site has may be old.
func (k guardKept) refuses(own string, peers []string, promotion cbt.ID, last string, at int64) error {
	fresh := k.known && k.Taking == "" && promotion != k.Promotion // somebody decided on it since
	switch {
	case at == 0 && k.Lease.ID == 0, last == own && last != "":
		return nil
	case at == 0:
		return errors.New("the witness has forgotten that this site had the right: another one may have had it since")
	case !k.known && last == "":
		return errors.New("another site may have had the right: what this site knew of it is lost")
	case last != "" && !(fresh && slices.Contains(peers, last)):
		return fmt.Errorf("%w: %q took it since", errTakenSince, last)
	case fresh || last == "" && at == k.Gave:
		return nil
	case k.Gave == givingBack:
		return errors.New("it is not known whether another site had the right since this one gave it back")
	}
	return fmt.Errorf("%w: another site took it since, and gave it back", errTakenSince)
}

var errTakenSince = fmt.Errorf("the group is not this site's to run: %w", witness.ErrHeld)

func (u *guardian) file() string {
	return filepath.Join(u.site().cfg.Data, "guard-"+u.g.id.Group.Short()+".json")
}

func (u *guardian) recall() (k guardKept) {
	b, err := os.ReadFile(u.file())
	if err == nil {
		err = json.Unmarshal(b, &k)
	}
	if err != nil {
		return guardKept{}
	}
	k.known = true
	return k
}

// amend changes what is kept, durably.
func (u *guardian) amend(change func(*guardKept)) error {
	u.keepingMu.Lock()
	defer u.keepingMu.Unlock()
	k := u.recall()
	change(&k)
	err := writeDurably(u.file(), k)
	if err != nil {
		u.site().o.Log.Warn("guard not remembered: a restart of the daemon may pause the machine", "group", u.g.cfg.Ref(), "err", err)
	}
	return err
}

func writeDurably(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// endDog ends the watchdog of an earlier life of the daemon, if the process is that still.
func endDog(k guardKept, boot string, ours int) {
	if k.Dog <= 1 || k.Dog == ours || k.Boot != boot || len(k.DogArgs) == 0 {
		return
	}
	fd, err := unix.PidfdOpen(k.Dog, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	line, err := os.ReadFile("/proc/" + strconv.Itoa(k.Dog) + "/cmdline")
	args := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
	if err == nil && len(args) > 1 && slices.Equal(args[1:], k.DogArgs) {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) // it has ended meanwhile
	}
}
