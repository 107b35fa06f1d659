package site

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// A replica begins with a seed that came on a disk; then only what was written since
// crosses the link. A seed that is not as it was made is refused, and so is one that
// comes too late, or to the primary.
func TestSeedIsCarriedToThePeer(t *testing.T) {
	t.Parallel()
	w, ctx := newWorld(t), context.Background()
	ca, cb := w.pair("", "")
	ca.Peers[0].Address = cb.Listen
	a := w.run(ca)
	a.awaitState("web", control.StateSynced)
	rng := rand.New(rand.NewPCG(4, 4))
	disk := make([]byte, 1<<20)
	for i := range disk {
		disk[i] = byte(rng.Uint32())
	}
	if err := a.device("web/root").WriteAt(ctx, disk, 0, false); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(w.dir, "web.seed")
	silent := func(control.Progress) {}
	made, err := a.ExportSeed(ctx, control.SeedExport{Group: "web", To: file}, silent)
	if err != nil || made.Group != "default/web" || made.Bytes < 1<<20 {
		t.Fatalf("%+v, %v", made, err)
	}
	if _, err := a.ExportSeed(ctx, control.SeedExport{Group: "web", To: file}, silent); !fault.Is(err, fault.FileExists) {
		t.Errorf("over a file that is there: %v", err)
	}
	if _, err := a.ImportSeed(ctx, control.SeedImport{From: file}, silent); !fault.Is(err, fault.NotReplica) {
		t.Errorf("at the primary: %v", err)
	}
	a.write("web/root", 0x33, 4096, 4096)
	a.stop()
	again, err := newSite(ca, Options{}.withDefaults()).ExportSeed(ctx, control.SeedExport{Group: "web", To: file, Overwrite: true}, silent)
	if err != nil || again.Seq <= made.Seq {
		t.Fatalf("without the daemon: %+v after %+v, %v", again, made, err)
	}
	if st, err := os.Stat(file); err != nil || st.Size() != again.Bytes || st.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v", st, err)
	}
	if left, err := filepath.Glob(filepath.Join(w.dir, ".web.seed*")); err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}

	b := w.run(cb)
	for name, change := range map[string]func([]byte) []byte{
		"flipped": func(x []byte) []byte { x[len(x)/2] ^= 1; return x },
		"cut":     func(x []byte) []byte { return x[:len(x)/2] },
		"no seed": func([]byte) []byte { return []byte("web") },
	} {
		whole, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		bad := filepath.Join(w.dir, "bad.seed")
		if err := os.WriteFile(bad, change(whole), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := b.ImportSeed(ctx, control.SeedImport{From: bad}, silent); !fault.Is(err, fault.SeedTrouble) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if seq := b.groupLine("web").Seq; seq != 0 {
		t.Errorf("seeds that were refused brought the group to record %d", seq)
	}
	taken, err := b.ImportSeed(ctx, control.SeedImport{From: file}, silent)
	if err != nil || taken.Seq != again.Seq || b.groupLine("web").Seq != again.Seq {
		t.Fatalf("%+v, %v; the group stands at %d", taken, err, b.groupLine("web").Seq)
	}
	if _, err := b.ImportSeed(ctx, control.SeedImport{From: file}, silent); !fault.Is(err, fault.SeedLate) {
		t.Errorf("a second time: %v", err)
	}
	a = w.run(ca)
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 0x44, 8192, 4096)
	awaitLevel(a, b, "web")
	if g := a.groupLine("web"); len(g.Lags) != 1 || g.Lags[0].MovedFor > 1<<19 {
		t.Errorf("it took %+v to bring the peer on", g.Lags)
	}
	to := filepath.Join(w.dir, "root.raw")
	if _, err := b.Restore(ctx, control.RestoreRequest{Group: "web", At: "latest", Volume: "root", To: to, Format: control.FormatRaw}, silent); err != nil {
		t.Fatal(err)
	}
	copy(disk[4096:], bytes.Repeat([]byte{0x33}, 4096))
	copy(disk[8192:], bytes.Repeat([]byte{0x44}, 4096))
	if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, disk) {
		t.Errorf("the peer's disk differs: %v", err)
	}
}
