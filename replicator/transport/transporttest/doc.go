// Package transporttest is a Transport in memory, and the suite that it and the real
// ones pass.
//
// A Network is a set of addresses; Open is what Options.Transport of a replicator wants.
// The twin judges keys by the same tls.Config as the real ones, with what a handshake
// would have proven. Nothing in it takes time or gets lost, and all of its waits are
// such as testing/synctest knows, so that whole sites can run in a bubble.
package transporttest
