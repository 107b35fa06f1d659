package journal

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/novacron/afterimage/cbt"
)

// half is bytes of which LZ4 saves about half: noise and text in turn.
func half(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for at := 0; at < n; at += 256 {
		for i := at; i < min(at+128, n); i++ {
			b[i] = byte(rng.Uint32())
		}
		copy(b[min(at+128, n):min(at+256, n)], filler[rng.IntN(512):])
	}
	return b
}

// BenchmarkForms is what packing and sealing cost and save: 64 KiB writes that pack
// to about half, each durable against power loss before it is answered.
func BenchmarkForms(b *testing.B) {
	const size, slots = 64 << 10, 1024
	rng := rand.New(rand.NewPCG(1, 2))
	var pool [61][]byte // no slot gets the same bytes twice in a row
	for i := range pool {
		pool[i] = half(rng, size)
	}
	for _, depth := range []int{1, 32} {
		for _, mode := range []Compression{CompressOff, CompressAuto, CompressAlways} {
			for _, sealed := range []bool{false, true} {
				name := fmt.Sprintf("depth=%d/compress=%s/sealed=%v", depth, [...]string{"auto", "off", "always"}[mode], sealed)
				b.Run(name, func(b *testing.B) {
					o := Options{Create: newIdentity(), Sync: SyncPower, Compress: mode}
					if sealed {
						o.Keys = ringOf(b, "acme-1")
					}
					j := start(b, b.TempDir(), o)
					v := volume("a", slots*size)
					w := beginWith(b, j.Journal, v)
					b.SetBytes(size)
					b.ResetTimer()
					var writers sync.WaitGroup
					for d := range depth {
						writers.Go(func() {
							for i := d; i < b.N; i += depth {
								data := pool[i%len(pool)]
								ev := cbt.Event{Kind: cbt.EventWrite, Volume: v.ID, Extent: cbt.Extent{Offset: int64(i%slots) * size, Length: size}, Data: data}
								p, err := w.Record(b.Context(), ev)
								if err == nil {
									err = p.Wait(b.Context())
								}
								if err != nil {
									b.Error(err)
									return
								}
							}
						})
					}
					writers.Wait()
					b.StopTimer()
					b.ReportMetric(float64(j.Head().Bytes)/float64(b.N)/size, "stored/written")
					j.close()
				})
			}
		}
	}
}

// BenchmarkSeal is the cost of a seal alone.
func BenchmarkSeal(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			k, err := newDataKey(cbt.NewID(), 1, make([]byte, dataKeyBytes))
			if err != nil {
				b.Fatal(err)
			}
			data, frame := half(rand.New(rand.NewPCG(1, 2)), size), make([]byte, size)
			r := &record{kind: KindWrite, extent: cbt.Extent{Length: int64(size)}, stored: uint32(size), data: data, cells: cellCRCs(0, data)}
			r.willSeal()
			var m sealing
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				r.seal(frame, k, &m)
			}
			tag := func(i int) []byte { return r.tags[i*sealedTagBytes:][:sealedTagBytes] }
			if err := k.openCells(r, frame, 0, tag, m.bound); err != nil || string(frame) != string(data) {
				b.Fatal(err)
			}
		})
	}
}
