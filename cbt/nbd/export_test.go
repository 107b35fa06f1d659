package nbd

// NewClient negotiates on a connection that a test made.
var NewClient = newClient
