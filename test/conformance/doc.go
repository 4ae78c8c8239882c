// Package conformance runs critest, the conformance suite of the Kubernetes
// container runtime interface, against the built daemon, and holds it to the
// number of specs that must pass.
//
// Registry, daemon and suite run in namespaces of their own (see package lab), so that
// whatever happens nothing of them outlives the test. It refuses to run without root.
//
//	go test ./test/conformance                       once serial, once with four workers
//	go test ./test/conformance -serial 3 -workers 0  three times in a row
//	go test ./test/conformance -focus 'Image Manager' -workers 0
//	go test ./test/conformance -benchmark            critest's five benchmarks only
package conformance
