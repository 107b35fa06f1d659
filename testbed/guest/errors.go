package guest

import "errors"

// Errors that the package's functions wrap.
var (
	// ErrNoKernel says that Debian's kernel package could not be fetched.
	ErrNoKernel = errors.New("no guest kernel (it comes by apt-get download; as root: apt-get update)")
	// ErrNoAgent says that Debian's guest agent could not be fetched or lacks a library here.
	ErrNoAgent = errors.New("no guest agent (it comes by apt-get download; as root: apt-get update)")
	// ErrConsole says that a guest did not answer; its last words are in the text.
	ErrConsole = errors.New("guest console")
	// ErrGone says that QEMU ended as it was told to.
	ErrGone = errors.New("qemu has ended")
)
