// Package domain has libvirtd run a machine of package recovery: Runner is its
// recovery.Host.
//
// It promises to touch no domain but the one whose UUID was durable before it was
// defined; that a drill's domain reaches nothing (package recovery/libvirt, Rewrite); and
// that every call may be repeated. It keeps no connection: a libvirtd that was restarted
// is no trouble.
//
// Safe for concurrent use.
package domain
