package bench

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
)

// Kinds of bare transports: the library's own copy into nothing.
const (
	bareTLS  = "tls"
	bareQUIC = "quic"
)

// bare sends bytes over a library's connection, or takes and drops them.
type bare struct {
	sunk atomic.Int64
	free []func() error // what close calls
}

const bareProtocol = "afterimage-bench"

// bareServer is TLS 1.3 as the standard library sets it up, under a key of this moment.
func bareServer() (*tls.Config, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{bareProtocol}, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, nil
}

func bareClient() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{bareProtocol}, InsecureSkipVerify: true}
}

// EndBare says which library, and where.
type EndBare struct{ Kind, Address string }

// Sink takes what one connection brings and drops it. It gives the address.
func (e *end) Sink(b EndBare, address *string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	conf, err := bareServer()
	if err != nil {
		return err
	}
	e.bare.sunk.Store(0)
	switch b.Kind {
	case bareTLS:
		l, err := tls.Listen("tcp4", b.Address, conf)
		if err != nil {
			return err
		}
		e.bare.free = append(e.bare.free, l.Close)
		*address = l.Addr().String()
		go func() {
			if c, err := l.Accept(); err == nil {
				e.bare.drop(c)
			}
		}()
	case bareQUIC:
		l, err := quic.ListenAddr(b.Address, conf, nil)
		if err != nil {
			return err
		}
		e.bare.free = append(e.bare.free, l.Close)
		*address = l.Addr().String()
		go func() {
			if c, err := l.Accept(context.Background()); err == nil {
				if s, err := c.AcceptUniStream(context.Background()); err == nil {
					e.bare.drop(s)
				}
			}
		}()
	default:
		return fmt.Errorf("no library is called %q", b.Kind)
	}
	return nil
}

func (b *bare) drop(r io.Reader) {
	p := make([]byte, 1<<20)
	for {
		n, err := r.Read(p)
		b.sunk.Add(int64(n))
		if err != nil {
			return
		}
	}
}

// Flood writes to a sink until Quiet.
func (e *end) Flood(b EndBare, _ *None) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	var w io.Writer
	switch b.Kind {
	case bareTLS:
		c, err := (&tls.Dialer{Config: bareClient()}).DialContext(ctx, "tcp4", b.Address)
		if err != nil {
			return err
		}
		e.bare.free = append(e.bare.free, func() error { return c.(*tls.Conn).NetConn().Close() })
		w = c
	case bareQUIC:
		c, err := quic.DialAddr(ctx, b.Address, bareClient(), nil)
		if err != nil {
			return err
		}
		e.bare.free = append(e.bare.free, func() error { return c.CloseWithError(0, "") })
		s, err := c.OpenUniStreamSync(ctx)
		if err != nil {
			return err
		}
		w = s
	default:
		return fmt.Errorf("no library is called %q", b.Kind)
	}
	go func() {
		p := make([]byte, 1<<20)
		_, _ = rand.Read(p) // it always fills
		for err := error(nil); err == nil; {
			_, err = w.Write(p)
		}
	}()
	return nil
}

// Quiet ends sinks and floods.
func (e *end) Quiet(None, *None) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.bare.close()
}

func (b *bare) close() error {
	var err error
	for _, f := range b.free {
		if e := f(); e != nil && !errors.Is(e, net.ErrClosed) {
			err = errors.Join(err, e)
		}
	}
	b.free = nil
	return err
}
