package qemu

import (
	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/mode"
)

func memoryKey(v cbt.VolumeID) string { return "qemu/" + v.String() + "/bitmaps" }

// judge asks mode.Judge about our bitmaps on node n.
func judge(v cbt.VolumeID, mem mode.Remembered, known bool, n nodeInfo) mode.Verdict {
	d := mode.Disk{Node: n.Name, Size: n.Image.VirtualSize, Snapshots: len(n.Image.Snapshots) > 0}
	for _, b := range n.Bitmaps {
		if isOurs(v, b.Name) {
			d.Bitmaps = append(d.Bitmaps, mode.Bitmap{Name: b.Name, Granularity: b.Granularity,
				Recording: b.Recording, Busy: b.Busy, Inconsistent: b.Inconsistent})
		}
	}
	return mode.Judge(mem, known, d)
}
