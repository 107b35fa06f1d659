package qemu

import (
	"fmt"
	"strings"

	"github.com/novacron/afterimage/cbt"
)

// Everything of ours inside a QEMU is called ai-VOLUME-…, VOLUME being the
// first 8 digits of its id, so that a later process recognises what an earlier
// one left behind. A node's name has at most 31 bytes.

func prefix(v cbt.VolumeID) string { return "ai-" + cbt.ID(v).Short() + "-" }

func isOurs(v cbt.VolumeID, name string) bool { return strings.HasPrefix(name, prefix(v)) }

// freshName draws a name that was never used before; for a bitmap its digits
// are the nonce that Memory keeps.
func freshName(v cbt.VolumeID, what string) string {
	return prefix(v) + what + cbt.NewID().String()[:12]
}

// exportName is what QEMU asks our server for: a later life or attachment never
// answers to it.
func exportName(v cbt.VolumeID, life cbt.Incarnation, attachment uint64) string {
	return fmt.Sprintf("%s/%s/%d", v, life, attachment)
}
