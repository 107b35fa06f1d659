// Package bench measures Afterimage end to end. Its figures come from outside the
// product: what an independent reader finds, against what a load knows it wrote.
//
// RPO runs two journals and two replicators over a link with a round-trip time, a
// loss and a rate (testbed/link). A seeded load writes stamps (testbed/stamp) to the
// source; every 10 ms a reader opens the newest durable point at the peer, finds
// the newest stamp there and notes how old it is. Nothing is computed from the
// product's own acknowledgements; what the product reports is printed beside.
//
// Each function blocks until it is done and leaves nothing behind.
package bench
