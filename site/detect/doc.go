// Package detect tells, from samples of what a guest writes, that a volume is being
// encrypted from within: blocks that held something legible are overwritten with what
// looks like noise, far more than this volume is used to.
//
// It promises nothing but a hint: it never blocks and never deletes, and both its errors
// are known. It is silent about what it cannot see: a guest that encrypts its own disk
// writes noise over noise always (Report.Blind), and an encryption that writes text, or
// to new blocks only. It takes for an attack what looks the same: a disk full of legible
// files that were deleted without a trim and are overwritten by compressed ones, and the
// first run of a guest's own disk encryption. New blocks, database pages, vacuums and
// copies of archives to free or trimmed space are not taken for one.
//
//  1. a Meter, on the way of a write, picks one sample in so many bytes (meter.go);
//  2. Classify, off that way, says what a sample is: zeros, legible, noise (entropy.go);
//  3. a Detector weighs what was turned from legible to noise against the volume's own
//     baseline (detect.go), of the places that it usually rewrites too (places.go), and
//     says where on the volume (extents.go) and when it began, and from which position
//     back nothing is of it, by a margin that is not a certainty (onset.go).
//
// Meter and Detector are not safe for concurrent use; they hold no more than themselves.
package detect
