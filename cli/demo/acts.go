package demo

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
	"github.com/novacron/afterimage/testbed/link"
	"github.com/novacron/afterimage/testbed/stamp"
)

const (
	burst    = time.Second // at least
	behind   = 100         // writes that b is to lack after it
	markName = "before-attack"

	// What is left of the way to b in the burst: some frames a second, which any load
	// outruns, and room for heartbeats. Its queue is short, for they wait in it.
	squeezed      = 64 << 10
	squeezedQueue = 32 << 10
)

// setUp starts the disk and both sites, and waits until every write is a point at b.
func (s *story) setUp(ctx context.Context) error {
	s.say("Two sites on this machine, one disk, every write kept. All files are in %s", s.o.Dir)
	s.disk = &embedded{dir: s.o.Dir}
	if s.o.QEMU {
		s.say("Booting a guest (its kernel is fetched once) …")
		g, err := newGuestDisk(ctx, s.o.Dir)
		if err != nil {
			return err
		}
		s.disk = g
	}
	var err error
	if s.a, err = newDaemon(s.o.Executable, s.o.Dir, "a"); err != nil {
		return err
	}
	if s.b, err = newDaemon(s.o.Executable, s.o.Dir, "b"); err != nil {
		return err
	}
	pinA, err := s.a.pin()
	if err != nil {
		return err
	}
	pinB, err := s.b.pin()
	if err != nil {
		return err
	}
	listen, err := freeUDP()
	if err != nil {
		return err
	}
	way, err := s.lay(ctx, listen)
	if err != nil {
		return err
	}
	extraA, extraB := s.disk.extra()
	if err := s.b.start(ctx, fmt.Sprintf(`site: b
data: %s
listen: %s
peers:
  - {name: a, pin: %q}
groups:
  - name: demo
    role: replica
    peers: [a]
%s%s`, s.b.dir, listen, pinA, ladder, extraB)); err != nil {
		return err
	}
	if err := s.a.start(ctx, fmt.Sprintf(`site: a
data: %s
peers:
  - {name: b, address: %s, pin: %q, limit: %s}
groups:
  - name: demo
    role: primary
    peers: [b]
    volumes:
      - {name: disk, size: %d, %s}
%s`, s.a.dir, way, pinB, s.disk.rates().link, diskBytes, s.disk.volume(), extraA)); err != nil {
		return err
	}
	if err := s.disk.attach(ctx, s.a); err != nil {
		return fmt.Errorf("attach to the disk: %w", err)
	}
	return s.b.until(ctx, "a point has arrived", time.Minute, func(ctx context.Context) (bool, error) {
		_, err := s.b.api.Points(ctx, control.PointsQuery{Group: "demo", At: "latest"})
		return err == nil, nil
	})
}

// load runs the normal load while the RPO is measured.
func (s *story) load(ctx context.Context) error {
	s.say("\nThe load writes %d numbered, checksummed stamps a second; a reader at site b looks for the newest.", s.disk.rates().calm)
	if err := s.disk.run(ctx, s.disk.rates().calm); err != nil {
		return err
	}
	watching, stop := context.WithTimeout(ctx, s.o.Load)
	defer stop()
	return s.watch(watching)
}

// attack sets the mark and ruins the disk.
func (s *story) attack(ctx context.Context) error {
	written, err := s.disk.pause(ctx)
	if err != nil {
		return err
	}
	s.marked = written
	if s.mark, err = s.a.api.Mark(ctx, control.MarkRequest{Group: "demo", Name: markName, Pin: true}); err != nil {
		return fmt.Errorf("set the mark: %w", err)
	}
	s.say("\nMarked %s at #%d.%d, after stamp %d. Now ransomware overwrites all %d slots.", markName, s.mark.Epoch, s.mark.Seq, written, slots)
	return s.disk.attack(ctx)
}

// lookBack proves at b that the marked moment is whole, by name, time and seq, and
// that the newest is not.
func (s *story) lookBack(ctx context.Context) error {
	head, err := s.a.api.Group(ctx, "demo")
	if err != nil {
		return err
	}
	if err := s.b.until(ctx, "the attack has arrived", 30*time.Second, func(ctx context.Context) (bool, error) {
		g, err := s.b.api.Group(ctx, "demo")
		return err == nil && g.Durable >= head.Seq, nil
	}); err != nil {
		return err
	}
	for _, at := range []string{"name:" + markName, fmt.Sprintf("#%d.%d", s.mark.Epoch, s.mark.Seq), s.mark.Time.Format(time.RFC3339Nano)} {
		r, err := s.b.inspect(ctx, at)
		if err != nil {
			return err
		}
		s.check(r.Max == s.marked && r.Whole(s.marked), "before the attack every stamp is intact: --at "+at, "#%d.%d: %s", r.point.Epoch, r.point.Seq, r.Report)
	}
	r, err := s.b.inspect(ctx, "latest")
	if err != nil {
		return err
	}
	s.check(r.Torn > 0 && !r.Whole(s.marked), "after it the disk is ruined", "%s", r.Report)
	return nil
}

// fallBehind writes faster than the link takes, so that there is something to lose.
func (s *story) fallBehind(ctx context.Context) error {
	s.say("\nThe load goes on over the ruins, then bursts, while the way to b takes no more than %d KiB a second.", squeezed>>10)
	if err := s.disk.run(ctx, s.disk.rates().renew); err != nil {
		return err
	}
	first := s.disk.written()
	watching, stop := context.WithTimeout(ctx, 2*time.Minute)
	defer stop()
	g, watching := errgroup.WithContext(watching)
	g.Go(func() error { return s.watchOnly(watching) })
	err := s.a.until(ctx, "every slot is written anew", time.Minute, func(context.Context) (bool, error) {
		return s.disk.written() >= first+slots, nil
	})
	if err == nil {
		_, err = s.disk.pause(ctx)
	}
	if err == nil {
		err = s.way.Set(link.Config{BytesPerSecond: squeezed, QueueBytes: squeezedQueue})
	}
	if err == nil {
		err = s.disk.run(ctx, s.disk.rates().burst)
	}
	if err == nil {
		err = s.outrun(ctx)
	}
	stop()
	if err = errors.Join(err, g.Wait()); err != nil {
		return err
	}
	s.result.Writes, err = s.disk.pause(ctx)
	return err
}

// outrun waits until the burst has lasted and b is well behind.
func (s *story) outrun(ctx context.Context) error {
	least := time.Now().Add(burst)
	return s.a.until(ctx, "site b is behind", time.Minute, func(ctx context.Context) (bool, error) {
		st, err := s.a.api.Status(ctx)
		if err != nil || len(st.Groups) != 1 || len(st.Groups[0].Lags) != 1 {
			return false, err
		}
		return st.Groups[0].Lags[0].BehindWrites >= behind && time.Now().After(least), nil
	})
}

// lay makes the way from a to b, and says where a finds it.
func (s *story) lay(ctx context.Context, b string) (string, error) {
	to, err := netip.ParseAddrPort(b)
	if err != nil {
		return "", err
	}
	if s.way, err = link.New(to, link.Config{}); err != nil {
		return "", err
	}
	s.wayEnded = make(chan error, 1)
	go func() { s.wayEnded <- s.way.Run(context.WithoutCancel(ctx)) }()
	return s.way.Addr().String(), nil
}

// watchOnly prints lines without counting: the link is meant to be too slow here.
func (s *story) watchOnly(ctx context.Context) error {
	kept := s.samples
	err := s.watch(ctx)
	s.behindSamples, s.samples = s.samples[len(kept):], kept
	return err
}

// failOver plans and orders; what was still on its way to b may move the point in
// between, and then the plan that is shown is made anew.
func (s *story) failOver(ctx context.Context) (plan control.Plan, done control.FailedOver, began time.Time, err error) {
	q := control.FailoverRequest{Group: "demo", At: "latest", Force: true, Operator: "demo"}
	for {
		if plan, err = s.b.api.PlanFailover(ctx, q); err != nil {
			return plan, done, began, fmt.Errorf("plan the failover: %w", err)
		}
		s.result.ReportedLoss, s.result.ReportedSeconds = plan.Loss.Writes, plan.Loss.Seconds
		s.say("  plan: #%d.%d of %s; loss %d writes, %.2f s", plan.Point.Epoch, plan.Point.Seq, plan.Point.Time.Format(time.RFC3339Nano), plan.Loss.Writes, plan.Loss.Seconds)
		q.Expect = plan.Digest
		began = time.Now()
		done, err = s.b.api.Failover(ctx, q, func(control.Progress) {})
		if q.Expect = ""; fault.Is(err, fault.PlanStale) {
			continue
		}
		if err != nil {
			err = fmt.Errorf("fail over: %w", err)
		}
		return plan, done, began, err
	}
}

// disaster kills the primary when b has heard of its last write, and fails over.
func (s *story) disaster(ctx context.Context) error {
	head, err := s.a.api.Group(ctx, "demo")
	if err != nil {
		return err
	}
	if err := s.b.until(ctx, "the source's head has been heard", 30*time.Second, func(ctx context.Context) (bool, error) {
		st, err := s.b.api.Status(ctx)
		if err != nil || len(st.Groups) != 1 {
			return false, err
		}
		for _, l := range st.Groups[0].Lags {
			if l.Direction == "in" && l.Durable+l.BehindWrites >= head.Seq {
				return true, nil
			}
		}
		return false, nil
	}); err != nil {
		return err
	}
	s.say("\nkill -9 of the primary, after stamp %d.", s.result.Writes)
	if err := errors.Join(s.a.kill(), s.disk.die()); err != nil {
		return err
	}
	plan, done, began, err := s.failOver(ctx)
	if err != nil {
		return err
	}
	s.done = done
	if g, ok := s.disk.(*guestDisk); ok {
		g.qmp = done.QMP
	}
	r, err := s.survivors(ctx, done)
	if err != nil {
		return err
	}
	s.result.RTO = math.Round(time.Since(began).Seconds()*1000) / 1000
	s.say("  the disk is served at site b after %.2f s (order to every stamp read), epoch %d", s.result.RTO, done.Epoch)
	if s.result.Writes >= r.Max {
		s.result.Lost = s.result.Writes - r.Max
	}
	upto := s.result.Writes - s.result.ReportedLoss
	s.check(plan.Loss.Known && s.result.Lost == s.result.ReportedLoss && r.Max <= s.result.Writes,
		"the loss is what was reported before the order", "%d of %d writes lost, %d reported", s.result.Lost, s.result.Writes, s.result.ReportedLoss)
	s.check(s.result.Lost > 0, "there was something to lose", "%d writes", s.result.Lost)
	s.check(r.Torn == 0 && r.Foreign == 0 && r.Missing == 0 && r.Max == upto, "every stamp up to the reported point is there, none torn",
		"max %d, torn %d, foreign %d, missing %d", r.Max, r.Torn, r.Foreign, r.Missing)
	s.recheck(ctx, "the marked moment is still there after the failover")
	return nil
}

// survivor is what is left of the load at b.
type survivor struct{ Max, Torn, Foreign, Missing uint64 }

// survivors reads the promoted disk, from inside the guest where there is one.
func (s *story) survivors(ctx context.Context, done control.FailedOver) (survivor, error) {
	upto := s.result.Writes - min(s.result.ReportedLoss, s.result.Writes)
	if g, ok := s.disk.(*guestDisk); ok {
		v, err := g.verify(ctx, upto)
		return survivor{v.Max, v.Torn, v.Foreign, v.Missing}, err
	}
	c, err := dialExport(ctx, done.Exports[0].URI)
	if err != nil {
		return survivor{}, err
	}
	defer c.Close()
	r, err := stamp.Scan(remote{ctx, c}, 0, slots)
	return survivor{r.Max, r.Torn, r.Foreign, r.Missing(upto)}, err
}

// recheck proves that the marked moment is still there.
func (s *story) recheck(ctx context.Context, claim string) {
	r, err := s.b.inspect(ctx, "name:"+markName)
	if err != nil {
		s.check(false, claim, "%v", err)
		return
	}
	s.check(r.Max == s.marked && r.Whole(s.marked), claim, "%s", r.Report)
}
