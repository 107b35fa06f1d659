// Package stamp is the oracle's alphabet: numbered, checksummed 4096-byte blocks
// that a load writes and a check reads back, inside a guest or outside it.
//
// Stamp k (k = 1, 2, …) lies in slot k mod slots of a volume, so a disk of S
// slots holds the last S stamps. A load that writes each stamp durably before the
// next, and on a volume 0 before a volume 1, leaves a disk of which every
// crash-consistent image holds a gapless range of numbers that ends at most one
// number apart on the volumes. Scan reads such a disk; Report says what of a
// range is missing, torn, or where it does not belong.
//
// The package imports only the standard library and shares no code with the
// product, whose results it judges. All functions are pure or read only; values
// may be shared freely.
package stamp
