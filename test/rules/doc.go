// Package rules holds what the kubelet expects of a runtime beyond the words of the
// interface, one test a rule, against the built program on a real kernel through its
// socket. It keeps no state: each test has a daemon of its own in namespaces of its
// own (package lab) and ends with a look at what is left.
package rules
