package testbed

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// module is the import path of the tree's root.
const module = "github.com/novacron/afterimage"

// file is one Go file's imports; dir is slash-separated, relative to the root.
type file struct {
	dir     string
	name    string
	imports []string
}

func (f file) isTest() bool { return strings.HasSuffix(f.name, "_test.go") }

func TestTheTreeIsTheArchitecture(t *testing.T) {
	files := readTree(t, "..")
	if len(files) == 0 {
		t.Fatal("no Go files found")
	}
	for _, f := range files {
		for _, v := range violations(f) {
			t.Error(v)
		}
	}
	t.Logf("%d files", len(files))
}

func TestOnlyTheNamedDirectories(t *testing.T) {
	entries, err := os.ReadDir("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !allowedAtRoot(e.Name(), e.IsDir()) {
			t.Errorf("%s does not belong in the root: DESIGN.md, \"The house\"", e.Name())
		}
	}
}

// readTree parses the imports of every Go file below root, whatever its build tags.
func readTree(t *testing.T, root string) []file {
	t.Helper()
	var files []file
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); p != root && (strings.HasPrefix(name, ".") || name == "testdata") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		f := file{dir: path.Dir(filepath.ToSlash(rel)), name: d.Name()}
		for _, spec := range parsed.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			f.imports = append(f.imports, imported)
		}
		files = append(files, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestTheGraphCanBeBroken plants one violation of every rule, and beside each what
// the rule must let through.
func TestTheGraphCanBeBroken(t *testing.T) {
	ours := func(dir string) string { return module + "/" + dir }
	for _, c := range []struct {
		dir, name, imported string
		broken              bool
	}{
		{"cli/afterimage", "main.go", ours("site"), false},
		{"site", "site.go", ours("replicator"), false},
		{"site", "site.go", ours("recovery/libvirt"), false},
		{"site", "site.go", ours("cli/afterimage"), true},
		{"site", "site_test.go", ours("cli/afterimage"), true},
		{"replicator", "sender.go", ours("journal"), false},
		{"replicator", "sender.go", ours("cbt"), false},
		{"replicator", "sender.go", ours("recovery"), true},
		{"recovery", "plan.go", ours("replicator"), true},
		{"recovery/libvirt", "domain.go", ours("replicator/wire"), true},
		{"recovery", "plan_test.go", ours("replicator"), true},
		{"replicator", "sender.go", ours("site"), true},
		{"journal", "journal.go", ours("cbt"), false},
		{"journal", "journal.go", ours("recovery"), true},
		{"journal/archive", "store.go", ours("journal"), false},
		{"cbt", "cbt.go", ours("journal"), true},
		{"cbt/qemu", "tap.go", ours("cbt/nbd"), false},
		{"cbt/qemu", "tap_test.go", ours("journal"), true},
		{"cbt/qemu", "tap.go", ours("testbed/stamp"), true},
		{"cbt/qemu", "tap_test.go", ours("testbed/guest"), false},
		{"cbt/qemu", "tap_test.go", ours("testbed"), true},
		{"cbt/cbttest", "suite.go", ours("testbed/scale"), true},
		{"cli/afterimage", "demo.go", ours("testbed/stamp"), false},
		{"cli/afterimage", "demo.go", ours("testbed/link"), false},
		{"cli/afterimage", "demo.go", ours("testbed/guest"), false},
		{"cli/afterimage", "demo.go", ours("testbed/scale"), true},
		{"cli/afterimage", "demo.go", ours("testbed/world"), true},
		{"cli/afterimage", "bench.go", ours("bench"), false},
		{"site", "bench.go", ours("bench"), true},
		{"site", "demo.go", ours("testbed/stamp"), true},
		{"journal", "journal_test.go", ours("bench"), true},
		{"bench", "rpo.go", ours("site"), false},
		{"bench", "rpo.go", ours("testbed/world"), false},
		{"testbed/world", "world.go", ours("cli/afterimage"), false},
		{"testbed/stamp", "stamp.go", ours("cbt"), true},
		{"testbed/guest", "guest_test.go", ours("cbt/qmp"), true},
		{"testbed/guest/init", "main.go", ours("testbed/stamp"), false},
		{"testbed/stamp", "stamp.go", ours("testbed/world"), true},
		{"testbed/stamp", "stamp.go", "golang.org/x/sys/unix", true},
		{"daemon", "main.go", ours("site"), true},
		{".", "main.go", "fmt", true},

		{"journal", "index.go", "github.com/cockroachdb/pebble/v2", false},
		{"journal", "index.go", "github.com/cockroachdb/pebble/v2/vfs", false},
		{"site", "site.go", "github.com/cockroachdb/pebble/v2", true},
		{"replicator", "quic.go", "github.com/quic-go/quic-go", false},
		{"site", "site.go", "github.com/quic-go/quic-go", true},
		{"replicator", "quic_test.go", "github.com/cockroachdb/pebble/v2", true},
		{"cli/afterimage", "main.go", "github.com/urfave/cli/v2", false},
		{"site", "site.go", "github.com/urfave/cli/v2", true},
		{"cbt/libvirt", "domain.go", "github.com/digitalocean/go-libvirt", false},
		{"recovery/libvirt", "domain.go", "github.com/digitalocean/go-libvirt", false},
		{"recovery", "plan.go", "github.com/digitalocean/go-libvirt", true},
		{"cbt/libvirtual", "domain.go", "github.com/digitalocean/go-libvirt", true},
		{"site", "metrics.go", "github.com/prometheus/client_golang/prometheus", false},
		{"journal", "metrics.go", "github.com/prometheus/client_golang/prometheus", true},
		{"recovery/witness", "lease.go", "go.etcd.io/etcd/client/v3", false},
		{"recovery", "lease.go", "go.etcd.io/etcd/client/v3", true},
		{"journal/archive/s3", "store.go", "github.com/minio/minio-go/v7", false},
		{"journal", "store.go", "github.com/minio/minio-go/v7", true},
		{"recovery", "runbook.go", "github.com/goccy/go-yaml", false},
		{"cli/afterimage", "main.go", "github.com/goccy/go-yaml", true},
		{"replicator", "wire.go", "github.com/pierrec/lz4/v4", false},
		{"journal", "chain.go", "github.com/zeebo/blake3", false},
		{"cbt", "cbt.go", "github.com/zeebo/blake3", true},
		{"bench", "raw.go", "github.com/cockroachdb/pebble/v2", false},
		{"testbed/world", "world.go", "github.com/quic-go/quic-go", false},
		{"site", "daemon.go", "golang.org/x/sync/errgroup", false},
		{"site", "schedule.go", "github.com/robfig/cron/v3", false},
		{"journal", "journal_test.go", "pgregory.net/rapid", false},
		{"journal", "journal.go", "pgregory.net/rapid", true},
		{"cbt/cbttest", "suite.go", "github.com/google/go-cmp/cmp", false},
		{"journal", "journal.go", "github.com/unknown/thing", true},
		{"journal", "journal_test.go", "github.com/unknown/thing", true},
		{"bench", "raw.go", "github.com/unknown/thing", true},
		{"journal", "journal.go", "C", true},
	} {
		f := file{dir: c.dir, name: c.name, imports: []string{c.imported}}
		if got := violations(f); (len(got) > 0) != c.broken {
			t.Errorf("%s/%s importing %s: %v, want broken %v", c.dir, c.name, c.imported, got, c.broken)
		}
	}
	for _, c := range []struct {
		name  string
		isDir bool
		want  bool
	}{
		{"cbt", true, true}, {"README.md", false, true}, {".ci", true, true}, {"go.sum", false, true},
		{"pkg", true, false}, {"Makefile", false, false}, {"cbt", false, false}, {"go.mod", true, false}, {"docs", true, false},
	} {
		if got := allowedAtRoot(c.name, c.isDir); got != c.want {
			t.Errorf("%s at the root (directory %v): allowed %v, want %v", c.name, c.isDir, got, c.want)
		}
	}
}

// violations are the rules of rules_test.go that f breaks.
func violations(f file) []string {
	var out []string
	say := func(imported, why string) {
		out = append(out, fmt.Sprintf("%s/%s imports %q: %s", f.dir, f.name, imported, why))
	}
	if home(f.dir) == "" {
		out = append(out, fmt.Sprintf("%s/%s lies in none of the directories %s", f.dir, f.name, strings.Join(nouns, " ")))
		return out
	}
	for _, imported := range f.imports {
		first, _, _ := strings.Cut(imported, "/")
		why := ""
		switch {
		case imported == module || strings.HasPrefix(imported, module+"/"):
			why = oursRule(f, strings.TrimPrefix(strings.TrimPrefix(imported, module), "/"))
		case imported == "C":
			why = "the release is one static binary"
		case strings.Contains(first, "."):
			why = theirsRule(f, imported)
		}
		if why != "" {
			say(imported, why)
		}
	}
	return out
}

// home is the top-level directory of dir, if it is one of nouns.
func home(dir string) string {
	top, _, _ := strings.Cut(dir, "/")
	if slices.Contains(nouns, top) {
		return top
	}
	return ""
}

// within reports whether dir is tree or lies below it.
func within(dir, tree string) bool { return dir == tree || strings.HasPrefix(dir, tree+"/") }

func withinAny(dir string, trees []string) bool {
	return slices.ContainsFunc(trees, func(tree string) bool { return within(dir, tree) })
}
