package mode

import "fmt"

// Remembered is what a tracker keeps of a volume's bitmaps across its lives. It is
// written only when the sink durably holds all that they do not cover together.
type Remembered struct {
	Node        string   `json:"node"`
	Size        int64    `json:"size"`
	Granularity int64    `json:"granularity"`
	Bitmaps     []string `json:"bitmaps"` // oldest first; names carry a nonce
}

// Disk is what a machine tells of the node that a guest writes to.
type Disk struct {
	Node      string
	Size      int64
	Snapshots bool     // internal ones: reverting to one leaves no trace in a bitmap
	Bitmaps   []Bitmap // ours
}

// Bitmap is one of ours on it.
type Bitmap struct {
	Name         string
	Granularity  int64
	Recording    bool
	Busy         bool // some job works with it
	Inconsistent bool // its image was not closed cleanly
}

// Verdict is what may be believed of a disk's bitmaps.
type Verdict struct {
	Trusted bool
	Why     string   // not trusted: the reason, for people
	Busy    bool     // not trusted for now
	Keep    []string // trusted: their union is what the sink may not know
	Remove  []string // of no use
}

// Judge decides whether the bitmaps on a disk tell everything that changed since the
// sink last knew it. Every one that is remembered must be there and sound: a name
// with an unknown nonce, or a count, proves nothing.
func Judge(mem Remembered, known bool, d Disk) Verdict {
	found := make(map[string]Bitmap)
	var ours []string
	for _, b := range d.Bitmaps {
		found[b.Name] = b
		ours = append(ours, b.Name)
	}
	fail := func(format string, a ...any) Verdict {
		return Verdict{Why: fmt.Sprintf(format, a...), Remove: ours}
	}
	switch {
	case !known || len(mem.Bitmaps) == 0:
		return fail("no bitmap is remembered")
	case mem.Node != d.Node:
		return fail("the bitmaps were on node %q", mem.Node)
	case mem.Size != d.Size:
		return fail("the disk had %d bytes, now it has %d", mem.Size, d.Size)
	case d.Snapshots:
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
			return Verdict{Why: fmt.Sprintf("bitmap %s is busy", name), Busy: true}
		case !b.Recording:
			return fail("bitmap %s was not recording", name)
		}
	}
	out := Verdict{Trusted: true, Keep: mem.Bitmaps}
	for _, name := range ours {
		if !wanted[name] {
			out.Remove = append(out.Remove, name)
		}
	}
	return out
}
