// Package libvirt runs a machine from its journaled definition, its disks being
// NBD exports of ours.
//
// Rewrite is pure: it takes a domain's XML and gives the same bytes back, but for
// what was asked. It never lets a machine start on its old disks: a disk for
// which there is no export is an error. A Host defines, starts, stops and
// undefines.
//
//  1. the definition of the point comes from the journal;
//  2. Rewrite puts name and UUID in, an NBD source in each disk's place, and
//     unplugs the network cards if the machine must be isolated;
//  3. Host.Start refuses a name that is taken, defines the domain and starts it;
//     what it defined and could not start it takes away again;
//  4. Machine.Stop and Machine.Undefine end it; both may be repeated.
//
// An isolated card keeps its MAC address, model and place, so the guest sees its
// own card with the cable pulled, or plugged into a network that leads nowhere; nothing
// else of the host is used (isolate.go). The firmware's variables are a file that the
// definition names; what is in it is the caller's affair (package recovery/domain).
//
// What is asked of a machine that runs is in cards.go. Which machine is whose, package
// recovery/domain knows.
//
// A disk that we serve stops the machine on an error and waits for our server to
// come back, instead of telling the guest.
//
// Errors are those of cbt/libvirt and of errors.go. Safe for concurrent use.
package libvirt
