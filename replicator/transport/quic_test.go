package transport

import "testing"

// What a session that is resumed with 0-RTT says can be replayed by anybody.
func TestNothingIsReadBeforeTheHandshake(t *testing.T) {
	if quicConfig(Options{LaneBytes: 1, MaxLanes: 1}, true).Allow0RTT {
		t.Error("0-RTT is on")
	}
}
