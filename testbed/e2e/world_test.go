package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/novacron/afterimage/testbed/link"
	"github.com/novacron/afterimage/testbed/port"
)

// volume of a group of embedded volumes.
type volume struct {
	name string
	size int64
}

// single is the configuration of a site that protects vs and has no peer.
func single(d *daemon, vs []volume) string {
	return fmt.Sprintf("site: %s\ndata: %s\ngroups:\n  - name: g\n    role: primary\n%s", d.name, d.dir, volumesOf(d, vs))
}

func volumesOf(d *daemon, vs []volume) string {
	var b strings.Builder
	b.WriteString("    volumes:\n")
	for _, v := range vs {
		fmt.Fprintf(&b, "      - {name: %s, size: %d, embedded: {image: %s}}\n", v.name, v.size, d.path(v.name+".img"))
	}
	return b.String()
}

// pair is a source, a replica, and the link through which the source dials.
type pair struct {
	a, b *daemon
	link *link.Link
}

// newPair configures both sites and starts neither. The link is up.
func newPair(t *testing.T, vs []volume, seed uint64) *pair {
	t.Helper()
	p := &pair{a: newDaemon(t, "a"), b: newDaemon(t, "b")}
	listen := netip.MustParseAddrPort(port.Address(t))
	p.link = runLink(t, listen, seed)
	p.b.configure(fmt.Sprintf("site: b\ndata: %s\nlisten: %s\npeers:\n  - {name: a, pin: %q}\ngroups:\n  - name: g\n    role: replica\n    peers: [a]\n",
		p.b.dir, listen, p.a.pin()))
	p.a.configure(fmt.Sprintf("site: a\ndata: %s\npeers:\n  - {name: b, address: %q, pin: %q}\ngroups:\n  - name: g\n    role: primary\n    peers: [b]\n%s",
		p.a.dir, p.link.Addr().String(), p.b.pin(), volumesOf(p.a, vs)))
	return p
}

// runLink is a link to listen, which is up until t ends.
func runLink(t *testing.T, listen netip.AddrPort, seed uint64) *link.Link {
	t.Helper()
	l, err := link.New(listen, link.Config{Seed: seed})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- l.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
	return l
}

// awaitArrival waits until b holds, durably, all that a has now.
func (p *pair) awaitArrival() {
	p.a.t.Helper()
	seq := p.a.group().Seq
	p.b.until(fmt.Sprintf("#%d has arrived", seq), func(ctx context.Context) bool {
		g, err := p.b.api.Group(ctx, "g")
		return err == nil && g.Durable >= seq
	})
}

// seeded is a source of chance whose seed is printed; AFTERIMAGE_SEED sets it.
func seeded(t *testing.T) (*rand.Rand, uint64) {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv("AFTERIMAGE_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1)), seed
}
