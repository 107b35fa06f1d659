package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/journal"
)

// JournalOptions describe a run. The zero value takes 30 s a size on an image of
// 1 GiB, in a temporary directory below the working directory.
type JournalOptions struct {
	Dir        string        // a directory is made below it, and removed; default: the working directory
	Span       time.Duration // of our side of each size of writes; default 30 s
	ImageBytes int64         // of the volume that is read and materialised; default 1 GiB
	Records    int           // of the journal whose opening is timed; default 1,000,000
	Versions   int           // how often the image is rewritten; default 10
	Quick      bool          // a few short rounds on small files: it shows that all works, and little else
	Only       string        // a part of the names of the figures wanted; empty: all
	Seed       uint64        // 0: drawn
	rounds     int           // of each comparison; default 5
	pool       int64         // bytes that a journal has written ahead at least; default 512 MiB
	// Child begins this program once more with JournalChild as its whole work on
	// dir: it is killed while it writes. Nil leaves the opening out.
	Child func(ctx context.Context, dir string) *exec.Cmd
	// Progress, which may be nil, hears of every round that begins; of rounds.
	Progress func(step string, n, of int)
}

// JournalResult is what `bench journal -o json` prints.
type JournalResult struct {
	Figures map[string]Figure
	Setting Setting
}

// Setting is where and how a run was made.
type Setting struct {
	Seconds    float64 `json:"seconds_per_size"`
	ImageBytes int64   `json:"image_bytes"`
	Versions   int     `json:"versions"`
	Seed       uint64  `json:"seed"`
	CPUs       int     `json:"cpus"`
	Kernel     string  `json:"kernel"`
	Go         string  `json:"go"`
	Dir        string  `json:"dir"`
	InMemory   bool    `json:"in_memory_file_system"` // the figures say nothing about a disk then
	Direct     bool    `json:"o_direct"`
	WrittenBy  string  `json:"written_bytes_of"`
	CacheBy    string  `json:"page_cache_dropped_by"`
	Took       float64 `json:"run_seconds"`
}

func (o JournalOptions) withDefaults() JournalOptions {
	if o.Dir == "" {
		o.Dir = "."
	}
	if o.Quick {
		o.Span, o.ImageBytes, o.Records, o.rounds, o.pool = 3*time.Second, 128<<20, 100_000, 3, 64<<20
	}
	if o.Span == 0 {
		o.Span = 30 * time.Second
	}
	if o.ImageBytes == 0 {
		o.ImageBytes = 1 << 30
	}
	if o.Records == 0 {
		o.Records = 1_000_000
	}
	if o.rounds == 0 {
		o.rounds = 5
	}
	if o.pool == 0 {
		o.pool = 512 << 20
	}
	if o.Versions == 0 {
		o.Versions = 10
	}
	if o.Seed == 0 {
		o.Seed = uint64(time.Now().UnixNano())
	}
	if o.Progress == nil {
		o.Progress = func(string, int, int) {}
	}
	return o
}

func (o JournalOptions) validate() error {
	switch {
	case o.Span < 0:
		return fmt.Errorf("%v a size", o.Span)
	case o.ImageBytes < 16<<20 || o.ImageBytes%(1<<20) != 0:
		return fmt.Errorf("image of %d bytes: want a multiple of 1 MiB from 16 MiB", o.ImageBytes)
	case len(FiguresWith(o.Only)) == 0:
		return fmt.Errorf("no figure has %q in its name", o.Only)
	case o.Records < 1 || o.Versions < 2:
		return fmt.Errorf("%d records, %d versions: want at least 1 and 2", o.Records, o.Versions)
	}
	return nil
}

// journalRun is a run under way.
type journalRun struct {
	o      JournalOptions
	disk   disk
	random *rand.ChaCha8
	rng    *rand.Rand
	stock  []byte
	firsts map[string][]time.Duration // to the first byte of views, by figure
	res    JournalResult
}

func (r *journalRun) progress(step string, n, of int) { r.o.Progress(step, n+1, of) }

// Journal measures a journal beside the raw device: see doc.go.
func Journal(ctx context.Context, o JournalOptions) (res JournalResult, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("bench journal: %w", err)
		}
	}()
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return JournalResult{}, err
	}
	dir, err := os.MkdirTemp(o.Dir, "afterimage-bench-")
	if err != nil {
		return JournalResult{}, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	r := &journalRun{o: o, firsts: make(map[string][]time.Duration)}
	if r.disk, err = diskOf(dir); err != nil {
		return JournalResult{}, err
	}
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], o.Seed)
	r.random = rand.NewChaCha8(seed)
	r.rng = rand.New(r.random)
	r.stock = newStock(r.random)
	r.res = JournalResult{Figures: make(map[string]Figure), Setting: r.setting()}
	start := time.Now()
	err = r.all(ctx)
	r.res.Setting.Took = time.Since(start).Seconds()
	return r.res, err
}

func (r *journalRun) setting() Setting {
	var u unix.Utsname
	_ = unix.Uname(&u) // it fails only for a bad pointer
	return Setting{
		Seconds: r.o.Span.Seconds(), ImageBytes: r.o.ImageBytes, Versions: r.o.Versions, Seed: r.o.Seed,
		CPUs: runtime.GOMAXPROCS(0), Kernel: unix.ByteSliceToString(u.Release[:]), Go: runtime.Version(),
		Dir: r.o.Dir, InMemory: r.disk.inRAM, Direct: r.disk.direct, WrittenBy: r.disk.counter(), CacheBy: r.disk.dropper(),
	}
}

// look is whether payloads lie open in the journal, or sealed.
type look struct {
	suffix string // of the figures' names
	keys   journal.KeyRing
}

// looks is both, the sealed one under a key of this run.
func (r *journalRun) looks() ([]look, error) {
	key := make([]byte, 32)
	_, _ = r.random.Read(key) // it always fills
	ring := new(journal.Keys)
	if err := ring.Add("bench", key); err != nil {
		return nil, err
	}
	return []look{{}, {sealedSuffix, ring}}, nil
}

// wants reports that one of names is asked for, in this look.
func (r *journalRun) wants(l look, names ...string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return strings.Contains(n+l.suffix, r.o.Only) })
}

// all measures what is wanted, part by part; each leaves the disk as it found it.
func (r *journalRun) all(ctx context.Context) error {
	looks, err := r.looks()
	if err != nil {
		return err
	}
	for _, s := range shapes {
		for _, l := range looks {
			if r.wants(l, s.figures()...) {
				if err := r.ingest(ctx, s, l); err != nil {
					return err
				}
			}
		}
	}
	if err := r.opening(ctx); err != nil {
		return err
	}
	for _, l := range looks {
		if err := r.past(ctx, l); err != nil {
			return err
		}
		if err := r.foldedPast(ctx, l); err != nil {
			return err
		}
	}
	return nil
}
