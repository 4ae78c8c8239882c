// Package container holds the long tail of what a container can be: whom it runs as,
// what it may do, what it sees of the file system, its namespaces, streams and limits.
//
// Each test goes through the socket of the built program on a real kernel and looks at
// the result from inside the container or in the kernel's own files, never in the
// runtime's. It keeps no state: a test has a daemon of its own (package node) and ends
// with a look at what is left.
package container
