// Package stormtest is a Transport over a network that delays, loses, cuts and forgets,
// for tests in bubbles of testing/synctest: all that it does takes the bubble's time, and
// what it does to which byte follows from a seed.
//
// A real transport hides lost packets, so what reaches a session of a bad network is
//
//	late      every piece of every stream takes its own time, some of them many times as
//	          long: streams overtake each other, connections too
//	half      a connection ends with pieces on their way: streams end anywhere
//	unheard   an end that dies without a word (Break, Unplug) is missed by the other
//	          one only after Options.IdleTimeout, or when it is told so by who is there
//	          now; meanwhile a new connection can be made beside the old one
//	one way   Cut takes one direction: who is not heard goes on hearing, until its peer
//	          has given it up and, should it hear of that, a while longer than that
//
// What waits to be sent while a way is cut arrives after Heal, if both ends still live.
//
// What happens when is drawn from the seed, the addresses, and the numbers of the
// connection, the stream and the piece: it does not hang on which goroutine came first,
// as long as each site dials its peers one after the other.
package stormtest
