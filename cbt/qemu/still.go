package qemu

import (
	"context"
	"fmt"

	"github.com/novacron/afterimage/cbt"
)

func stillKey(v cbt.ID) string { return "qemu/" + v.String() + "/still" }

// foresee asks whether the guest runs, and remembers that it may be stopped by us, so
// that a life that ends in between does not leave it so. It takes its time.
func (c *collector) foresee(ctx context.Context) error {
	if c.t.opts.Still != nil {
		return nil
	}
	var err error
	if c.ran, err = c.m.runs(ctx); err != nil || !c.ran {
		return err // one that stands still already is not ours to wake
	}
	if err := c.t.opts.Memory.Remember(stillKey(c.t.opts.Name), true); err != nil {
		return fmt.Errorf("remember the pause: %w", err)
	}
	return nil
}

// hush stops the machine's guest until wake.
func (c *collector) hush(ctx context.Context) error {
	if still := c.t.opts.Still; still != nil {
		resume, err := still(ctx, c.m.Monitor)
		c.resume = resume
		return err
	}
	if !c.ran {
		return nil
	}
	c.resume = func(ctx context.Context) error {
		if err := c.m.do(ctx, "cont", nil, nil); err != nil {
			return fmt.Errorf("resume the guest: %w", err)
		}
		return nil
	}
	return c.m.do(ctx, "stop", nil, nil)
}

// wake undoes hush, whatever became of it or of ctx.
func (c *collector) wake(ctx context.Context) error {
	if c.resume == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commandPatience)
	defer cancel()
	err := c.resume(ctx)
	if err == nil {
		c.resume = nil
	}
	return err
}

// forgetStill is for after a pause: writing to Memory takes time.
func (c *collector) forgetStill() error {
	if c.t.opts.Still != nil || c.resume != nil {
		return nil
	}
	return c.t.opts.Memory.Remember(stillKey(c.t.opts.Name), false)
}

// wakeLeft resumes a guest that an earlier life may have left stopped.
func (c *collector) wakeLeft(ctx context.Context) error {
	var still bool
	known, err := c.t.opts.Memory.Recall(stillKey(c.t.opts.Name), &still)
	if err != nil || !known || !still {
		return err
	}
	if runs, err := c.m.runs(ctx); err != nil {
		return err
	} else if !runs {
		c.t.opts.Log.Warn("resume a guest that an earlier life left stopped")
		if err := c.m.do(ctx, "cont", nil, nil); err != nil {
			return fmt.Errorf("resume the guest: %w", err)
		}
	}
	return c.forgetStill()
}

// runs asks whether the guest does.
func (m *machine) runs(ctx context.Context) (bool, error) {
	var status struct {
		Running bool `json:"running"`
	}
	err := m.do(ctx, "query-status", nil, &status)
	return status.Running, err
}
