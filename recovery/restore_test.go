package recovery

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/testbed/scale"
)

// restorable is a journal with one volume, what the volume reads as at "wanted", and
// a write after that.
func restorable(t testing.TB) (*journal.View, cbt.Volume, []byte) {
	rng := seeded(t)
	j := open(t, t.TempDir(), newIdentity())
	t.Cleanup(func() { j.close(t) })
	v := volume("data", 24<<20)
	w := begin(t, j, "a")
	synced(t, w, v)
	content := make([]byte, v.Size)
	for range 60 {
		off := rng.Int64N(v.Size/cbt.SectorBytes-400) * cbt.SectorBytes
		p := fill(rng, (1+rng.Int64N(400))*cbt.SectorBytes)
		if rng.IntN(6) == 0 {
			clear(p)
		}
		write(t, w, v, off, p)
		copy(content[off:], p)
	}
	_, err := w.Mark(testContext(t), journal.Mark{Name: "wanted"})
	must(t, err)
	write(t, w, v, 0, fill(rng, 1<<20))
	return view(t, j.Journal, "name:wanted"), v, content
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestRestoreRaw(t *testing.T) {
	vw, v, content := restorable(t)
	sum := sha256.Sum256(content)
	for _, sparse := range []bool{false, true} {
		dir := t.TempDir()
		target := filepath.Join(dir, "disk.raw")
		last := map[string]int64{}
		r, err := Restore(testContext(t), vw, v, target, RestoreOptions{Sparse: sparse, Progress: func(step string, done, total int64) {
			if done < last[step] || total != v.Size {
				t.Errorf("%s goes from %d to %d of %d", step, last[step], done, total)
			}
			last[step] = done
		}})
		must(t, err)
		got, err := os.ReadFile(target)
		must(t, err)
		if !bytes.Equal(got, content) {
			t.Fatal("the file is not the point")
		}
		if r.SHA256 != hex.EncodeToString(sum[:]) || last["write"] != v.Size || last["verify"] != v.Size {
			t.Errorf("restored %+v, progress %v", r, last)
		}
		var st syscall.Stat_t
		must(t, syscall.Stat(target, &st))
		if full := st.Blocks*512 >= v.Size; full == sparse {
			t.Errorf("sparse %v: %d of %d bytes are allocated", sparse, st.Blocks*512, v.Size)
		}
		if n := names(t, dir); len(n) != 1 {
			t.Errorf("left in the directory: %v", n)
		}
	}
}

func TestRestoreNeverOverwritesUnasked(t *testing.T) {
	vw, v, content := restorable(t)
	dir := t.TempDir()
	target := filepath.Join(dir, "disk.raw")
	must(t, os.WriteFile(target, []byte("mine"), 0o600))
	if _, err := Restore(testContext(t), vw, v, target, RestoreOptions{}); !errors.Is(err, ErrExists) {
		t.Fatalf("restore over a file: %v", err)
	}
	if _, err := Restore(testContext(t), vw, v, dir, RestoreOptions{Overwrite: true}); !errors.Is(err, ErrNotRegular) {
		t.Fatalf("restore over a directory: %v", err)
	}
	// It comes while the restore runs.
	late := filepath.Join(dir, "late.raw")
	_, err := Restore(testContext(t), vw, v, late, RestoreOptions{Progress: func(step string, done, _ int64) {
		if step == "verify" && done == v.Size {
			must(t, os.WriteFile(late, []byte("mine"), 0o600))
		}
	}})
	if !errors.Is(err, ErrExists) {
		t.Fatalf("restore over a file that came late: %v", err)
	}
	for _, path := range []string{target, late} {
		if b, _ := os.ReadFile(path); string(b) != "mine" {
			t.Errorf("%s was overwritten", path)
		}
	}
	_, err = Restore(testContext(t), vw, v, target, RestoreOptions{Overwrite: true})
	must(t, err)
	if b, _ := os.ReadFile(target); !bytes.Equal(b, content) {
		t.Error("overwrite did not")
	}
	if n := names(t, dir); len(n) != 2 {
		t.Errorf("left in the directory: %v", n)
	}
}

// A restore that is cancelled, at any of its pieces, or that reads something else
// back, leaves nothing behind.
func TestRestoreLeavesNothing(t *testing.T) {
	vw, v, _ := restorable(t)
	for _, step := range []string{"write", "verify"} {
		for _, part := range []int64{1, 2, 4} {
			dir := t.TempDir()
			ctx, cancel := context.WithCancel(context.Background())
			_, err := Restore(ctx, vw, v, filepath.Join(dir, "disk.raw"), RestoreOptions{Sparse: true, Progress: func(s string, done, total int64) {
				if s == step && done >= total*part/4 {
					cancel()
				}
			}})
			cancel()
			if !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled in %s: %v", step, err)
			}
			if n := names(t, dir); len(n) > 0 {
				t.Errorf("cancelled in %s at %d/4: left %v", step, part, n)
			}
		}
	}
	dir := t.TempDir()
	_, err := Restore(testContext(t), vw, v, filepath.Join(dir, "disk.raw"), RestoreOptions{Progress: func(s string, done, total int64) {
		if s == "write" && done == total {
			hidden, err := os.OpenFile(filepath.Join(dir, names(t, dir)[0]), os.O_WRONLY, 0)
			must(t, err)
			defer hidden.Close()
			_, err = hidden.WriteAt([]byte{0xff, 0, 0xff}, v.Size/2)
			must(t, err)
		}
	}})
	if !errors.Is(err, ErrDiffers) || len(names(t, dir)) > 0 {
		t.Errorf("a byte that changed on its way: %v, left %v", err, names(t, dir))
	}
}

func TestRestoreQCOW2(t *testing.T) {
	scale.Tools(t, "qemu-img")
	vw, v, content := restorable(t)
	dir := t.TempDir()
	raw, target := filepath.Join(dir, "content.raw"), filepath.Join(dir, "disk.qcow2")
	must(t, os.WriteFile(raw, content, 0o600))
	r, err := Restore(testContext(t), vw, v, target, RestoreOptions{Format: QCOW2})
	must(t, err)
	if out, err := exec.Command("qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, target).CombinedOutput(); err != nil {
		t.Errorf("qemu-img compare: %v: %s", err, out)
	}
	if sum := sha256.Sum256(content); r.SHA256 != hex.EncodeToString(sum[:]) {
		t.Errorf("sum %s", r.SHA256)
	}
	if n := names(t, dir); len(n) != 2 {
		t.Errorf("left in the directory: %v", n)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Restore(ctx, vw, v, filepath.Join(dir, "no.qcow2"), RestoreOptions{Format: QCOW2}); !errors.Is(err, context.Canceled) || len(names(t, dir)) != 2 {
		t.Errorf("cancelled: %v, left %v", err, names(t, dir))
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := Restore(testContext(t), vw, v, filepath.Join(dir, "no.qcow2"), RestoreOptions{Format: QCOW2}); !errors.Is(err, ErrNoTool) || len(names(t, dir)) != 2 {
		t.Errorf("without qemu-img: %v, left %v", err, names(t, dir))
	}
}
