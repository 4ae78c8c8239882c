// Package power holds that images survive power cuts, full disks and damage: what a
// store lists is whole to the last byte, or it is not listed and can be pulled again.
//
// The disk of a power cut is a loop device over a file that the test itself serves
// through FUSE: so it sees every write and every flush, and can say at any moment what a
// disk with a volatile write cache may hold after a cut. A copy of a backing file that is
// being written to would be of no one moment.
//
// Everything runs in package lab's namespaces; goroutines and mounts end with their test.
// CRI_SOAK=1 makes the rounds many: make soak.
package power
