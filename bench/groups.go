package bench

import (
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// groups is a file system that notes in which portions a journal's stream reaches
// the disk: how many bytes are written to segments between one sync and the next, or
// handed to the kernel to be written and synced at once.
// Those are the groups that the raw baseline writes again. It changes nothing.
type groups struct {
	vfs.FS

	mu   sync.Mutex // guards all below
	open int64
	list []int64
}

func newGroups() *groups { return &groups{FS: vfs.Default} }

func (g *groups) wrote(n int) {
	g.mu.Lock()
	g.open += int64(n)
	g.mu.Unlock()
}

func (g *groups) syncs() {
	g.mu.Lock()
	if g.open > 0 {
		g.list = append(g.list, g.open)
		g.open = 0
	}
	g.mu.Unlock()
}

// take is the groups since the last call.
func (g *groups) take() []int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := g.list
	g.list, g.open = nil, 0
	return out
}

func total(groups []int64) int64 {
	var n int64
	for _, g := range groups {
		n += g
	}
	return n
}

// OpenReadWrite is how segments are opened for writing.
func (g *groups) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := g.FS.OpenReadWrite(name, c, opts...)
	if err == nil && strings.Contains(name, "/segments/") {
		f = groupFile{f, g}
	}
	return f, err
}

type groupFile struct {
	vfs.File
	g *groups
}

func (f groupFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(p, off)
	f.g.wrote(n)
	return n, err
}

// Passed is told of a group that is written and synced at once.
func (f groupFile) Passed(n int64) {
	f.g.wrote(int(n))
	f.g.syncs()
}

func (f groupFile) Sync() error {
	f.g.syncs()
	return f.File.Sync()
}

func (f groupFile) SyncData() error {
	f.g.syncs()
	return f.File.SyncData()
}
