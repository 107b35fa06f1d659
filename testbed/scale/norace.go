//go:build !race

package scale

// Race tells whether the race detector is compiled in.
const Race = false
