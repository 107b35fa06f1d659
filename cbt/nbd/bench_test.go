package nbd_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/cbt/nbd/nbdtest"
)

// BenchmarkServer measures both ends on one machine over a unix socket, with
// the given number of requests in flight, against memory.
func BenchmarkServer(b *testing.B) {
	const size = 256 << 20
	for _, write := range []bool{false, true} {
		for _, bytes := range []int{4 << 10, 64 << 10, 1 << 20} {
			for _, depth := range []int{1, 32} {
				b.Run(fmt.Sprintf("write=%v/bytes=%d/depth=%d", write, bytes, depth), func(b *testing.B) {
					m := nbdtest.NewMemory(size)
					c := serve(b, "unix", nbd.ServerOptions{}, m.Export("disk")).dial(b, nbd.DialOptions{Export: "disk"})
					var next atomic.Int64
					ended := make(chan error, depth)
					b.SetBytes(int64(bytes))
					b.ReportAllocs()
					b.ResetTimer()
					for range depth {
						go func() {
							p := make([]byte, bytes)
							for {
								n := next.Add(1)
								if n > int64(b.N) {
									ended <- nil
									return
								}
								off := n * 7919 * int64(bytes) % size
								var err error
								if write {
									err = c.WriteAt(context.Background(), p, off, false)
								} else {
									err = c.ReadAt(context.Background(), p, off)
								}
								if err != nil {
									ended <- err
									return
								}
							}
						}()
					}
					for range depth {
						must(b, <-ended)
					}
				})
			}
		}
	}
}
