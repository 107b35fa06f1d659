package transport

import (
	"context"
	"fmt"
	"net"
	"time"
)

// resolveTimeout bounds the wait for a name server.
const resolveTimeout = 10 * time.Second

// resolve finds the address behind host:port.
func resolve(ctx context.Context, network, address string) (net.IPAddr, int, error) {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return net.IPAddr{}, 0, fmt.Errorf("resolve %s: %w", address, err)
	}
	port, err := net.DefaultResolver.LookupPort(ctx, network, service)
	if err != nil {
		return net.IPAddr{}, 0, fmt.Errorf("resolve %s: %w", address, err)
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	ips, err := net.DefaultResolver.LookupIPAddr(ctx, host)
	if err != nil {
		return net.IPAddr{}, 0, fmt.Errorf("resolve %s: %w", address, err)
	}
	if len(ips) == 0 {
		return net.IPAddr{}, 0, fmt.Errorf("resolve %s: %w", address, ErrNoAddress)
	}
	return ips[0], port, nil
}
