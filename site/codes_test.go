package site

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/fault"
)

// sentinels reads the names of exported error variables from a package's source.
func sentinels(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, e.Name()), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR {
				continue
			}
			for _, spec := range g.Specs {
				for _, n := range spec.(*ast.ValueSpec).Names {
					if strings.HasPrefix(n.Name, "Err") {
						names = append(names, n.Name)
					}
				}
			}
		}
	}
	return names
}

func TestEverySentinelHasACode(t *testing.T) {
	src, err := os.ReadFile("errors.go")
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, dir := range []string{"journal", "replicator", "recovery", "recovery/runbook", "recovery/evidence", "recovery/fence", "cbt/qemu", "cbt/libvirt", "cbt/embedded"} {
		names := sentinels(t, filepath.Join("..", dir))
		if len(names) == 0 {
			t.Errorf("%s: no sentinels found", dir)
		}
		for _, n := range names {
			count++
			if row := fmt.Sprintf("{%s.%s, fault.", filepath.Base(dir), n); !strings.Contains(string(src), row) {
				t.Errorf("%s.%s has no code", dir, n)
			}
		}
	}
	t.Logf("%d sentinels", count)
}

func TestExplain(t *testing.T) {
	for _, c := range []struct {
		err  error
		code fault.Code
		exit int
	}{
		{fmt.Errorf("x: %w", journal.ErrLocked), fault.JournalLocked, fault.ExitBusy},
		{&journal.DamageError{Hop: "read"}, fault.JournalDamage, fault.ExitVerification},
		{&journal.NoPointError{At: "#9", Before: &journal.Point{Number: 3}}, fault.PointUnknown, fault.ExitNotFound},
		{&replicator.PinError{Peer: "b", Expected: make([]replicator.Pin, 1)}, fault.PeerPin, fault.ExitKey},
		{&replicator.Conflict{}, fault.PeerDiverged, fault.ExitSplitBrain},
		{&replicator.Conflict{Cause: replicator.ErrHistoryLost}, fault.HistoryLost, fault.ExitVerification},
		{recovery.ErrUnfenced, fault.NotFenced, fault.ExitSplitBrain},
		{journal.ErrFull, fault.JournalFull, fault.ExitFailed},
		{&fs.PathError{Op: "open", Path: "/x", Err: syscall.EACCES}, fault.FileTrouble, fault.ExitFailed},
		{errors.New("boom"), fault.Unexpected, fault.ExitFailed},
		{fault.New(fault.AtSyntax, "a", "b"), fault.AtSyntax, fault.ExitUsage},
	} {
		f := fault.Of(explain("do it", c.err))
		if f.Code != c.code || f.Exit() != c.exit {
			t.Errorf("%v: code %s, exit %d; want %s, %d", c.err, f.Code, f.Exit(), c.code, c.exit)
		}
		if !errors.Is(f, c.err) && f.Code != fault.AtSyntax {
			t.Errorf("%v: the cause is lost", c.err)
		}
	}
	if explain("x", nil) != nil {
		t.Error("nil became an error")
	}
	if f := fault.Of(explain("x", &journal.NoPointError{Before: &journal.Point{Number: 3}})); !strings.Contains(f.Advice(), "#3.0") {
		t.Errorf("the nearest point is not named: %q", f.Advice())
	}
}

func TestCheckAt(t *testing.T) {
	for _, at := range []string{"latest", "latest-app", "-5m", "-7d", "-1w12h", "2026-11-22T10:00:00+01:00", "name:x", "before:x", "#7", "#2.7"} {
		if err := CheckAt(at); err != nil {
			t.Errorf("%s: %v", at, err)
		}
	}
	for _, at := range []string{"", "yesterday", "5m", "-", "-7", "--7d", "#", "#x", "name:", "2026-11-22"} {
		if err := CheckAt(at); !fault.Is(err, fault.AtSyntax) {
			t.Errorf("%q: %v", at, err)
		}
	}
}
