// Package e2e runs the built programs on a real kernel, as their users do: `make run`,
// a real kubelet over our socket, and a daemon that is killed again and again.
//
// Its tests run in namespaces of their own (see package lab) and own no goroutine
// beyond a test's end. They refuse to run without root, and leave nothing on disk.
//
//	go test ./test/e2e                       all; the kubelet's where a kubelet has been built
//	go test ./test/e2e -run Kubelet -kubelet   builds the kubelet first
//	go test ./test/e2e -run Restart -kills 200
package e2e
