// Package cri speaks the kubelet's Container Runtime Interface, v1: it decodes each
// call into plain values, makes one call on sandbox or image, and encodes the answer.
// Protobuf and gRPC live here and nowhere else.
//
// A field that the kubelet can send is carried on or refused by name; the few that are
// left aside on purpose are listed, each with its reason, in the test of decoding.
// Checkpoints and the metric calls answer Unimplemented, which the kubelet takes as a
// feature switch; nothing else does.
//
// Serve owns all goroutines: those of gRPC, one that ends them, and those of package
// stream. The package keeps no state of pods or images and leaves nothing on disk.
package cri
