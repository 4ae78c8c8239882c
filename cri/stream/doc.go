// Package stream serves exec, attach and port-forward connections: SPDY and WebSocket,
// the latter also with protocol v5 and with tunnelled port forwarding, for clients that
// bring a token which a CRI call gave out.
//
// It listens on the loopback interface only, since the kubelet proxies to it without
// TLS; a token is random, good for one connection and for one minute.
//
// Server.Serve owns all goroutines. A session has a context that ends when its
// connection does, however that happens, and when Serve's does. Nothing is on disk.
package stream
