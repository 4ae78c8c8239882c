package cri

import (
	"encoding/json"
	"testing"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/image"
)

// A pull in flight shows in verbose answers, and in no others: with the image that the
// reference stands for so far, or without one.
func TestPullInFlight(t *testing.T) {
	s := serve(t)
	spec := &pb.ImageSpec{Image: "busybox"}
	s.images.mu.Lock()
	s.images.pulls = []image.PullStatus{{Ref: "busybox", Phase: image.PhasePulling, Done: 5, Total: 9}}
	s.images.mu.Unlock()
	status := func(ref string, verbose bool) *pb.ImageStatusResponse {
		t.Helper()
		st, err := s.img.ImageStatus(t.Context(), &pb.ImageStatusRequest{Image: &pb.ImageSpec{Image: ref}, Verbose: verbose})
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	check := func(text string) {
		t.Helper()
		var p image.PullStatus
		if err := json.Unmarshal([]byte(text), &p); err != nil || p.Done != 5 || p.Phase != image.PhasePulling {
			t.Errorf("pull: got %q, %v", text, err)
		}
	}
	st := status("busybox", true)
	check(st.Info["pull"])
	if st.Image != nil || len(st.Info) != 1 {
		t.Errorf("absent image: got %v", st)
	}
	if st := status("busybox", false); len(st.Info) != 0 {
		t.Errorf("not verbose: got %v", st)
	}
	if st := status("other", true); st.Image != nil || len(st.Info) != 0 {
		t.Errorf("another reference: got %v", st)
	}
	if _, err := s.img.PullImage(t.Context(), &pb.PullImageRequest{Image: spec}); err != nil {
		t.Fatal(err)
	}
	st = status("busybox", true)
	check(st.Info["pull"])
	if st.Image == nil || st.Info["info"] == "" {
		t.Errorf("pulled again: got %v", st)
	}
	node, err := s.Status(t.Context(), &pb.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var pulls []image.PullStatus
	if err := json.Unmarshal([]byte(node.Info["pulls"]), &pulls); err != nil || len(pulls) != 1 || pulls[0].Total != 9 {
		t.Errorf("status: got %q, %v", node.Info["pulls"], err)
	}
}
