// Package link is a network path between two loopback addresses with the vices of a
// real one: delay, loss, a rate with a bounded queue, duplicates, reordering, cuts.
//
// A Link relays UDP datagrams, whole or not at all. The way of one:
//
//  1. a client sends to Addr; the near socket reads it (or the target answers, and
//     that client's far socket reads it);
//  2. the direction's lane decides, by its seeded dice and its queue, whether and
//     when it is delivered, once or twice (lane.admit: pure, no clock of its own);
//  3. it waits in the direction's heap, with one timer for all;
//  4. when its time has come it is sent on, unless the link was cut meanwhile.
//
// The dice fall per datagram and direction in order of arrival, so the same datagrams
// and the same seed meet the same fate. Delivery is never early; it is late by what
// the machine's scheduler takes. Memory is bounded by QueueBytes for each direction
// (plus, at a rate, what is on the way during the delay) and by maxClients.
//
// A Pipe is one direction of such a path without the sockets: package tunnel lays two
// of them between network namespaces.
//
// New binds a socket and starts nothing; Run relays until its context ends; Close
// frees. All methods are safe for concurrent use. The package imports nothing of
// the product.
package link
