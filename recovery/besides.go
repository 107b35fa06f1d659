package recovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Several machines of one group are one Machine with others besides it: whoever asks for
// it asks for all of them, so that nobody forgets one. They are started in their order,
// all or none; it is found where all run, it is seen off where none does; it is ended and
// shut down in the reverse order. What is inside a guest is asked of one machine alone.

// Companion is a machine that starts with another one.
type Companion struct {
	Machine
	Health Health // how it tells that it is up
}

// Each is all machines of m, alone, in the order in which they start.
func (m Machine) Each() []Machine {
	first := m
	first.Besides, first.Starting = nil, nil
	out := []Machine{first}
	for _, c := range m.Besides {
		out = append(out, c.Machine)
	}
	return out
}

// Called is the names of all machines of m.
func (m Machine) Called() string {
	names := []string{m.Name}
	for _, c := range m.Besides {
		names = append(names, c.Name)
	}
	return called(names)
}

func called(names []string) string { return strings.Join(names, ", ") }

// Waits reports whether h, of m itself, or a companion's health is waited for.
func (m Machine) Waits(h Health) bool {
	return h.Wanted() || slices.ContainsFunc(m.Besides, func(c Companion) bool { return c.Health.Wanted() })
}

// distinct is nil if the machines of m have nothing in common: two that write to one disk
// would destroy it.
func (m Machine) distinct() error {
	names, dirs, volumes := map[string]bool{}, map[string]bool{}, map[string]string{}
	for _, one := range m.Each() {
		if names[one.Name] || dirs[one.Dir] {
			return fmt.Errorf("%w: two machines are called %q, or share directory %s", ErrMachine, one.Name, one.Dir)
		}
		names[one.Name], dirs[one.Dir] = true, true
		for _, v := range one.volumes() {
			if other, taken := volumes[v]; taken && other != one.Name {
				return fmt.Errorf("%w: volume %q is a disk of %s and of %s", ErrMachine, v, other, one.Name)
			}
			volumes[v] = one.Name
		}
	}
	return nil
}

// volumes are those that the definition of one machine names.
func (m Machine) volumes() []string {
	var out []string
	for _, d := range m.Disks {
		out = append(out, d.Volume)
	}
	for _, a := range m.Args {
		for _, hole := range blank.FindAllString(a, -1) {
			if kind, v, ok := strings.Cut(strings.Trim(hole, "{}"), ":"); ok && (kind == "disk" || kind == "uri") {
				out = append(out, v)
			}
		}
	}
	return out
}

// undoLimit bounds the end of each that was started in vain.
const undoLimit = 30 * time.Second

// ensureAll is Ensure of several. Nothing is started unless all can start. Where one does
// not start all the same, those that this call has started are ended again, and so is what
// may be left of it, which is ErrInVain where a guest had run; one that ran before goes on,
// for a guest that serves somebody is not ended because another one is missing.
func (m Machine) ensureAll(ctx context.Context, uris map[string]string) (*Running, error) {
	if err := m.CanStart(ctx, uris); err != nil {
		return nil, fmt.Errorf("%w: nothing was started", err)
	}
	if m.Starting != nil && !m.RunsWhole() {
		if err := m.Starting(); err != nil {
			return nil, err
		}
	}
	var up []*Running
	var ours []Machine
	vain := false
	for _, one := range m.Each() {
		_, was := one.Process()
		r, err := one.Ensure(ctx, uris)
		if err == nil && !r.Adopted || err != nil && errors.Is(was, ErrNotRunning) {
			ours = append(ours, one)
		}
		if err != nil {
			err = errors.Join(err, m.undo(ctx, ours, up))
			if vain {
				err = fmt.Errorf("%w: %w", ErrInVain, err)
			}
			return nil, err
		}
		vain = vain || !r.Adopted
		up = append(up, r)
	}
	first := up[0]
	first.Besides, first.machine = up[1:], m
	return first, nil
}

// undo ends what was started in vain, the last first, and says what is left.
func (m Machine) undo(ctx context.Context, ours []Machine, up []*Running) error {
	var errs []error
	for _, r := range up {
		errs = append(errs, r.Close())
	}
	for _, one := range slices.Backward(ours) {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
		errs = append(errs, one.End(ending))
		cancel()
	}
	var stay []string
	for _, one := range m.Each() {
		if _, err := one.Process(); !errors.Is(err, ErrNotRunning) {
			stay = append(stay, one.Name)
		}
	}
	if len(stay) > 0 {
		errs = append(errs, fmt.Errorf("%s ran before, or cannot be seen off, and goes on", called(stay)))
	} else {
		errs = append(errs, fmt.Errorf("of %s none is left running", m.Called()))
	}
	return errors.Join(errs...)
}

// attachAll is Attach of several: all of them run, or it is ErrNotRunning.
func (m Machine) attachAll(ctx context.Context) (*Running, error) {
	if err := m.validate(); err != nil {
		return nil, err
	}
	var up []*Running
	for _, one := range m.Each() {
		r, err := one.Attach(ctx)
		if err != nil {
			errs := []error{fmt.Errorf("machine %s: %w", one.Name, err)}
			for _, r := range up {
				errs = append(errs, r.Close())
			}
			return nil, errors.Join(errs...)
		}
		up = append(up, r)
	}
	first := up[0]
	first.Besides, first.machine = up[1:], m
	return first, nil
}

// processOfAny is Process of several: that of the first that runs. Where none is seen to
// run, one that cannot be seen off is an error.
func (m Machine) processOfAny() (int, error) {
	var unseen []error
	for _, one := range m.Each() {
		pid, err := one.Process()
		if err == nil {
			return pid, nil
		}
		if !errors.Is(err, ErrNotRunning) {
			unseen = append(unseen, fmt.Errorf("machine %s: %w", one.Name, err))
		}
	}
	if len(unseen) > 0 {
		return 0, errors.Join(unseen...)
	}
	return 0, fmt.Errorf("%w: %s", ErrNotRunning, m.Called())
}

// RunsWhole reports that every machine of m is seen to run.
func (m Machine) RunsWhole() bool {
	return !slices.ContainsFunc(m.Each(), func(one Machine) bool {
		_, err := one.Process()
		return err != nil
	})
}

// backward does something to each machine, the last first, and goes on where it fails.
func (m Machine) backward(do func(Machine) error) error {
	var errs []error
	for _, one := range slices.Backward(m.Each()) {
		errs = append(errs, do(one))
	}
	return errors.Join(errs...)
}

// isolateAll is Isolated of several: each has a directory of its own beside dir.
func (m Machine) isolateAll(dir string) (Machine, error) {
	var out Machine
	for i, one := range m.Each() {
		at := dir
		if i > 0 {
			at = fmt.Sprintf("%s.%d", dir, i)
		}
		x, err := one.Isolated(at)
		if err != nil {
			return Machine{}, err
		}
		if i == 0 {
			out = x
			continue
		}
		out.Besides = append(out.Besides, Companion{x, m.Besides[i-1].Health})
	}
	return out, nil
}

// lookAll is Look of several: the screen of the first that has one, and what each said.
func (m Machine) lookAll(ctx context.Context) Console {
	var out Console
	for _, one := range m.Each() {
		c := one.Look(ctx)
		if out.Picture == nil {
			out.Picture = c.Picture
		}
		if out.Why == "" {
			out.Why = c.Why
		}
		if c.Text != "" {
			out.Text += one.Name + ":\n" + c.Text + "\n"
		}
	}
	if out.Picture != nil {
		out.Why = ""
	}
	return out
}

// alone refuses what only one machine can be asked.
func (m Machine) alone() error {
	if len(m.Besides) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s are several: what is asked of a guest is asked of a group with one machine", ErrMachine, m.Called())
}

// healthyAll is Healthy of several, one after the other.
func (r *Running) healthyAll(ctx context.Context, h Health) (string, error) {
	all := append([]*Running{r.one()}, r.Besides...)
	var said []string
	for i, x := range all {
		if i > 0 {
			h = r.machine.Besides[i-1].Health
		}
		if !h.Wanted() {
			continue
		}
		line, err := x.Healthy(ctx, h)
		if err != nil {
			return called(said), err
		}
		said = append(said, x.Name+": "+line)
	}
	return called(said), nil
}

// one is r without what runs besides it.
func (r *Running) one() *Running {
	x := *r
	x.Besides, x.machine = nil, r.machine.Each()[0]
	return &x
}

// All is r and what runs besides it.
func (r *Running) All() []*Running { return append([]*Running{r}, r.Besides...) }

// Told is the processes, for people.
func (r *Running) Told() string {
	if len(r.Besides) == 0 {
		return fmt.Sprintf("process %d", r.PID)
	}
	var out []string
	for _, x := range r.All() {
		out = append(out, fmt.Sprintf("%s: process %d", x.Name, x.PID))
	}
	return called(out)
}

// AnyAdopted reports that one of the machines ran already.
func (r *Running) AnyAdopted() bool {
	return slices.ContainsFunc(r.All(), func(x *Running) bool { return x.Adopted })
}

// AnyStarted reports that one of the machines was started.
func (r *Running) AnyStarted() bool {
	return slices.ContainsFunc(r.All(), func(x *Running) bool { return !x.Adopted })
}
