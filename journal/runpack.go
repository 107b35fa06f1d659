package journal

// packForRun is the place and the bytes under which a run stores what a version of n
// stored as p: the same, unless it is neither sealed nor packed and is worth packing.
// Whole cells stay as they are, so that an image is read from its pages in order.
func packForRun(p place, _ node, stored []byte) (place, []byte) { return p, stored }
