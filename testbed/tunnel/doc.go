// Package tunnel is a network path of whole IP packets between network namespaces,
// with the vices of a real one: what TCP sends meets its loss and its queue as QUIC
// does. It needs root and /dev/net/tun, and no tool nor kernel module besides.
//
// A Space is a network namespace without a name: it lives as long as the thread that
// holds it, the sockets made in it and the processes started in it, so nothing is
// left of it when this process is killed. Lay puts a TUN device in each of two
// spaces and gives them addresses; Run passes packets between the two:
//
//  1. a process in one space sends; the kernel routes the packet to the device, and
//     the direction's reader takes it from there;
//  2. the direction's link.Pipe decides whether and when it arrives, once or twice;
//  3. the pipe's own goroutine writes what is due to the other space's device, in
//     batches of what falls due within the runtime's timers, a millisecond or so.
//
// The rate counts IP packets with their headers. Packets are of 1500 bytes at most.
// A device's queue before the reader is long: what is dropped is dropped by the pipe,
// and counted.
//
// Lay and NewSpace start nothing that moves packets; Run blocks until its context
// ends; Close frees. All methods are safe for concurrent use. The package imports
// nothing of the product.
package tunnel
