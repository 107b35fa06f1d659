package qemu

import (
	"log/slog"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/cbttest"
	"github.com/novacron/afterimage/cbt/nbd"
)

func TestTrackerConforms(t *testing.T) {
	cbttest.TestTracker(t, func(t *testing.T) cbttest.World {
		m := cbttest.StartStorageDaemon(t, cbttest.DiskSpec{Name: "a", Bytes: 40 << 20}, cbttest.DiskSpec{Name: "b", Bytes: 8<<20 + 512, Format: "qcow2"})
		vs := []cbt.Volume{m.Disks[0].Volume(), m.Disks[1].Volume()}
		return cbttest.World{
			Volumes: vs,
			Guest:   func(i int) *nbd.Client { return m.Guest(t, m.Disks[i].Name) },
			Image:   func(i int) []byte { return m.Image(t, m.Disks[i].Name) },
			Tracker: func(sink cbt.Sink, memory cbt.Memory, life cbt.Incarnation, budget time.Duration) cbt.Tracker {
				tr, err := New(Options{
					QMP: m.QMP, Dir: m.Dir, ReadServer: m.NBD, Sink: sink, Memory: memory, Incarnation: life,
					StallBudget: budget, Retry: 50 * time.Millisecond, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
					Disks: []Disk{{Volume: vs[0], Node: "a"}, {Volume: vs[1], Node: "b"}},
				})
				if err != nil {
					t.Fatal(err)
				}
				return tr
			},
		}
	})
}
