package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"

	"github.com/novacron/afterimage/site/fault"
)

// Listen makes the socket: mode 0600, in a directory that is made with mode 0700
// where it is missing. The caller owns the site's lock, so a socket file that is
// there was left behind and is replaced.
func Listen(path string) (net.Listener, error) {
	what := "listen at " + path
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fault.Wrap(fault.ListenTrouble, what, err)
	}
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fault.Wrap(fault.ListenTrouble, what, err)
	case fi.Mode()&fs.ModeSocket == 0:
		return nil, fault.New(fault.ListenTrouble, what, "a file that is no socket is there")
	default:
		if err := os.Remove(path); err != nil {
			return nil, fault.Wrap(fault.ListenTrouble, what, err)
		}
	}
	// Born in a directory of our own, so that nobody connects before the chmod.
	nest, err := os.MkdirTemp(filepath.Dir(path), ".c")
	if err != nil {
		return nil, fault.Wrap(fault.ListenTrouble, what, err)
	}
	defer os.RemoveAll(nest)
	born := filepath.Join(nest, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: born, Net: "unix"})
	if err != nil {
		return nil, fault.Wrap(fault.ListenTrouble, what, err)
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(born, 0o600), os.Rename(born, path)); err != nil {
		return nil, fault.Wrap(fault.ListenTrouble, what, errors.Join(err, l.Close()))
	}
	return &listener{l, path}, nil
}

// listener removes its socket when it is closed.
type listener struct {
	*net.UnixListener
	path string
}

func (l *listener) Close() error {
	err := l.UnixListener.Close()
	if err == nil {
		err = os.Remove(l.path)
	}
	return err
}

type callerKey struct{}

// withCaller notes who is at the other end of c, as the kernel knows it.
func withCaller(ctx context.Context, c net.Conn) context.Context {
	uid, err := callerOf(c)
	if err != nil {
		return context.WithValue(ctx, callerKey{}, err)
	}
	return context.WithValue(ctx, callerKey{}, uid)
}

// callerOf asks for SO_PEERCRED (unix(7)).
func callerOf(c net.Conn) (uint32, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return 0, fmt.Errorf("a %T tells nothing about its caller", c)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *syscall.Ucred
	var inner error
	if err := raw.Control(func(fd uintptr) {
		cred, inner = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil || inner != nil {
		return 0, errors.Join(err, inner)
	}
	return cred.Uid, nil
}

// allowed: root, and the user whom the daemon runs as.
func allowed(caller, self uint32) bool { return caller == 0 || caller == self }

func (s *Server) onlyAllowed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		uid, ok := r.Context().Value(callerKey{}).(uint32)
		if !ok || !allowed(uid, uint32(os.Geteuid())) {
			s.log.Warn("control request refused", "uid", uid, "path", r.URL.Path)
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusForbidden)
			s.write(w, fault.New(fault.ControlDenied, "ask the daemon", "user %d may not", uid))
			return
		}
		next.ServeHTTP(w, r)
	})
}
