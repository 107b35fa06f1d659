package witness

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// PackDog is a Dog for machines that may start later, or start again: it watches no
// process but looks for them, when the time has come, by what stands on their command
// lines: every one that has all words of a mark is paused, and what starts after that, as
// long as somebody holds the other end of in. It touches /proc alone.
func PackDog(in, out *os.File, marks []Mark) error {
	signal.Ignore(unix.SIGPIPE, unix.SIGHUP, unix.SIGINT)
	_ = unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE) // where it is not allowed, it may be swapped out
	if len(marks) == 0 {
		return errors.New("watch machines: no mark of one is given")
	}
	d := dog{in: in, out: out, machine: -1, marks: marks}
	for {
		over, err := d.step()
		if over || err != nil {
			return err
		}
	}
}

// Mark is how a machine's process is known among those whose program's name begins with
// qemu or kvm, or is a Program of the marks: this is the whole value, or a value between
// commas, of one argument of its command line ("guest=web", "/run/qmp.sock"); or a UUID.
type Mark string

// Kinds of marks that are more than a text.
const (
	uuidMark    = "-uuid " // the argument after -uuid
	programMark = "program "
)

// UUID marks a machine by the one that stands on its command line.
func UUID(text string) Mark { return Mark(uuidMark + text) }

// Program is the name of a machine's program; it marks none by itself.
func Program(path string) Mark { return Mark(programMark + filepath.Base(path)) }

// lookAgain is how often a pack is looked for once it has to stand still.
const lookAgain = 50 * time.Millisecond

// Pack is the processes that bear one of the marks.
func Pack(marks []Mark) ([]int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var out []int
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err == nil && bears(dir, marks) {
			out = append(out, pid)
		}
	}
	return out, nil
}

func bears(dir string, marks []Mark) bool {
	line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return false // it has ended
	}
	return Bears(strings.Split(string(line), "\x00"), marks)
}

// Bears reports whether a command line is that of a machine with one of the marks.
func Bears(args []string, marks []Mark) bool {
	program := filepath.Base(args[0])
	if !strings.HasPrefix(program, "qemu") && !strings.HasPrefix(program, "kvm") && !slices.Contains(marks, Program(program)) {
		return false
	}
	for i, a := range args[1:] {
		for _, m := range marks {
			id, byUUID := strings.CutPrefix(string(m), uuidMark)
			switch {
			case strings.HasPrefix(string(m), programMark) || m == "":
			case byUUID:
				if args[i] == "-uuid" && strings.EqualFold(a, id) {
					return true
				}
			case stands(a, string(m)):
				return true
			}
		}
	}
	return false
}

// stands reports whether text is a value in an option's argument, from its beginning, a
// comma, colon, equals sign or quote on to its end, a comma or quote. Two commas are one
// that belongs to the value.
func stands(arg, text string) bool {
	for from := 0; ; {
		i := strings.Index(arg[from:], text)
		if i < 0 {
			return false
		}
		before, after := arg[:from+i], arg[from+i+len(text):]
		from += i + 1
		commas := len(before) - len(strings.TrimRight(before, ","))
		begins := before == "" || commas%2 == 1 || commas == 0 && strings.ContainsAny(before[len(before)-1:], `:="`)
		ends := after == "" || after[0] == '"' || after[0] == ',' && !strings.HasPrefix(after, ",,")
		if begins && ends {
			return true
		}
	}
}

// Signal sends one to every process of a pack, each by a handle that no other process can
// come to have, and says how many there were.
func Signal(marks []Mark, s unix.Signal) (int, error) {
	pids, err := Pack(marks)
	if err != nil {
		return 0, err
	}
	var errs []error
	n := 0
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has ended
		}
		if bears(fmt.Sprintf("/proc/%d", pid), marks) {
			err = unix.PidfdSendSignal(fd, s, nil, 0)
			if err == nil {
				n++
			}
			if err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("signal process %d: %w", pid, err))
			}
		}
		_ = unix.Close(fd) // of a handle
	}
	return n, errors.Join(errs...)
}

// hold pauses the pack, again and again while somebody is at the other end of in: a
// machine that starts now has no right to run either.
func (d *dog) hold() error {
	_, err := Signal(d.marks, unix.SIGSTOP)
	fmt.Fprintln(d.out, "paused")
	buf := make([]byte, 256)
	for !d.eof {
		fds := []unix.PollFd{{Fd: int32(d.in.Fd()), Events: unix.POLLIN}}
		if _, polled := unix.Poll(fds, int(lookAgain/time.Millisecond)); polled != nil && !errors.Is(polled, unix.EINTR) {
			return errors.Join(err, polled)
		}
		_, again := Signal(d.marks, unix.SIGSTOP)
		if again != nil {
			err = again
		}
		if fds[0].Revents == 0 {
			continue
		}
		n, _ := unix.Read(int(d.in.Fd()), buf)
		// Whoever disarms now has the right again, or ends the machine; anything else comes
		// too late.
		if n <= 0 || bytes.Contains(buf[:n], []byte("disarm\n")) {
			d.eof = true
		}
	}
	return err
}
