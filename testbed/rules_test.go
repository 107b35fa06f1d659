package testbed

import (
	"fmt"
	"slices"
	"strings"
)

// The house, as DESIGN.md section 2 lays it out.

// nouns are the top-level directories, and the only ones.
var nouns = []string{"cli", "site", "replicator", "recovery", "journal", "cbt", "bench", "testbed"}

// rootFiles are the files beside them; names that begin with a dot are free.
var rootFiles = []string{"go.mod", "go.sum", "README.md"}

// sees are the directories that one may import from, besides itself.
// bench and testbed see all.
var sees = map[string][]string{
	"cli":        {"site", "replicator", "recovery", "journal", "cbt"},
	"site":       {"replicator", "recovery", "journal", "cbt"},
	"replicator": {"journal", "cbt"},
	"recovery":   {"journal", "cbt"},
	"journal":    {"cbt"},
	"cbt":        {},
}

// leaves of testbed import nothing of ours but each other, so that the tests of
// every package may import them without a circle.
var leaves = []string{"testbed/scale", "testbed/port", "testbed/loop", "testbed/stamp", "testbed/guest", "testbed/link", "testbed/tunnel", "testbed/libvirtd"}

// shown are the leaves that the demo of cli is made of.
var shown = []string{"testbed/stamp", "testbed/guest", "testbed/link"}

// pure leaves import the standard library alone: they are the oracle.
var pure = []string{"testbed/scale", "testbed/stamp"}

// confined third parties, and where each may be imported. bench and testbed may
// import any of them.
var confined = map[string][]string{
	"github.com/cockroachdb/pebble":      {"journal"},
	"github.com/quic-go/quic-go":         {"replicator"},
	"github.com/urfave/cli":              {"cli"},
	"github.com/digitalocean/go-libvirt": {"cbt/libvirt", "recovery/libvirt"},
	"github.com/prometheus":              {"site"},
	"go.etcd.io/etcd":                    {"recovery/witness"},
	"github.com/minio/minio-go":          {"journal/archive"},
	"github.com/goccy/go-yaml":           {"site", "recovery"},
	"github.com/pierrec/lz4":             {"journal", "replicator"},
	"github.com/zeebo/blake3":            {"journal", "replicator"},
}

// free third parties may be imported anywhere.
var free = []string{"golang.org/x", "github.com/robfig/cron", "github.com/coreos/go-systemd"}

// forTests may be imported by tests, by packages named …test, and by bench and testbed.
var forTests = []string{
	"github.com/google/go-cmp", "pgregory.net/rapid", "go.uber.org/goleak",
	"github.com/rogpeppe/go-internal", "github.com/anishathalye/porcupine",
}

// oursRule says why f may not import our directory imported, or nothing.
func oursRule(f file, imported string) string {
	from, to := home(f.dir), home(imported)
	leaf := withinAny(f.dir, leaves)
	switch {
	case to == "":
		return "it is not in the house"
	case leaf && !withinAny(imported, leaves):
		return "a leaf of testbed imports nothing of ours but leaves"
	case from == "testbed" || from == "bench" || from == to:
		return ""
	case to == "testbed" && f.isTest() && withinAny(imported, leaves):
		return ""
	case to == "testbed" && from == "cli" && slices.Contains(shown, imported):
		return ""
	case to == "bench" && from == "cli":
		return "" // `bench NOUN` runs the engines that bench holds
	case to == "testbed" || to == "bench":
		return fmt.Sprintf("only tests (leaves: %s), the demo of cli (%s), testbed and bench may",
			strings.Join(leaves, " "), strings.Join(shown, " "))
	case !slices.Contains(sees[from], to):
		return fmt.Sprintf("imports go cli → site → {replicator, recovery} → journal → cbt; %s does not see %s", from, to)
	}
	return ""
}

// theirsRule says why f may not import the third party imported, or nothing.
func theirsRule(f file, imported string) string {
	if withinAny(f.dir, pure) {
		return "an oracle imports the standard library alone"
	}
	from := home(f.dir)
	sandbox := from == "testbed" || from == "bench"
	for party, dirs := range confined {
		if within(imported, party) {
			if sandbox || withinAny(f.dir, dirs) {
				return ""
			}
			return fmt.Sprintf("%s is confined to %s", party, strings.Join(dirs, ", "))
		}
	}
	switch {
	case withinAny(imported, free):
		return ""
	case withinAny(imported, forTests):
		if sandbox || f.isTest() || strings.HasSuffix(f.dir, "test") {
			return ""
		}
		return "it is for tests"
	}
	return "it is not among the dependencies of DESIGN.md; choose it there first"
}

// allowedAtRoot reports whether an entry belongs in the root; what .gitignore
// names does not count.
func allowedAtRoot(name string, isDir bool) bool {
	switch {
	case strings.HasPrefix(name, "."), name == "bin" && isDir:
		return true
	case strings.HasSuffix(name, ".test"), strings.HasSuffix(name, ".prof"):
		return !isDir
	case isDir:
		return slices.Contains(nouns, name)
	}
	return slices.Contains(rootFiles, name)
}
