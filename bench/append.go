package bench

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// appender is the raw baseline of ingest: one writer, O_DIRECT, into a file that
// was written once before, so that nothing of its metadata changes; each group is
// one write, as far as it fits the buffer, and one fdatasync.
type appender struct {
	f    *os.File
	size int64 // at which it begins anew
	buf  []byte
}

const (
	appendBuffer = 8 << 20
)

// newAppender makes the file and writes all of it.
func (d disk) newAppender(ctx context.Context, rng *rand.ChaCha8, size int64) (_ *appender, err error) {
	size = max(size&^(appendBuffer-1), 8*appendBuffer)
	f, err := d.open(filepath.Join(d.dir, "raw"), os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return nil, err
	}
	a := &appender{f: f, size: size}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.close())
		}
	}()
	if a.buf, err = aligned(appendBuffer); err != nil {
		return nil, err
	}
	_, _ = rng.Read(a.buf) // it always fills
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return nil, err
	}
	for at := int64(0); at < size && ctx.Err() == nil; at += int64(len(a.buf)) {
		if _, err := f.WriteAt(a.buf, at); err != nil {
			return nil, err
		}
	}
	return a, errors.Join(f.Sync(), ctx.Err())
}

func (a *appender) close() error {
	err := errors.Join(a.f.Close(), os.Remove(a.f.Name()))
	if a.buf != nil {
		err = errors.Join(err, unix.Munmap(a.buf))
	}
	return err
}

// run writes the groups, all at least once, and again until span is over.
func (a *appender) run(ctx context.Context, groups []int64, span time.Duration) (round, error) {
	var out round
	var at int64
	start := time.Now()
	for i := 0; i < len(groups) || time.Since(start) < span; i++ {
		if err := ctx.Err(); err != nil {
			return out, err
		}
		g := groups[i%len(groups)]
		if at+g > a.size {
			at = 0
		}
		begun := time.Now()
		for left := g; left > 0; {
			n := min(left, int64(len(a.buf)))
			if _, err := a.f.WriteAt(a.buf[:n], at); err != nil {
				return out, err
			}
			at, left = at+n, left-n
		}
		if err := unix.Fdatasync(int(a.f.Fd())); err != nil {
			return out, err
		}
		out.laps = append(out.laps, time.Since(begun))
		out.bytes += g
		out.ops++
	}
	out.took = time.Since(start)
	return out, nil
}
