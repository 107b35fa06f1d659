package fence

import (
	"context"
	"fmt"
	"os/exec"
	"time"
)

// Quiet is a channel on which a machine that runs is heard: silence says something only
// after it was heard, for what was silent before may be cut off.
type Quiet struct {
	What string // "ping 192.0.2.7"
	// Heard asks once; an error leaves open whether it could be heard at all.
	Heard func(ctx context.Context) (bool, error)
	For   time.Duration // of silence, in which it is asked again and again; default 3 s
	Host  bool          // it is the host that is heard
}

var _ Channel = Quiet{}

const (
	defaultQuiet = 3 * time.Second
	askAgain     = 100 * time.Millisecond
)

// Name implements Channel.
func (q Quiet) Name() string { return q.What }

// OfHost tells that the host is heard.
func (q Quiet) OfHost() bool { return q.Host }

// Glance asks once.
func (q Quiet) Glance(ctx context.Context) (State, string, error) {
	heard, err := q.Heard(ctx)
	switch {
	case err != nil:
		return Unseen, "", fmt.Errorf("%w: %w", ErrUnreachable, err)
	case heard:
		return SeenOn, "it answers", nil
	}
	return SeenSilent, "no answer", nil
}

// Read implements Channel: on as soon as it is heard, silent after For.
func (q Quiet) Read(ctx context.Context) (State, string, error) {
	span := q.For
	if span <= 0 {
		span = defaultQuiet
	}
	late := time.NewTimer(span)
	defer late.Stop()
	tick := time.NewTicker(askAgain)
	defer tick.Stop()
	for {
		heard, err := q.Heard(ctx)
		switch {
		case err != nil:
			return Unseen, "", fmt.Errorf("%w: %w", ErrUnreachable, err)
		case heard:
			return SeenOn, "it answers", nil
		}
		select {
		case <-tick.C:
		case <-late.C:
			return SeenSilent, fmt.Sprintf("no answer for %v", span), nil
		case <-ctx.Done():
			return Unseen, "", fmt.Errorf("%w: %w", ErrUnreachable, context.Cause(ctx))
		}
	}
}

// Ping is a Quiet that sends ICMP echoes, by the program ping.
func Ping(address string, ofHost bool, span time.Duration) Quiet {
	return Quiet{What: "ping " + address, For: span, Host: ofHost, Heard: func(ctx context.Context) (bool, error) {
		cmd := exec.CommandContext(ctx, "ping", "-n", "-c", "1", "-W", "1", "--", address)
		err := cmd.Run()
		if cmd.ProcessState == nil || ctx.Err() != nil || cmd.ProcessState.ExitCode() > 1 { // 1: no reply; more: it could not ask
			return false, fmt.Errorf("ping %s: %w", address, err)
		}
		return err == nil, nil
	}}
}
