package site

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/fault"
)

// Histories that a rejoin set aside lie beside the groups, as NAME@1, NAME@2 and so on:
//
//	groups/TENANT/NAME        the group's journal
//	aside/TENANT/NAME/1       a journal that was that before
//	aside/TENANT/NAME/next    one that is being made, or is to be the group's
//	aside/TENANT/NAME/order   durable: "next" is whole; N is what the group's becomes
//
// An order is carried out before the journal is opened, in two renames; whatever is there
// after a crash says how far it came. Without an order, next is of no use.

const asideMark = "@"

// asideOrder is what the file "order" holds.
type asideOrder struct {
	As int `json:"as"`
}

func (g *group) asideRoot() string {
	return filepath.Join(g.site.cfg.Data, "aside", g.cfg.Tenant, g.cfg.Name)
}
func (g *group) nextDir() string   { return filepath.Join(g.asideRoot(), "next") }
func (g *group) orderFile() string { return filepath.Join(g.asideRoot(), "order") }

// asideDir is where the history of a name lies.
func (g *group) asideDir(name string) string {
	_, n, _ := strings.Cut(name, asideMark)
	return filepath.Join(g.asideRoot(), n)
}

// asides are the numbers of what was set aside, as there are.
func (g *group) asides() ([]int, error) {
	entries, err := os.ReadDir(g.asideRoot())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Wrap(fault.FileTrouble, "list "+g.asideRoot(), err)
	}
	var out []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil && n > 0 && e.IsDir() {
			out = append(out, n)
		}
	}
	return out, nil
}

// nextAside is the name that is free.
func (g *group) nextAside() (string, error) {
	all, err := g.asides()
	next := 1
	for _, n := range all {
		next = max(next, n+1)
	}
	return g.cfg.Name + asideMark + strconv.Itoa(next), err
}

// orderAside makes it durable that next is to be the group's journal, and the one that
// is gets a name.
func (g *group) orderAside(name string) error {
	n, err := strconv.Atoi(strings.TrimPrefix(name, g.cfg.Name+asideMark))
	if err != nil {
		return fmt.Errorf("set %s aside as %q: %w", g.cfg.Ref(), name, err)
	}
	text, err := json.Marshal(asideOrder{As: n})
	if err != nil {
		return err
	}
	if err := syncParent(g.nextDir()); err != nil {
		return fault.Wrap(fault.FileTrouble, "set "+g.cfg.Ref()+" aside", err)
	}
	if err := writeWhole(g.orderFile(), func(w io.Writer) error { _, err := w.Write(text); return err }); err != nil {
		return fault.Wrap(fault.FileTrouble, "set "+g.cfg.Ref()+" aside", err)
	}
	return nil
}

// setAside carries an order out, if there is one. The journal is not open.
func (g *group) setAside() error {
	what := "set " + g.cfg.Ref() + " aside"
	text, err := os.ReadFile(g.orderFile())
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.RemoveAll(g.nextDir()); err != nil {
			return fault.Wrap(fault.FileTrouble, "remove "+g.nextDir(), err)
		}
		return nil
	}
	var o asideOrder
	if err == nil {
		err = json.Unmarshal(text, &o)
	}
	if err == nil && o.As < 1 {
		err = fmt.Errorf("%s says %q", g.orderFile(), text)
	}
	if err != nil {
		return fault.Wrap(fault.FileTrouble, what, err)
	}
	if _, err := os.Stat(g.nextDir()); err == nil {
		old := filepath.Join(g.asideRoot(), strconv.Itoa(o.As))
		if _, err := os.Stat(old); errors.Is(err, fs.ErrNotExist) {
			if err := errors.Join(os.Rename(g.dir, old), syncParent(old), syncParent(g.dir)); err != nil {
				return fault.Wrap(fault.FileTrouble, what, err)
			}
			g.site.o.passes("old journal set aside")
		}
		if err := errors.Join(os.Rename(g.nextDir(), g.dir), syncParent(g.dir), syncParent(g.nextDir())); err != nil {
			return fault.Wrap(fault.FileTrouble, what, err)
		}
		g.site.o.passes("new journal put in place")
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(fault.FileTrouble, what, err)
	}
	if err := errors.Join(os.Remove(g.orderFile()), syncParent(g.orderFile())); err != nil {
		return fault.Wrap(fault.FileTrouble, what, err)
	}
	g.site.o.Log.Warn("history was set aside", "group", g.cfg.Ref(), "as", g.cfg.Name+asideMark+strconv.Itoa(o.As))
	return nil
}

// asideOf is a history that was set aside, as a group that can be read and nothing else.
func (s *Site) asideOf(name string) (*group, error) {
	of, number, _ := strings.Cut(name, asideMark)
	g, err := s.group(of)
	if err != nil {
		return nil, err
	}
	n, err := strconv.Atoi(number)
	dir := filepath.Join(g.asideRoot(), number)
	if err == nil && n > 0 {
		_, err = os.Stat(dir)
	}
	if err != nil || n < 1 {
		return nil, fault.New(fault.GroupUnknown, "find group "+name, "no history of that name was set aside")
	}
	c := g.cfg
	c.Name += asideMark + strconv.Itoa(n)
	c.Role, c.Peers, c.Relay, c.Machine = config.Replica, nil, nil, nil
	p := newGroup(s, c)
	p.dir, p.id, p.aside = dir, g.id, true
	p.failure = fault.New(fault.RoleForbids, "use group "+name, "it was set aside by a rejoin, and can be read alone")
	return p, nil
}
