// Package libvirtd runs a real libvirtd that belongs to one test.
//
// The daemon is a session one: everything it reads and writes, its sockets, the
// definitions, the machines' logs and pid files, lies in a directory of its own,
// and the machine's libvirtd, if there is one, is neither used nor disturbed.
//
//  1. Start makes the directory and the two configuration files; a root user
//     hands it to nobody, for libvirt has no session daemons of root;
//  2. it runs libvirtd as that user and waits until its socket answers;
//  3. at the test's end it kills the daemon and the machines whose pid files lie
//     in the directory, and removes the directory.
//
// What QEMU must reach (disks, NBD sockets) belongs into Daemon.Dir, and is given
// to the daemon's user by Daemon.Own. Machines run under TCG; no KVM is needed.
//
// A Daemon is for one test, and safe for concurrent use.
package libvirtd
