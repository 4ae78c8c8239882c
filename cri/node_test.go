package cri

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

func TestNode(t *testing.T) {
	s := serve(t)
	v, err := s.Version(t.Context(), &pb.VersionRequest{})
	if err != nil || v.RuntimeName != "cri-runtime" || v.RuntimeVersion != "1.2.3" || v.RuntimeApiVersion != "v1" {
		t.Errorf("version: %v, %v", v, err)
	}
	st, err := s.Status(t.Context(), &pb.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if c := st.Status.Conditions; len(c) != 2 || c[0].Type != pb.RuntimeReady || !c[0].Status || c[1].Type != pb.NetworkReady || c[1].Status || c[1].Message == "" {
		t.Errorf("conditions: %v", c)
	}
	if h := st.RuntimeHandlers; len(h) != 2 || h[0].Name != "" || !h[0].Features.RecursiveReadOnlyMounts || !h[1].Features.UserNamespaces {
		t.Errorf("handlers: %v", h)
	}
	if f := st.Features; !f.SupplementalGroupsPolicy || !f.MountOptions || !f.UserNamespacesHostNetwork {
		t.Errorf("features: %v", f)
	}
	var config struct{ StateDir, Root string }
	if err := json.Unmarshal([]byte(st.Info["config"]), &config); err != nil || config.StateDir != "/run/x/state" || config.Root == "" {
		t.Errorf("config in verbose status: %v, %v", st.Info, err)
	}
	c, err := s.RuntimeConfig(t.Context(), &pb.RuntimeConfigRequest{})
	if err != nil || c.Linux.CgroupDriver != pb.CgroupDriver_CGROUPFS {
		t.Errorf("RuntimeConfig: %v, %v", c, err)
	}
	for list, want := range map[string]string{"": "null", "10.1.2.3/8, fd00::/64": `["10.0.0.0/8","fd00::/64"]`} {
		_, err := s.UpdateRuntimeConfig(t.Context(), &pb.UpdateRuntimeConfigRequest{
			RuntimeConfig: &pb.RuntimeConfig{NetworkConfig: &pb.NetworkConfig{PodCidr: list}}})
		if got := s.fake.calls[len(s.fake.calls)-1]; err != nil || got != "UpdateRuntimeConfig["+want+"]" {
			t.Errorf("pod_cidr %q: got %s, %v", list, got, err)
		}
	}
	_, err = s.UpdateRuntimeConfig(t.Context(), &pb.UpdateRuntimeConfigRequest{
		RuntimeConfig: &pb.RuntimeConfig{NetworkConfig: &pb.NetworkConfig{PodCidr: "10.0.0.0"}}})
	wantCode(t, "bad pod_cidr", err, codes.InvalidArgument)
}

func TestImages(t *testing.T) {
	s := serve(t)
	spec := &pb.ImageSpec{Image: "busybox"}
	st, err := s.img.ImageStatus(t.Context(), &pb.ImageStatusRequest{Image: spec})
	if err != nil || st.Image != nil {
		t.Errorf("status of an absent image: got %v, %v, want an empty answer", st, err)
	}
	p, err := s.img.PullImage(t.Context(), &pb.PullImageRequest{Image: spec})
	if err != nil {
		t.Fatal(err)
	}
	st, err = s.img.ImageStatus(t.Context(), &pb.ImageStatusRequest{Image: spec, Verbose: true})
	if err != nil || st.Image.Id != p.ImageRef || st.Image.Size == 0 || st.Image.Uid.GetValue() != 1000 || st.Image.Username != "" || !st.Image.Pinned {
		t.Errorf("status: %v, %v", st, err)
	}
	if !strings.Contains(st.Info["info"], "imageSpec") {
		t.Errorf("info: %v", st.Info)
	}
	l, err := s.img.ListImages(t.Context(), &pb.ListImagesRequest{Filter: &pb.ImageFilter{Image: &pb.ImageSpec{Image: "other"}}})
	if err != nil || len(l.Images) != 0 {
		t.Errorf("filtered list: %v, %v", l, err)
	}
	_, err = s.img.PullImage(t.Context(), &pb.PullImageRequest{Image: &pb.ImageSpec{Image: "a", RuntimeHandler: "kata"}})
	wantCode(t, "unknown handler", err, codes.InvalidArgument)
	fs, err := s.img.ImageFsInfo(t.Context(), &pb.ImageFsInfoRequest{})
	if err != nil || len(fs.ImageFilesystems) != 1 || len(fs.ContainerFilesystems) != 1 || fs.ImageFilesystems[0].FsId.Mountpoint != "/var/lib/a" {
		t.Errorf("ImageFsInfo: %v, %v", fs, err)
	}
	for range 2 {
		if _, err := s.img.RemoveImage(t.Context(), &pb.RemoveImageRequest{Image: spec}); err != nil {
			t.Error(err)
		}
	}
	s.fake.fail = fmt.Errorf("pull busybox: %w", errdef.WithPrefix(errdef.RegistryUnavailable, errors.New("refused")))
	_, err = s.img.PullImage(t.Context(), &pb.PullImageRequest{Image: spec})
	if status.Code(err) != codes.Unknown || status.Convert(err).Message() != "RegistryUnavailable: pull busybox: refused" {
		t.Errorf("unreachable registry: %v", err)
	}
}

func TestUser(t *testing.T) {
	for user, want := range map[string]string{"": "<nil> ", "0": "0 ", "1000:100": "1000 ", "www": "<nil> www", "www:data": "<nil> www"} {
		uid, name := encodeUser(user)
		got := "<nil> " + name
		if uid != nil {
			got = fmt.Sprint(uid.Value, " ", name)
		}
		if got != want {
			t.Errorf("user %q: got %s, want %s", user, got, want)
		}
	}
}
