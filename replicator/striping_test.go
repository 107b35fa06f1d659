package replicator

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/novacron/afterimage/replicator/transport"
	"github.com/novacron/afterimage/replicator/transport/transporttest"
)

// Whatever order pieces come in, and however often, what is read is what was cut up.
func TestPiecesAreReadInOrder(t *testing.T) {
	if err := shuffled(t, faults{}); err != nil {
		t.Fatal(err)
	}
	if err := shuffled(t, faults{anyOrder: true}); err == nil {
		t.Fatal("planted fault not caught: pieces were handed on in any order")
	}
}

func shuffled(t *testing.T, plant faults) (failed error) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.SliceOfN(rapid.Byte(), 2, 4096).Draw(t, "text")
		var pieces [][2]int
		for at := 0; at < len(text); {
			n := rapid.IntRange(1, len(text)-at).Draw(t, "piece")
			pieces = append(pieces, [2]int{at, at + n})
			at += n
		}
		if len(pieces) < 2 {
			pieces = [][2]int{{0, 1}, {1, len(text)}}
		}
		order := rapid.Permutation(append(pieces, pieces[rapid.IntRange(0, len(pieces)-1).Draw(t, "twice")])).Draw(t, "order")
		if plant.anyOrder { // an order that is none
			slices.Reverse(pieces)
			order = pieces
			text[0], text[len(text)-1] = 1, 2
		}
		a := newAssembly(4096, &plant, func(taken) {})
		for _, p := range order {
			if err := a.put(int64(p[0]), bytes.Clone(text[p[0]:p[1]])); err != nil {
				t.Fatal(err)
			}
		}
		got := make([]byte, len(text))
		if _, err := io.ReadFull(a, got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, text) && failed == nil {
			failed = errors.New("read other bytes than were cut up")
		}
	})
	return failed
}

// Promise 16: what no correct source sends is refused before it takes memory.
func TestPiecesThatNobodyMaySend(t *testing.T) {
	const window = 1 << 16
	fresh := func() *assembly {
		a := newAssembly(window, &faults{}, func(taken) {})
		for _, at := range []int64{0, 1000, 3000} {
			if err := a.put(at, make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := io.ReadFull(a, make([]byte, 1500)); err != nil {
			t.Fatal(err)
		}
		return a
	}
	for _, c := range []struct {
		name     string
		position int64
		bytes    int
		news     bool
		refused  bool
	}{
		{"next", 2000, 1000, true, false},
		{"read already", 0, 1000, false, false},
		{"waits already", 3000, 1000, false, false},
		{"waits with another length", 3000, 999, false, true},
		{"over what was read", 1999, 1000, false, true},
		{"up to the window's end", window, 1500, true, false},
		{"beyond the window", window, 1501, false, true},
	} {
		news, err := fresh().wants(c.position, c.bytes)
		if news != c.news || errors.Is(err, ErrProtocol) != c.refused {
			t.Errorf("%s: news %v, %v; want %v, refused %v", c.name, news, err, c.news, c.refused)
		}
	}
	a := fresh()
	var err error
	for at := int64(4000); err == nil && at < 4000+window; at++ { // each over the one before
		err = a.put(at, make([]byte, 1000))
	}
	if !errors.Is(err, ErrProtocol) || a.held > window {
		t.Errorf("overlapping pieces hold %d bytes of a window of %d: %v", a.held, window, err)
	}
}

// striped is a flow over several lanes of one connection, as a session uses it.
type striped struct {
	lanes *lanes
	flow  *flow
	data  *assembly
	conn  *countedConn
}

// countedConn remembers the lanes that were opened.
type countedConn struct {
	transport.Conn
	mu     sync.Mutex // guards opened
	opened []transport.SendLane
}

func (c *countedConn) OpenLane(ctx context.Context) (transport.SendLane, error) {
	l, err := c.Conn.OpenLane(ctx)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opened = append(c.opened, l)
	return l, nil
}

// newStriped runs n lanes over a connection of the transport that open makes, to a
// replica that takes one more than most.
func newStriped(t *testing.T, open transporttest.Open, n, most int, window int64) *striped {
	t.Helper()
	o := Options{MaxConnections: n, WindowBytes: window, Identity: mustIdentity(t)}.withDefaults()
	caller, called := transporttest.Connected(t, open, n+1)
	s := &striped{conn: &countedConn{Conn: caller}}
	s.lanes = newLanes(s.conn, o, 0)
	s.lanes.plan.lanes, s.lanes.wanted = n, n
	id := someGroup()
	s.flow = s.lanes.flow(7, id, 1, window)
	o.MaxConnections = most
	r := &Replicator{o: o}
	v := newReceiver(&link{r: r, conn: called, peer: &peer{}})
	s.data = newAssembly(window, &r.faults, func(t taken) { _ = s.flow.heard(&t) })
	v.opens.byNumber[7] = &inbound{receiver: v, id: id, data: s.data}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = s.lanes.run(ctx) })
	running.Go(func() { _ = v.laneLoop(ctx) })
	t.Cleanup(func() {
		cancel()
		s.data.stop(context.Canceled)
		running.Wait()
	})
	return s
}

// Promise 10: the loss of one connection of several loses nothing, and what it carried
// goes over the others.
func TestALostLaneLosesNothing(t *testing.T) {
	for name, open := range map[string]transporttest.Open{"memory": transporttest.NewNetwork().Open, "quic": openQUIC, "tls": openTLS} {
		t.Run(name, func(t *testing.T) {
			const n, window = 4, 1 << 20
			s := newStriped(t, open, n, n, window)
			text := make([]byte, 16*window)
			rng := rand.NewChaCha8([32]byte{1})
			_, _ = rng.Read(text)
			sent := make(chan error, 1)
			go func() {
				_, err := s.flow.Write(text)
				s.flow.push()
				sent <- err
			}()
			got := make([]byte, len(text))
			for killed, at := 0, 0; at < len(got); at += window {
				if _, err := io.ReadFull(s.data, got[at:at+window]); err != nil {
					t.Fatal(err)
				}
				if at >= window && killed < n-1 { // all but one, in the middle
					eventually(t, "a lane is there to lose", func() bool {
						s.conn.mu.Lock()
						defer s.conn.mu.Unlock()
						return len(s.conn.opened) > killed
					})
					s.conn.mu.Lock()
					s.conn.opened[killed].Cancel()
					s.conn.mu.Unlock()
					killed++
				}
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, text) {
				t.Fatal("read other bytes than were written")
			}
		})
	}
}

// A lane beyond those that the replica takes holds nothing up: it is refused, and what it
// carried goes over the others.
func TestMoreLanesThanTheReplicaTakes(t *testing.T) {
	for name, open := range map[string]transporttest.Open{"memory": transporttest.NewNetwork().Open, "quic": openQUIC, "tls": openTLS} {
		t.Run(name, func(t *testing.T) {
			const n, window = 8, 1 << 20
			s := newStriped(t, open, n, 1, window)
			text := make([]byte, 8*window)
			_, _ = rand.NewChaCha8([32]byte{2}).Read(text)
			sent := make(chan error, 1)
			go func() {
				_, err := s.flow.Write(text)
				s.flow.push()
				sent <- err
			}()
			got := make([]byte, len(text))
			if _, err := io.ReadFull(s.data, got); err != nil {
				t.Fatal(err)
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, text) {
				t.Fatal("read other bytes than were written")
			}
		})
	}
}

// path is what a number of connections brings on it.
type pathModel func(lanes int) float64

func TestLanePlanFindsWhatThePathGives(t *testing.T) {
	capped := func(each, link float64) pathModel {
		return func(n int) float64 { return min(each*float64(n), link) }
	}
	for _, c := range []struct {
		name        string
		path        pathModel
		limit       int
		least, most int
	}{
		{"a clean path", capped(25e6, 25e6), 64, 1, 1},
		{"a lossy path", capped(1.6e6, 25e6), 64, 16, 16},
		{"a very lossy path", capped(0.3e6, 25e6), 64, 64, 64},
		{"more do harm", func(n int) float64 { return 25e6 / float64(n) }, 64, 1, 1},
		{"few are allowed", capped(1e6, 25e6), 5, 5, 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, now := newLanePlan(c.limit), time.Unix(1000, 0)
			lanes, used := 1, map[int]int{}
			const span, tick = 600, 400 * time.Millisecond
			for i := range span {
				lanes = p.tick(now, c.path(lanes), true, pathView{})
				now = now.Add(tick)
				if i > span/4 {
					used[lanes]++
				}
			}
			most := 0
			for n, times := range used {
				if times > used[most] {
					most = n
				}
			}
			if most < c.least || most > c.most {
				t.Errorf("it uses %d connections most of the time (%v), want %d to %d", most, used, c.least, c.most)
			}
			for range 100 {
				lanes = p.tick(now, 0, false, pathView{})
				now = now.Add(tick)
			}
			if lanes != 1 {
				t.Errorf("%d connections while nothing is sent, want 1", lanes)
			}
		})
	}
}

// Shares follow the weights, and a flow that cannot go on holds up no other.
func TestFlowsShareByWeight(t *testing.T) {
	l := newLanes(nil, Options{MaxConnections: 1, StallTimeout: time.Hour, Now: time.Now}, 0)
	x := &lane{}
	l.live = []*lane{x}
	const window = 64 << 20
	flows := []*flow{l.flow(1, someGroup(), 1, window), l.flow(2, someGroup(), 3, window), l.flow(3, someGroup(), 1, maxPieceBytes)}
	got := map[uint64]int64{}
	for got[1]+got[2] < 32<<20 {
		for _, f := range flows {
			for f.roomNow() >= maxPieceBytes {
				if _, err := f.Write(make([]byte, maxPieceBytes)); err != nil {
					t.Fatal(err)
				}
				f.push()
			}
		}
		p := l.take(x)
		for _, f := range flows {
			if slices.Contains(f.flight, p) {
				got[f.open] += p.bytes()
			}
		}
	}
	if ratio := float64(got[2]) / float64(got[1]); ratio < 2.8 || ratio > 3.2 {
		t.Errorf("weights 3 and 1 got %d and %d bytes", got[2], got[1])
	}
	if got[3] > maxPieceBytes {
		t.Errorf("%d bytes were sent into a window of %d", got[3], maxPieceBytes)
	}
}

func (f *flow) roomNow() int64 {
	f.lanes.mu.Lock()
	defer f.lanes.mu.Unlock()
	return f.roomLocked()
}

// A flow that the replica takes nothing of ends, and says so.
func TestAFlowThatStandsStillEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLanes(nil, Options{MaxConnections: 1, StallTimeout: time.Minute, Now: time.Now}, 0)
		f := l.flow(1, someGroup(), 1, maxPieceBytes)
		if _, err := f.Write(make([]byte, 2*maxPieceBytes)); !errors.Is(err, ErrStalled) {
			t.Errorf("it ended with %v, want %v", err, ErrStalled)
		}
	})
}

// The answer about a delta may take as long as it likes once all of it was taken, and
// never comes where the rest of it is on no way.
func TestADeltaThatIsNotTakenEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Options{MaxConnections: 1, StallTimeout: time.Minute, Now: time.Now}
		s := &sender{link: &link{r: &Replicator{o: o}, peer: &peer{Peer: Peer{Name: "b"}}}}
		l := newLanes(nil, o, 0)
		at := &opening{replies: make(chan message)}
		go func() {
			timer := time.NewTimer(time.Hour)
			<-timer.C
			at.replies <- message{body: &landedDelta{}}
		}()
		taken1000 := l.flow(1, someGroup(), 1, 1<<20)
		if _, err := taken1000.Write(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		taken1000.push()
		l.mu.Lock()
		taken1000.nextLocked(&lane{})
		l.mu.Unlock()
		if err := taken1000.heard(&taken{position: 1000, come: 1000, known: 1000}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.await(t.Context(), at, taken1000); err != nil {
			t.Errorf("an answer after an hour: %v", err)
		}
		f := l.flow(2, someGroup(), 1, 1<<20)
		if _, err := f.Write(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.await(t.Context(), at, f); !errors.Is(err, ErrStalled) {
			t.Errorf("it ended with %v, want %v", err, ErrStalled)
		}
	})
}

// The source hears that all of a delta was taken, however little the last of it is: what
// the replica does then may take longer than a stall.
func TestTheEndOfADeltaIsTold(t *testing.T) {
	var told []taken
	a := newAssembly(1<<20, &faults{}, func(t taken) { told = append(told, t) })
	block := []byte("a block")
	text := append(deltaBlock(block), block...)
	text = append(text, (&deltaWriter{total: uint64(len(block))}).tail()...)
	if err := a.put(0, text); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(&deltaReader{r: a, moved: func(int) {}, over: a.tell})
	if err != nil || !bytes.Equal(got, block) {
		t.Fatalf("read %q, %v", got, err)
	}
	if len(told) == 0 || told[len(told)-1].position != int64(len(text)) {
		t.Errorf("told %+v of %d bytes", told, len(text))
	}
}

// Nothing that a source is told of its own progress can be more than it sent.
func TestProgressBeyondWhatWasSentIsRefused(t *testing.T) {
	l := newLanes(nil, Options{MaxConnections: 1, StallTimeout: time.Minute, Now: time.Now}, 0)
	f := l.flow(1, someGroup(), 1, 1<<20)
	if _, err := f.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	for position, want := range map[int64]error{-1: nil, 0: nil, 1001: ErrProtocol, 1 << 62: ErrProtocol, 1000: ErrProtocol} {
		if err := f.heard(&taken{position: position}); !errors.Is(err, want) {
			t.Errorf("read up to %d of 1000 bytes that no lane took: %v, want %v", position, err, want)
		}
	}
}

func FuzzPieceHeader(f *testing.F) {
	f.Add(somePiece())
	f.Add(make([]byte, pieceHeaderBytes))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= pieceHeaderBytes { // past the checksum
			b = bytes.Clone(b)
			seal(b[:pieceHeaderBytes])
		}
		h, err := readPieceHeader(bytes.NewReader(b), make([]byte, pieceHeaderBytes))
		if err != nil {
			return
		}
		again := make([]byte, pieceHeaderBytes)
		h.put(again)
		if h.bytes < 1 || h.bytes > maxPieceBytes || h.position < 0 || !bytes.Equal(again, b[:pieceHeaderBytes]) {
			t.Fatalf("%x became %+v", b, h)
		}
	})
}

func openQUIC(o transport.Options) (transport.Transport, error) { return transport.NewQUIC(o) }
func openTLS(o transport.Options) (transport.Transport, error)  { return transport.NewTLS(o) }
