package bench

import (
	"context"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/replicator"
)

// end is a journal, a replicator and the bare transports that it is measured beside.
// Its exported methods are called by the parent, in order but for Await.
type end struct {
	over chan struct{} // closed when nobody asks any more

	mu       sync.Mutex // guards all below
	b        *bed
	identity *replicator.Identity
	replica  *replicator.Replicator
	stop     context.CancelFunc // of replica
	ended    chan error
	base     journal.Seq // newest record before the load
	unit     int64       // bytes of each write of the load
	bare     bare
	load     *load
	loaded   chan error         // how it ended
	unload   context.CancelFunc // ends it
	reader   *reader
}

func newEnd() *end { return &end{over: make(chan struct{})} }

// None is what a method takes or gives when there is nothing to say.
type None struct{}

// EndOpen says which journal to make.
type EndOpen struct {
	Dir         string
	Identity    journal.Identity
	Volume      cbt.Volume
	Source      bool
	PoolBytes   int64 // written before anything is measured; 0: as it comes
	SyncProcess bool  // writes are answered before they survive the loss of power
}

// Open makes a journal, and at the source one synced, empty volume. It gives the pin.
func (e *end) Open(o EndOpen, pin *string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	id, err := replicator.NewIdentity()
	if err != nil {
		return err
	}
	*pin, e.identity = id.Pin().String(), id
	e.b = &bed{dir: filepath.Join(o.Dir, "journal"), volume: o.Volume, o: journal.Options{Create: &o.Identity, PoolBytes: o.PoolBytes}}
	if !o.SyncProcess {
		e.b.o.Sync = journal.SyncPower
	}
	ctx := context.Background()
	if o.PoolBytes > 0 {
		err = e.b.fillPool(ctx)
	}
	if err == nil {
		err = e.b.open()
	}
	if err == nil && o.Source {
		err = e.b.begin(ctx)
		e.base = e.b.j.Head().Seq
	}
	return err
}

// EndListen says where to listen and who may call.
type EndListen struct {
	Address  string
	Callers  map[string]string // name to pin
	Identity journal.Identity
}

// Listen takes records, and gives the address.
func (e *end) Listen(l EndListen, address *string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	listening := make(chan net.Addr, 1)
	o := replicator.Options{
		Site: "b", Identity: e.identity, Listen: l.Address,
		Receive: func(string, journal.Identity, string, string) (replicator.Replica, error) { return e.b.j, nil },
		Events: replicator.Events{Listening: func(a net.Addr) {
			select {
			case listening <- a:
			default:
			}
		}},
	}
	for name, pin := range l.Callers {
		p, err := replicator.ParsePin(pin)
		if err != nil {
			return err
		}
		o.Peers = append(o.Peers, replicator.Peer{Name: name, Pin: p})
	}
	if err := e.run(o); err != nil {
		return err
	}
	select {
	case a := <-listening:
		*address = a.String()
		return nil
	case err := <-e.ended:
		return err
	}
}

// EndPeer is one to dial.
type EndPeer struct {
	Name, Address, Pin string
	BytesPerSecond     int64  // 0: no limit
	Carrier            string // what it is reached by; empty: as the replicator chooses
}

// EndDial says whom to send the volume to.
type EndDial struct {
	Peers []EndPeer
}

// Dial sends records from here on.
func (e *end) Dial(d EndDial, _ *None) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	o := replicator.Options{Site: "a", Identity: e.identity}
	var names []string
	for _, p := range d.Peers {
		pin, err := replicator.ParsePin(p.Pin)
		if err != nil {
			return err
		}
		carrier, err := replicator.ParseCarrier(p.Carrier)
		if err != nil {
			return err
		}
		o.Peers = append(o.Peers, replicator.Peer{Name: p.Name, Address: p.Address, Pin: pin, LimitBytesPerSecond: p.BytesPerSecond, Carrier: carrier})
		names = append(names, p.Name)
	}
	source := replicator.JournalSource[*journal.Stream](e.b.j)
	o.Groups = func() []replicator.Group {
		return []replicator.Group{{Tenant: "default", Name: "load", Source: source, Peers: names}}
	}
	return e.run(o)
}

// run starts the replicator; mu is held.
func (e *end) run(o replicator.Options) error {
	r, err := replicator.New(o)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	e.replica, e.stop, e.ended = r, stop, make(chan error, 1)
	go func() { e.ended <- r.Run(ctx) }()
	return nil
}

// Hangup ends the replicator.
func (e *end) Hangup(None, *None) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.hangup()
}

func (e *end) hangup() error {
	if e.replica == nil {
		return nil
	}
	e.stop()
	e.replica = nil
	return <-e.ended
}

// EndState is an end at a moment.
type EndState struct {
	At        time.Time
	Durable   journal.Seq // what this journal holds durably
	Head      journal.Seq
	Base      journal.Seq
	Processor time.Duration // used by this process
	Bare      int64         // bytes that arrived at the bare sink

	Connections int    // of the replicator's sessions
	Lost        uint64 // bytes that they sent and thought lost: they go out once more
}

// State is the end now.
func (e *end) State(_ None, s *EndState) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	*s = e.state()
	return nil
}

func (e *end) state() EndState {
	s := EndState{At: time.Now(), Base: e.base, Processor: processorTime(), Bare: e.bare.sunk.Load()}
	if e.b != nil {
		h := e.b.j.Head()
		s.Durable, s.Head = h.Durable.Seq, h.Seq
	}
	if e.replica != nil {
		for _, session := range e.replica.Sessions() {
			s.Connections += session.Connections
			s.Lost += session.Lost
		}
	}
	return s
}

// Await waits until a record is durable here.
func (e *end) Await(seq journal.Seq, s *EndState) error {
	e.mu.Lock()
	b := e.b
	e.mu.Unlock()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for b.j.Head().Durable.Seq < seq {
		select {
		case <-tick.C:
		case <-e.over:
			return errors.New("the end is closed")
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	*s = e.state()
	return nil
}

// EndProbe says which cells to look at, and when.
type EndProbe struct {
	Seq  journal.Seq
	Seed uint64
}

// probed is how many cells a Probe reads.
const probed = 256

// Probe sums up some cells of the volume as of a record.
func (e *end) Probe(p EndProbe, sum *uint64) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	ctx := context.Background()
	at, err := journal.ParseAt("#" + p.Seq.String())
	if err != nil {
		return err
	}
	point, err := e.b.j.Resolve(ctx, at)
	if err != nil {
		return err
	}
	v, err := e.b.j.View(ctx, point)
	if err != nil {
		return err
	}
	defer v.Close()
	rng, cell := rand.New(rand.NewPCG(p.Seed, 5)), make([]byte, cellBytes)
	for range probed {
		if err := v.ReadAt(ctx, e.b.volume.ID, cell, rng.Int64N(e.b.volume.Size/cellBytes)*cellBytes); err != nil {
			return fmt.Errorf("read a cell as of %s: %w", p.Seq, err)
		}
		*sum = crc64.Update(*sum, crcTable, cell)
	}
	return nil
}

// close frees everything.
func (e *end) close() error {
	close(e.over)
	e.mu.Lock()
	defer e.mu.Unlock()
	err := errors.Join(e.endLoad(), e.bare.close(), e.hangup())
	if e.b != nil {
		err = errors.Join(err, e.b.close())
	}
	if errors.Is(err, io.ErrClosedPipe) {
		return nil
	}
	return err
}
