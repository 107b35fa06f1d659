package guest

import (
	"bytes"
	"fmt"
)

// File kinds of a mode, as in stat(2).
const (
	modeFile = 0o100000
	modeDir  = 0o040000
	modeLink = 0o120000 // its data is where it leads
	modeChar = 0o020000
)

// entry is one file of an initramfs, owned by root.
type entry struct {
	name         string
	mode         uint32
	major, minor uint32 // of a device node
	data         []byte
}

// newc is an archive in the format that the kernel unpacks
// (Documentation/driver-api/early-userspace/buffer-format.rst): for each file a
// header of 13 numbers in 8 hexadecimal digits, the name with its zero, the data,
// each padded to 4 bytes; "TRAILER!!!" ends it.
func newc(entries []entry) []byte {
	var b bytes.Buffer
	pad := func() {
		for b.Len()%4 != 0 {
			b.WriteByte(0)
		}
	}
	put := func(inode int, e entry) {
		b.WriteString("070701")
		for _, v := range []uint32{
			uint32(inode), e.mode, 0, 0, 1, 0, uint32(len(e.data)),
			0, 0, e.major, e.minor, uint32(len(e.name) + 1), 0,
		} {
			fmt.Fprintf(&b, "%08x", v)
		}
		b.WriteString(e.name)
		b.WriteByte(0)
		pad()
		b.Write(e.data)
		pad()
	}
	for i, e := range entries {
		put(i+1, e)
	}
	put(0, entry{name: "TRAILER!!!"})
	return b.Bytes()
}
