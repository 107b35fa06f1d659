package libvirt

import (
	"errors"
	"fmt"
	"strings"
)

// Errors of this package; calls to libvirtd return those of cbt/libvirt too.
var (
	ErrDefinition = errors.New("not a usable domain definition")
	ErrDisks      = errors.New("disks and exports do not match")
	ErrTaken      = errors.New("a domain of that name or UUID is there already")
)

// DisksError says which disks have no export, and which exports no disk.
type DisksError struct {
	Missing []string // disks' targets
	Unused  []string // exports' targets
}

func (e *DisksError) Error() string {
	return fmt.Sprintf("rewrite definition: %v: without export [%s], without disk [%s]",
		ErrDisks, strings.Join(e.Missing, " "), strings.Join(e.Unused, " "))
}

// Unwrap makes errors.Is(err, ErrDisks) hold.
func (e *DisksError) Unwrap() error { return ErrDisks }
