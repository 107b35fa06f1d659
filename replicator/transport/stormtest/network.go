package stormtest

import (
	"fmt"
	"hash/fnv"
	"net"
	"sync"
	"time"

	"github.com/novacron/afterimage/replicator/transport"
)

// Weather is how long a piece is on its way in one direction.
type Weather struct {
	Least, Most time.Duration // of a piece that is not lost
	LossPercent int           // of the pieces; each is sent again, later, until it arrives
}

// Network is where the transports that Open opens find each other. All methods are
// safe for concurrent use.
type Network struct {
	seed uint64

	mu      sync.Mutex // guards all below, and all of its sites, connections and streams
	weather Weather
	lives   map[address]*site
	cut     map[way]bool
	held    map[way][]event // what waits for Heal
	dials   map[way]uint64
	changed chan struct{} // closed when a way is cut or healed, or a site comes or goes
	named   int
}

// address is a name on a Network.
type address string

func (a address) Network() string { return "storm" }
func (a address) String() string  { return string(a) }

// way is a direction between two sites.
type way struct{ from, to address }

func (w way) back() way { return way{w.to, w.from} }

// event is something on its way. It is called with mu held.
type event struct {
	sender *conn // who sends it again after a cut, if it still lives; nil: nobody
	key    []uint64
	arrive func()
}

// New is an empty network in fine weather.
func New(seed uint64) *Network {
	return &Network{seed: seed, lives: map[address]*site{}, cut: map[way]bool{},
		held: map[way][]event{}, dials: map[way]uint64{}, changed: make(chan struct{})}
}

// Set changes the weather for what is sent from now on.
func (n *Network) Set(w Weather) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.weather = w
}

// Cut lets nothing through from one site to another.
func (n *Network) Cut(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[way{address(from), address(to)}] = true
	n.stirLocked()
}

// Heal ends Cut.
func (n *Network) Heal(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	w := way{address(from), address(to)}
	if !n.cut[w] {
		return
	}
	delete(n.cut, w)
	waiting := n.held[w]
	delete(n.held, w)
	for _, e := range waiting {
		if e.sender != nil && e.sender.err == nil {
			n.sendLocked(w, e)
		}
	}
	n.stirLocked()
}

// Break makes the end at one site forget its connections with another, without a word.
func (n *Network) Break(at, other string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s := n.lives[address(at)]; s != nil {
		for _, c := range s.sorted() {
			if c.other.at.addr == address(other) {
				c.failLocked(errForgotten)
			}
		}
	}
	n.stirLocked()
}

// Unplug takes a site off the network, as a loss of power does: nothing of it is heard
// any more but what is on its way. The next one that opens there is a new life.
func (n *Network) Unplug(at string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s := n.lives[address(at)]; s != nil {
		s.endLocked(errUnplugged)
	}
	n.stirLocked()
}

// Open binds o.Listen; where that is empty or ends in ":0", the network finds a name.
func (n *Network) Open(o transport.Options) (transport.Transport, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	at := o.Listen
	if _, port, err := net.SplitHostPort(at); err != nil || port == "0" {
		n.named++
		at = fmt.Sprintf("site-%d:1", n.named)
	}
	if n.lives[address(at)] != nil {
		return nil, fmt.Errorf("listen on %s: address in use", at)
	}
	s := &site{n: n, o: o, addr: address(at), called: make(chan *conn, maxCalls), closed: make(chan struct{}), conns: map[*conn]bool{}}
	n.lives[s.addr] = s
	n.stirLocked()
	return s, nil
}

// stirLocked looks at all ends anew: what they hear has changed.
func (n *Network) stirLocked() {
	close(n.changed)
	n.changed = make(chan struct{})
	for _, s := range n.lives {
		for c := range s.conns {
			c.listenLocked()
		}
	}
}

// sendLocked puts e on its way.
func (n *Network) sendLocked(w way, e event) {
	time.AfterFunc(n.delayLocked(w, e.key), func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.cut[w] {
			n.held[w] = append(n.held[w], e)
			return
		}
		e.arrive()
	})
}

// resend is how much longer a lost piece takes, for each time that it is lost.
const resend = 3

// delayLocked is how long the piece that key names takes. No two take quite the same.
func (n *Network) delayLocked(w way, key []uint64) time.Duration {
	if n.weather == (Weather{}) {
		return 0
	}
	x := n.draw(w, key)
	spread := uint64(n.weather.Most-n.weather.Least) + 1
	d := n.weather.Least + time.Duration(x%spread)
	for range 4 {
		x = mix(x)
		if int(x%100) >= n.weather.LossPercent {
			break
		}
		d += resend * n.weather.Most
	}
	return d + time.Duration(mix(x)%uint64(time.Microsecond))
}

// draw is the chance of what key names.
func (n *Network) draw(w way, key []uint64) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d %s %s %d", n.seed, w.from, w.to, key)
	return mix(h.Sum64())
}

// mix is the finaliser of SplitMix64.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
