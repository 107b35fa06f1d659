// Package nbd speaks the Network Block Device protocol, both ends.
//
// A Server offers Devices to QEMU, qemu-img, the kernel and other clients; a
// Client reads, writes and asks an export elsewhere, QEMU's dirty bitmaps
// included. Source: NetworkBlockDevice/nbd doc/proto.md; section names are quoted
// where a rule comes from it.
//
// The package promises: no input makes it panic or allocate more than its
// options name; a length is checked before memory is taken for it; an answer is
// sent only after the Device returned; overlapping changes of one connection
// reach the Device, and are answered, in the order in which they arrived;
// a request is answered once; nothing is opened before a client has named an
// export with GO, INFO or EXPORT_NAME. It does not promise encryption: STARTTLS
// is refused, so a TCP listener belongs on loopback or a trusted link, and a
// unix socket is made by ListenUnix, closed to other users.
//
// The way of a request through the server:
//
//  1. Serve accepts; negotiate (negotiate.go) haggles, bounded in options, bytes
//     and time, and ends with an Export;
//  2. session.run reads a header (wire.go) and judges it (request.go): a bad one
//     is answered EINVAL, EPERM or ENOSPC and never reaches the Device;
//  3. inflight.begin waits for room in requests and bytes: back-pressure to the
//     client; then a write's payload is read into a pooled buffer;
//     Writes to a Device that is Prompt are begun, settled together and answered by
//     the goroutine that reads (prompt.go), unless something is in their way;
//  4. else a goroutine waits for overlapping changes before it, calls the Device and
//     queues the reply;
//  5. replies.flush sends all that is queued in one writev; then room and
//     buffers are given back.
//
// When Serve's context ends, requests in flight have Grace to end by
// themselves; then their context is cancelled with ErrShutdown; what still has
// not returned after Drain is answered ESHUTDOWN without its Device, whose
// buffer is never used again.
//
// The client: any number of goroutines send under one lock, each request with
// a cookie of its own; one goroutine reads the replies and completes the calls.
// A protocol violation by the server ends the connection for everybody.
//
// Server and Client are safe for concurrent use. A Device is called from many
// goroutines at once.
package nbd
