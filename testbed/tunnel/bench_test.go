package tunnel

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/novacron/afterimage/testbed/link"
)

// flood is set in a process that floods a TCP address.
const flood = "AFTERIMAGE_TUNNEL_FLOOD"

func floodMain(address string) {
	c, err := net.Dial("tcp4", address)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	p := make([]byte, 1<<20)
	for err == nil {
		_, err = c.Write(p)
	}
}

// BenchmarkTunnel floods a path of 400 Mbit/s and 50 ms with TCP from another process,
// and tells what the path costs: cores is the time of this process over that of the
// clock, and this process also takes what arrives (a few hundredths).
func BenchmarkTunnel(b *testing.B) {
	const rate = 400_000_000 / 8
	l, near, far := up(b, link.Config{RTT: 50 * time.Millisecond, BytesPerSecond: rate})
	var listener net.Listener
	if err := far.Do(func() (err error) {
		listener, err = net.Listen("tcp4", "10.213.1.2:0")
		return err
	}); err != nil {
		b.Fatal(err)
	}
	defer listener.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), flood+"="+listener.Addr().String())
	if err := near.Start(cmd); err != nil {
		b.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	c, err := listener.Accept()
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	const unit = 1 << 20
	if _, err := io.CopyN(io.Discard, c, 64<<20); err != nil { // past the slow start
		b.Fatal(err)
	}
	b.SetBytes(unit)
	before, began := processorTime(b), time.Now()
	sent, _ := l.Stats()
	b.ResetTimer()
	if _, err := io.CopyN(io.Discard, c, int64(b.N)*unit); err != nil {
		b.Fatal(err)
	}
	took := time.Since(began)
	b.ReportMetric(float64(processorTime(b)-before)/float64(took), "cores")
	now, _ := l.Stats()
	b.ReportMetric(float64(now.DeliveredBytes-sent.DeliveredBytes)/took.Seconds()/rate, "of-the-rate")
}

func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
