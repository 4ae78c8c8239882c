// Package promises counts what docs/promises.md promises, where the count does not depend on
// how busy the machine is: system calls, programs, processes, descriptors, messages, memory,
// and instructions where the processor counts them. It measures no time.
//
// It runs the built daemon in namespaces of its own (package lab) with pods like a kubelet's
// (package load), under strace for the calls. Each figure is printed, and fails its test when
// it is above its limit. Nothing of it stays on disk.
package promises
