package journal

import (
	"context"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
)

// asKilled makes a copy of an open journal's directory as the death of its process
// would leave it: what the index has not written to its files is not in it.
func asKilled(b *testing.B, from, to string) {
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(from, path)
		switch at := filepath.Join(to, rel); {
		case err != nil:
			return err
		case d.IsDir():
			return os.MkdirAll(at, 0o700)
		case filepath.Ext(path) == segmentSuffix:
			return os.Link(path, at)
		default:
			p, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(at, p, 0o600)
		}
	})
	if err != nil {
		b.Fatal(err)
	}
}

// Seconds to open a journal after its process was killed, a million of its records,
// and what the index takes on disk.
func BenchmarkOpening(b *testing.B) {
	for _, c := range []struct {
		name    string
		records int
		event   func(rng *rand.Rand) (int64, []byte)
	}{
		{"4k", 200_000, func(rng *rand.Rand) (int64, []byte) {
			p := make([]byte, pageBytes)
			for i := 0; i < len(p); i += 8 {
				p[i] = byte(rng.Uint32())
			}
			return pageBytes, p
		}},
		{"zeros", 1_000_000, func(rng *rand.Rand) (int64, []byte) { return pageBytes, nil }},
		{"mixed", 20_000, func(rng *rand.Rand) (int64, []byte) {
			n := int64(512) << rng.IntN(12)
			return n, noise(rng, int(n))
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			dir := b.TempDir()
			v := volume("a", 64<<30)
			j := start(b, filepath.Join(dir, "j"), Options{Create: newIdentity()})
			w := beginWith(b, j.Journal, v)
			rng := rand.New(rand.NewPCG(5, 6))
			var last cbt.Pending
			for range c.records {
				n, data := c.event(rng)
				unit := min(n, pageBytes)
				ev := cbt.Event{Kind: cbt.EventZero, Volume: v.ID, Extent: cbt.Extent{Offset: rng.Int64N((v.Size-n)/unit) * unit, Length: n}, Data: data}
				if data != nil {
					ev.Kind = cbt.EventWrite
				}
				var err error
				if last, err = w.Record(context.Background(), ev); err != nil {
					b.Fatal(err)
				}
			}
			if err := last.Wait(context.Background()); err != nil {
				b.Fatal(err)
			}
			if err := w.WaitDurable(context.Background()); err != nil {
				b.Fatal(err)
			}
			killed := filepath.Join(dir, "killed")
			asKilled(b, filepath.Join(dir, "j"), killed)
			j.close()
			began := time.Now()
			k, err := Open(killed, Options{})
			took := time.Since(began)
			if err != nil {
				b.Fatal(err)
			}
			defer k.Close()
			if n := int(k.Head().Seq); n < c.records {
				b.Fatalf("%d records of %d are there", n, c.records)
			}
			index := int64(0)
			_ = filepath.WalkDir(filepath.Join(dir, "j", "index"), func(path string, d fs.DirEntry, err error) error {
				if st, err := d.Info(); err == nil && !d.IsDir() {
					index += st.Size()
				}
				return nil
			})
			b.ReportMetric(took.Seconds()/float64(c.records)*1e6, "s/million")
			b.ReportMetric(float64(k.reread)/1e6, "MB-reread")
			b.ReportMetric(float64(index)/float64(c.records), "index-B/record")
		})
	}
}
