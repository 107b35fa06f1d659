package site

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery/evidence"
	"github.com/novacron/afterimage/recovery/witness"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// Options of a Site; the zero value works.
type Options struct {
	Log *slog.Logger     // nil: silent
	Now func() time.Time // nil: time.Now; must carry a monotonic reading
	// Uptime is what thinning holds Now to; nil: the machine's, none where Now is given.
	Uptime journal.Uptime
	// File is where the configuration was read from; zero: nowhere. Status tells of changes.
	File config.Written
	// Heartbeat is how often peers hear of the head; 0: the replicator's default.
	Heartbeat time.Duration
	// Executable is the program whose hidden command "watchdog" is the watchdog;
	// empty: this process's own.
	Executable string
	// HeadPatience is how long a plan waits for a peer that has to be called before it
	// can be asked where its history ends; 0: two seconds.
	HeadPatience time.Duration
	// HostBoot names this boot of the host; empty: the kernel's own name of it.
	HostBoot string

	// peersPatience is how long peers may take to answer before a machine that is owed a
	// start is started without their word; 0: peersPatience.
	peersPatience time.Duration

	passed func(step string) // a test's: what a verb has just done durably, or half
}

func (o Options) passes(step string) {
	if o.passed != nil {
		o.passed(step)
	}
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.HeadPatience <= 0 {
		o.HeadPatience = headPatience
	}
	if o.peersPatience <= 0 {
		o.peersPatience = peersPatience
	}
	if o.HostBoot == "" {
		o.HostBoot = hostBoot()
	}
	if o.Now == nil {
		o.Now = time.Now
		if o.Uptime == nil {
			o.Uptime = journal.MachineUptime
		}
	}
	return o
}

// Site is one end of the product: its groups, its peers and its face. It
// implements control.API. All methods are safe for concurrent use.
type Site struct {
	cfg       *config.Config
	o         Options
	identity  atomic.Pointer[replicator.Identity] // as it is shown now
	switching sync.Mutex                          // one change of identity at a time
	lock      *os.File                            // nil: this site only reads (offline)
	groups    []*group                            // as configured
	repl      *replicator.Replicator
	pairs     *pairing
	disks     *nbd.Server // exports of volumes that this site serves
	clients   clients     // of them; has its own lock
	searching sync.Mutex  // one step of a bisection at a time
	peers     *peerBook
	calls     calling       // has its own lock
	witness   *witness.Etcd // nil: none is configured
	meters    *meters
	watchdog  *watchdog // nil: no group wants one
	ledger    *evidence.Ledger
	entered   chan struct{} // the ledger has grown
	ledgerErr error         // why there is none
	rpo       rpoHistory
	drilling  sync.Mutex // one scheduled drill at a time
	leftover  []string   // of drills of earlier lives that could not be taken away

	mu     sync.Mutex // guards all below
	since  time.Time  // of Run
	addr   net.Addr   // of the replicator
	views  map[string]*view
	drills map[string]*drill    // by group
	tried  map[string]time.Time // scheduled drills of this life, by group
	// unvouched is why a peer does not vouch for the ledger.
	unvouched string
	runs      map[string]*activeRun // that are being carried out
	next      int                   // number of the next view
	reign     chan struct{}         // closed when a reign begins
}

var _ control.API = (*Site)(nil)

// Open takes the data directory of c for this process (a second one is refused
// with fault.DaemonTwice) and reads the site's key. It starts nothing.
func Open(c *config.Config, o Options) (*Site, error) {
	lock, err := lockData(c.Data)
	if err != nil {
		return nil, err
	}
	s := newSite(c, o.withDefaults())
	s.lock = lock
	if err := s.prepare(); err != nil {
		return nil, errors.Join(err, unlock(lock))
	}
	return s, nil
}

func newSite(c *config.Config, o Options) *Site {
	s := &Site{cfg: c, o: o, peers: newPeerBook(c), views: map[string]*view{}, drills: map[string]*drill{}, tried: map[string]time.Time{}, entered: make(chan struct{}, 1), runs: map[string]*activeRun{}, next: 1, reign: make(chan struct{})}
	for _, g := range c.Groups {
		s.groups = append(s.groups, newGroup(s, g))
	}
	return s
}

// prepare makes what a running site needs beyond one that reads.
func (s *Site) prepare() error {
	id, err := identify(s.cfg)
	if err != nil {
		return err
	}
	s.identity.Store(id)
	s.openLedger()
	s.sweepDrills()
	if err := s.sweepSockets(); err != nil {
		return err
	}
	s.meters = newMeters(s)
	if s.watchdog, err = s.newWatchdog(); err != nil {
		return explain("set up the watchdog", err)
	}
	log := s.o.Log.With("part", "nbd")
	s.disks = nbd.NewServer(nbd.ServerOptions{Lookup: s.lookupExport, List: s.listExports, Log: log, Events: s.diskEvents(log)})
	if s.pairs, err = openPairing(s.cfg, s.o.Now); err != nil {
		return err
	}
	if s.repl, err = s.newReplicator(); err != nil {
		return explain("set up replication", err)
	}
	if err := s.openGuards(); err != nil {
		return err
	}
	return s.resumeRotation()
}

// sweepSockets makes the directories that sockets of this life lie in.
func (s *Site) sweepSockets() error {
	for _, dir := range []string{s.viewDir(), s.tapDir()} {
		if err := os.RemoveAll(dir); err != nil {
			return fault.Wrap(fault.FileTrouble, "clear "+dir, err)
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fault.Wrap(fault.FileTrouble, "make "+dir, err)
		}
	}
	return nil
}

func (s *Site) viewDir() string { return filepath.Join(s.cfg.Data, "v") }
func (s *Site) tapDir() string  { return filepath.Join(s.cfg.Data, "t") }
func (s *Site) groupDir(g config.Group) string {
	return filepath.Join(s.cfg.Data, "groups", g.Tenant, g.Name)
}

// Run runs the site until ctx ends: then trackers detach, exports drain, journals
// close, and it returns nil. A group that fails is tried again while the others go
// on; an address that cannot be listened on ends the site.
func (s *Site) Run(ctx context.Context) error {
	listeners, err := s.listen()
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.since = s.o.Now()
	s.mu.Unlock()
	s.o.Log.Info("site starts", "site", s.cfg.Site, "pin", s.self().Pin().String(), "data", s.cfg.Data, "control", s.cfg.Control, "groups", len(s.groups))
	// The groups outlive the site's face: what was asked of a disk is answered
	// before its journal closes.
	lives, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	var groups sync.WaitGroup
	for _, gr := range s.groups {
		groups.Go(func() { gr.run(lives) })
	}
	for _, gr := range s.groups {
		if gr.guard != nil {
			groups.Go(func() { gr.guard.run(lives) })
		}
	}
	if s.watchdog != nil {
		groups.Go(func() {
			if err := s.watchdog.run(lives, s); err != nil {
				s.o.Log.Error("no watchdog", "err", err)
			}
		})
	}
	err = s.face(ctx, listeners)
	stop(errStopping)
	groups.Wait()
	s.o.Log.Info("site stops", "site", s.cfg.Site, "err", err)
	return err
}

// face answers peers, clients of disks, the control socket and scrapes, until ctx
// ends or one of them cannot go on.
func (s *Site) face(ctx context.Context, l listeners) error {
	g, ctx := errgroup.WithContext(ctx)
	if s.replicates() {
		g.Go(func() error { return explain("run replication", s.repl.Run(ctx)) })
	}
	g.Go(func() error { return explain("serve disks", s.disks.Serve(ctx, l.disks)) })
	for gr, at := range l.machines {
		g.Go(func() error { return explain("serve disks of "+gr.cfg.Ref(), s.serverFor(gr).Serve(ctx, at)) })
	}
	g.Go(func() error {
		return explain("serve the control socket", control.NewServer(s, s.o.Log.With("part", "control")).Serve(ctx, l.control))
	})
	g.Go(func() error {
		s.measureRPO(ctx)
		return nil
	})
	g.Go(func() error {
		s.scheduleDrills(ctx)
		return nil
	})
	g.Go(func() error {
		s.anchorLedger(ctx)
		return nil
	})
	if l.metrics != nil {
		g.Go(func() error { return explain("serve metrics", s.serveMetrics(ctx, l.metrics)) })
	}
	g.Go(func() error {
		<-ctx.Done()
		s.endRuns()
		s.endDrills()
		s.closeViews(errStopping)
		return nil
	})
	return g.Wait()
}

// Close frees what Open took. Call it after Run has returned.
func (s *Site) Close() error {
	if s.lock == nil {
		return nil
	}
	var err error
	if s.witness != nil {
		err = s.witness.Close()
	}
	return errors.Join(err, s.watchdog.close(), unlock(s.lock))
}

type listeners struct {
	control, disks, metrics net.Listener
	machines                map[*group]net.Listener // of those that libvirtd runs
}

// listen takes all addresses but the replicator's, which it takes itself.
func (s *Site) listen() (l listeners, err error) {
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.control, err = control.Listen(s.cfg.Control); err != nil {
		return l, err
	}
	if err = os.MkdirAll(filepath.Dir(s.cfg.NBD), 0o700); err != nil {
		return l, fault.Wrap(fault.ListenTrouble, "listen at "+s.cfg.NBD, err)
	}
	if l.disks, err = nbd.ListenUnix(s.cfg.NBD, 0o600); err != nil {
		return l, fault.Wrap(fault.ListenTrouble, "listen at "+s.cfg.NBD, err)
	}
	l.machines = map[*group]net.Listener{}
	for _, g := range s.groups {
		if g.hosted() {
			if l.machines[g], err = listenFor(g); err != nil {
				return l, err
			}
		}
	}
	if s.cfg.Metrics != "" {
		if l.metrics, err = net.Listen("tcp", s.cfg.Metrics); err != nil {
			return l, fault.Wrap(fault.ListenTrouble, "listen at "+s.cfg.Metrics, err)
		}
	}
	return l, nil
}

func (l listeners) close() {
	for _, x := range append(slices.Collect(maps.Values(l.machines)), l.control, l.disks, l.metrics) {
		if x != nil {
			_ = x.Close() // of an opening that failed: its error says more
		}
	}
}

// group finds a group by NAME or TENANT/NAME, and what a rejoin set aside by NAME@N.
func (s *Site) group(name string) (*group, error) {
	if strings.Contains(name, asideMark) {
		return s.asideOf(name)
	}
	c, err := s.cfg.Group(name)
	if err != nil {
		return nil, err
	}
	for _, g := range s.groups {
		if g.cfg.Ref() == c.Ref() {
			return g, nil
		}
	}
	return nil, fault.New(fault.GroupUnknown, "find group "+name, "it is not set up")
}

// lives reports whether a group's journal is open now, and its life is so.
func (s *Site) lives(name string, so func(*life) bool) bool {
	g, err := s.group(name)
	if err != nil {
		return false
	}
	l, release, err := g.use()
	if err != nil {
		return false
	}
	defer release()
	return so(l)
}

func (s *Site) running() bool { return s.lock != nil }

func (s *Site) String() string { return fmt.Sprintf("site %s", s.cfg.Site) }
