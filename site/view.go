package site

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// view is a point that is being served. It ends with its life, its caller's
// lease, CloseView or the site, whichever comes first.
type view struct {
	control.View
	at    journal.Point
	chain journal.Chain // of the frame that holds it
	close func(cause error)
	done  chan struct{} // closed when everything of it is gone
}

// Serve implements control.API.
func (s *Site) Serve(ctx context.Context, q control.ServeRequest, opened func(control.View)) error {
	v, err := s.serve(ctx, q)
	if err != nil {
		return explain("serve a view of "+q.Group, err)
	}
	opened(v.View)
	if !q.Lease {
		return nil
	}
	select {
	case <-ctx.Done():
		v.close(errClosed)
		<-v.done
		return ctx.Err()
	case <-v.done:
		return fault.New(fault.ViewUnknown, "serve view "+v.ID, "it was closed")
	}
}

// serve opens the view and starts its server.
func (s *Site) serve(ctx context.Context, q control.ServeRequest) (*view, error) {
	g, err := s.group(q.Group)
	if err != nil {
		return nil, err
	}
	l, release, err := s.open(ctx, g)
	if err != nil {
		return nil, err
	}
	p, err := resolve(ctx, l.j, q.At)
	if err != nil {
		release()
		return nil, err
	}
	jv, err := l.j.View(ctx, p)
	if err != nil {
		release()
		return nil, err
	}
	frees := []func() error{jv.Close, func() error { release(); return nil }}
	free := func() error {
		var errs []error
		for _, f := range frees {
			errs = append(errs, f())
		}
		return errors.Join(errs...)
	}
	exports, layers, err := s.viewExports(jv, q.Scratch)
	frees = append(layers, frees...)
	if err != nil {
		return nil, errors.Join(err, free())
	}
	v := s.enlist(g, q, p)
	if v.chain, err = l.j.ChainOf(ctx, p.Position); err != nil { // of a point that is served all the same
		s.o.Log.Warn("no chain of the point", "view", v.ID, "err", err)
	}
	listener, err := s.listenView(v)
	if err != nil {
		s.forget(v)
		return nil, errors.Join(err, free())
	}
	for _, x := range exports {
		v.Exports = append(v.Exports, control.Export{Volume: x.Name, Size: x.Size, URI: nbdURI(listener.Addr().Network(), listener.Addr().String(), x.Name)})
	}
	serving, end := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(l.ctx, func() { end(errDetached) })
	v.close = end
	log := s.o.Log.With("view", v.ID)
	server := nbd.NewServer(nbd.ServerOptions{Lookup: lookupIn(exports), List: namesOf(exports), Log: log, Events: s.requestEvents(log)})
	go func() {
		defer close(v.done)
		err := errors.Join(server.Serve(serving, listener), free())
		stop()
		s.forget(v)
		s.o.Log.Info("view closed", "view", v.ID, "group", v.Group, "cause", context.Cause(serving), "err", err)
	}()
	s.mu.Lock()
	s.views[v.ID] = v
	s.mu.Unlock()
	s.o.Log.Info("view opened", "view", v.ID, "group", v.Group, "point", p.String(), "listen", v.Listen, "scratch", v.Scratch)
	return v, nil
}

// viewExports is one export per volume, by its name.
func (s *Site) viewExports(jv *journal.View, scratch bool) ([]*nbd.Export, []func() error, error) {
	var exports []*nbd.Export
	var layers []func() error
	for _, vol := range jv.Volumes() {
		d := recovery.ViewDevice(jv, vol.ID)
		if scratch {
			o, err := recovery.NewScratch(d, vol.Size, s.cfg.Data)
			if err != nil {
				return exports, layers, err
			}
			d, layers = o, append(layers, o.Close)
		}
		exports = append(exports, &nbd.Export{Name: vol.Name, Size: vol.Size, ReadOnly: !scratch, MultiConn: true, Device: d})
	}
	return exports, layers, nil
}

func lookupIn(exports []*nbd.Export) func(context.Context, string) (*nbd.Export, error) {
	return func(_ context.Context, name string) (*nbd.Export, error) {
		for _, x := range exports {
			if x.Name == name || name == "" && len(exports) == 1 {
				return x, nil
			}
		}
		return nil, fmt.Errorf("%w: %q", nbd.ErrUnknownExport, name)
	}
}

func namesOf(exports []*nbd.Export) func() []string {
	return func() []string {
		var names []string
		for _, x := range exports {
			names = append(names, x.Name)
		}
		return names
	}
}

// enlist gives a view its id and address.
func (s *Site) enlist(g *group, q control.ServeRequest, p journal.Point) *view {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := fmt.Sprintf("v%d", s.next)
	s.next++
	v := &view{View: control.View{ID: id, Group: g.cfg.Ref(), At: q.At, Point: pointOf(p), Scratch: q.Scratch, Listen: q.Listen, Since: s.o.Now(), Exports: []control.Export{}}, at: p, done: make(chan struct{})}
	if v.Listen == "" {
		v.Listen = filepath.Join(s.viewDir(), id)
		if !s.running() { // several commands may do this at once
			v.Listen = filepath.Join(s.viewDir(), fmt.Sprintf("p%d-%s", os.Getpid(), id))
		}
	}
	return v
}

// listenView takes a unix socket, or a TCP address of this machine: exports are
// neither encrypted nor guarded, so nobody else may reach them.
func (s *Site) listenView(v *view) (net.Listener, error) {
	what := "listen at " + v.Listen
	if strings.Contains(v.Listen, "/") {
		if strings.HasPrefix(v.Listen, s.viewDir()+"/") {
			if err := os.MkdirAll(s.viewDir(), 0o700); err != nil {
				return nil, fault.Wrap(fault.ListenTrouble, what, err)
			}
		}
		l, err := nbd.ListenUnix(v.Listen, 0o600)
		if err != nil {
			return nil, fault.Wrap(fault.ListenTrouble, what, err)
		}
		return l, nil
	}
	host, _, err := net.SplitHostPort(v.Listen)
	if err != nil {
		return nil, fault.New(fault.Usage, what, "it is neither a path nor HOST:PORT")
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, fault.New(fault.Usage, what, "an export is not encrypted: only loopback addresses are listened on")
	}
	l, err := net.Listen("tcp", v.Listen)
	if err != nil {
		return nil, fault.Wrap(fault.ListenTrouble, what, err)
	}
	v.Listen = l.Addr().String()
	return l, nil
}

func (s *Site) forget(v *view) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.views, v.ID)
}

// Views implements control.API.
func (s *Site) Views(context.Context) ([]control.View, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]control.View, 0, len(s.views))
	for _, v := range s.views {
		out = append(out, v.View)
	}
	slices.SortFunc(out, func(a, b control.View) int { return a.Since.Compare(b.Since) })
	return out, nil
}

// CloseView implements control.API.
func (s *Site) CloseView(_ context.Context, id string) error {
	s.mu.Lock()
	v := s.views[id]
	s.mu.Unlock()
	if v == nil {
		return fault.New(fault.ViewUnknown, "close view "+id, "no such view is open")
	}
	v.close(errClosed)
	<-v.done
	return nil
}

// closeViews ends all views and waits for them.
func (s *Site) closeViews(cause error) {
	s.mu.Lock()
	var open []*view
	for _, v := range s.views {
		open = append(open, v)
	}
	s.mu.Unlock()
	for _, v := range open {
		v.close(cause)
		<-v.done
	}
}
