package stormtest

import (
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/novacron/afterimage/replicator/transport/transporttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFineWeatherConforms(t *testing.T) { transporttest.Conform(t, New(1).Open) }

func TestFoulWeatherConforms(t *testing.T) {
	n := New(2)
	n.Set(Weather{Least: 100 * time.Microsecond, Most: time.Millisecond, LossPercent: 10})
	transporttest.Conform(t, n.Open)
}
