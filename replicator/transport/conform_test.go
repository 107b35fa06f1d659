package transport_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/novacron/afterimage/replicator/transport"
	"github.com/novacron/afterimage/replicator/transport/transporttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestQUICConforms(t *testing.T) {
	transporttest.Conform(t, func(o transport.Options) (transport.Transport, error) { return transport.NewQUIC(o) })
}

func TestMemoryConforms(t *testing.T) { transporttest.Conform(t, transporttest.NewNetwork().Open) }

func TestTLSConforms(t *testing.T) {
	transporttest.Conform(t, func(o transport.Options) (transport.Transport, error) { return transport.NewTLS(o) })
}
