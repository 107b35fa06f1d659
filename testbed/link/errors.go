package link

import "errors"

// ErrTooManyClients ends Run when datagrams came from more than 256 addresses.
var ErrTooManyClients = errors.New("link: too many client addresses")
