// Package qmp speaks the QEMU Machine Protocol over a unix socket.
//
// It promises that every reply reaches the command that asked for it, that
// events are delivered in the order QEMU sent them to subscriptions of bounded
// size (a full one loses events and says so, and never holds up replies), and
// that malformed or oversized input ends the connection with an error that
// tells what came. It does not reconnect: a Client is one connection.
//
//  1. Dial connects, reads the greeting and negotiates capabilities; "oob" is
//     enabled where it is offered.
//  2. Execute sends a command and waits for its reply; ExecuteOOB sends it past
//     the queue, to be run even while QEMU's main loop is busy.
//  3. One goroutine, started by Dial and ended by Close or by the end of the
//     connection, reads replies and events; Done tells of its end, Err why.
//
// A Client is safe for concurrent use; a Subscription serves one consumer.
//
// Source: docs/interop/qmp-spec.rst of QEMU.
package qmp
