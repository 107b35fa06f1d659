package qemu

import (
	"fmt"

	"github.com/novacron/afterimage/cbt"
)

// remembered is what Memory keeps of a volume's bitmaps. It is written only
// when the sink durably holds all that the oldest of them does not cover.
type remembered struct {
	Node        string   `json:"node"`
	Size        int64    `json:"size"`
	Granularity int64    `json:"granularity"`
	Bitmaps     []string `json:"bitmaps"` // oldest first; names carry a nonce
}

func memoryKey(v cbt.VolumeID) string { return "qemu/" + v.String() + "/bitmaps" }

// verdict is what may be believed of a node's bitmaps.
type verdict struct {
	trusted bool
	why     string   // not trusted: the reason, for people
	busy    bool     // not trusted for now: somebody else works with one of them
	keep    []string // trusted: their union is the delta
	remove  []string // ours, and of no use
}

// judge decides whether the bitmaps found on node n tell everything that
// changed since the sink last knew the disk. Every one that is remembered must
// be there and sound: a name with an unknown nonce, or a count, proves nothing.
func judge(v cbt.VolumeID, mem remembered, known bool, n nodeInfo) verdict {
	found := make(map[string]bitmapInfo)
	var ours []string
	for _, b := range n.Bitmaps {
		if isOurs(v, b.Name) {
			found[b.Name] = b
			ours = append(ours, b.Name)
		}
	}
	fail := func(format string, a ...any) verdict {
		return verdict{why: fmt.Sprintf(format, a...), remove: ours}
	}
	switch {
	case !known || len(mem.Bitmaps) == 0:
		return fail("no bitmap is remembered")
	case mem.Node != n.Name:
		return fail("the bitmaps were on node %q", mem.Node)
	case mem.Size != n.Image.VirtualSize:
		return fail("the disk had %d bytes, now it has %d", mem.Size, n.Image.VirtualSize)
	case len(n.Image.Snapshots) > 0:
		return fail("the image holds internal snapshots; reverting to one leaves no trace in a bitmap")
	}
	wanted := make(map[string]bool)
	for _, name := range mem.Bitmaps {
		wanted[name] = true
		b, ok := found[name]
		switch {
		case !ok:
			return fail("bitmap %s is gone", name)
		case b.Inconsistent:
			return fail("bitmap %s is inconsistent", name)
		case b.Granularity != mem.Granularity:
			return fail("bitmap %s has granularity %d, not %d", name, b.Granularity, mem.Granularity)
		case b.Busy:
			return verdict{why: fmt.Sprintf("bitmap %s is busy", name), busy: true}
		case !b.Recording:
			return fail("bitmap %s was not recording", name)
		}
	}
	out := verdict{trusted: true, keep: mem.Bitmaps}
	for _, name := range ours {
		if !wanted[name] {
			out.remove = append(out.remove, name)
		}
	}
	return out
}
