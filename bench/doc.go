// Package bench measures Afterimage end to end. Its figures come from outside the
// product: what an independent reader finds, against what a load knows it wrote.
//
// RPO runs two sites over a link with a round-trip time, a loss and a rate. A seeded
// load writes stamps (testbed/stamp) at the source; every 10 ms a reader opens the newest
// durable point at the peer, finds the newest stamp there and notes how old it is.
// Nothing is computed from the product's own acknowledgements; what the product reports
// is printed beside, and held against what is missing. Then the link is cut, and the load
// goes on until the peer has caught up.
//
// Journal measures a journal through its public methods alone, beside the raw device
// in the same run: rounds of ours and of the baseline take turns, and a figure is the
// median of the rounds' ratios. All writes are answered after the loss of power. A
// round of ingest ends when all is durable, chained and indexed. The baseline of
// ingest writes the same bytes in the same portions as they reached the disk between
// two syncs (groups.go), with O_DIRECT and one fdatasync each, to a file that was
// written before; one after the other, where the journal has several under way. Reads
// and images are of a volume that was rewritten ten times with writes of 512 B to
// 1 MiB (history.go), as of its middle, with cold caches, no cell twice; each byte is
// compared with a model that shares no code with the journal.
// What a whole life writes is measured on a history that is folded after each version,
// a point of each kept, and at the end thinned to one (folded.go).
//
// Capture measures what the tap adds to a guest's writes, beside a disk without a
// mirror and beside a mirror to a server that throws everything away: the floor,
// which no tap by QEMU's mirror can beat.
//
// Replicate measures what reaches another site, with two ends as processes in two
// network namespaces and a link of IP packets between (testbed/tunnel): what counts is
// bytes of the volume that are durable there, and both ends must hold the same as of the
// last record counted. TCP + TLS 1.3 of the standard library takes turns on the same
// link. Without a link, over the loopback, ours stands beside the libraries' own copy
// into nothing (bare.go). Ends are asked over their standard input (end.go, endchild.go).
//
// Failover measures the time from the order at a daemon's control socket until a guest
// runs, and until its agent answers, beside a plain boot of the same guest.
//
// Each function blocks until it is done and leaves nothing behind.
package bench
