// Package control is how a site is asked and told things: the verbs (API), the
// words they use, a client and a server for them over HTTP with JSON on a unix
// socket.
//
// package site implements API, in a daemon and, for what only reads, without
// one; Client implements it over the socket, so a caller need not know which of
// the two it talks to.
//
// The way of a request:
//
//  1. Client encodes it and dials the socket; there is no other transport;
//  2. the listener has the mode 0600 in a directory of mode 0700, and Server asks
//     the kernel who is at the other end: root and the daemon's own user pass;
//  3. Server decodes it, strictly and bounded, and calls API;
//  4. the answer is one JSON value. Verbs that take long answer with JSON lines:
//     {"progress":…} any number of times, then {"result":…} or {"error":…}. When
//     the caller goes away the verb's context ends: a view served with Lease is
//     closed, a restore is taken back.
//
// Errors travel as fault.Error: code, what, why, hint and exit code are the same
// at both ends. New fields may be added to every type; none changes its meaning.
//
// Client and Server are safe for concurrent use.
package control
