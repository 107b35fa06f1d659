// Package transport is the seam between the replicator and what carries it: QUIC, and
// an in-memory twin for tests (transporttest), which pass one conformance suite.
//
// A Conn is one session's way to one peer. It gives the session
//
//	Control     one stream for messages; the dialling end opens it, first of all
//	Lane        bytes one way, from the dialling end, for frames
//	Question    bytes both ways for one question and its answer; either end opens it
//	Close       an end with a code and a text, which the other end reads as *ClosedError
//	State       what TLS proved: the peer's key is judged by tls.Config, the caller's
//	Stats       round trip and bytes, of all that the Conn consists of
//
// and promises: bytes of a stream arrive in order or not at all; each stream has a
// window of its own, so that one that is not read holds up no other; when the Conn ends,
// every call on it and on its streams returns; nothing of a caller is handed on before
// tls.Config has let it in. It does not promise that what Write took arrives.
//
// A Transport is safe for concurrent use, and so is a Conn. Of a stream, one goroutine
// reads, one writes, and anybody may cancel it or set deadlines.
package transport
