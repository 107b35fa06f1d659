package site

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery/witness"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/fault"
)

// openWitness makes a client; it connects when first asked.
func openWitness(c *config.Witness) (*witness.Etcd, error) {
	o := witness.EtcdOptions{Endpoints: c.Etcd, Dial: max(time.Second, time.Duration(c.TTL)/8)}
	if t := c.TLS; t != nil {
		o.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
		if t.CA != "" {
			pem, err := os.ReadFile(t.CA)
			if err != nil {
				return nil, err
			}
			o.TLS.RootCAs = x509.NewCertPool()
			if !o.TLS.RootCAs.AppendCertsFromPEM(pem) {
				return nil, fault.New(fault.FileTrouble, "read "+t.CA, "it holds no certificate in PEM")
			}
		}
		if t.Cert != "" {
			pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
			if err != nil {
				return nil, fault.Wrap(fault.FileTrouble, "read "+t.Cert+" and "+t.Key, err)
			}
			o.TLS.Certificates = []tls.Certificate{pair}
		}
	}
	return witness.OpenEtcd(o)
}

// witness asks every endpoint once.
func (e *examination) witness(ctx context.Context, c *config.Witness) {
	if c == nil {
		return
	}
	e.subject = "witness"
	if len(c.Etcd) < 3 {
		e.say(FindingWarning, "three members or more, in places that fail apart from all sites", "the witness has %d endpoints: when it is away, a primary goes on only as long as all its peers say that they hold off", len(c.Etcd))
	}
	for _, endpoint := range c.Etcd {
		one := *c
		one.Etcd = []string{endpoint}
		if err := asksWitness(ctx, &one); err != nil {
			e.say(FindingProblem, "start it, or put the endpoint and tls: right", "etcd %s: %v", endpoint, err)
			continue
		}
		e.say(FindingOK, "", "etcd %s answers", endpoint)
	}
}

func asksWitness(ctx context.Context, c *config.Witness) error {
	w, err := openWitness(c)
	if err != nil {
		return err
	}
	defer w.Close()
	ctx, cancel := context.WithTimeout(ctx, examineBounded)
	defer cancel()
	if _, _, err := w.Holder(ctx, cbt.NewID()); err != nil {
		return fmt.Errorf("it does not answer: %w", err)
	}
	return nil
}
