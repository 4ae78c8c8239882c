package cri

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/image"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/sandbox"
)

// decodeImage gives the reference of a request and checks its runtime handler. All
// handlers use the same store, but CRI wants an unknown one refused.
func (s *imageService) decodeImage(ctx context.Context, spec *pb.ImageSpec) (string, error) {
	ref := spec.GetImage()
	if err := field("image.image").required(ref); err != nil {
		return "", err
	}
	if h := spec.GetRuntimeHandler(); h != "" {
		handlers := s.deps.Runtime.Status(ctx, false).Handlers
		if !slices.ContainsFunc(handlers, func(x sandbox.Handler) bool { return x.Name == h }) {
			return "", field("image.runtime_handler").refuse("%q is unknown", h)
		}
	}
	return ref, nil
}

// PullImage uses sandbox_config only to note for which pod it is: nothing of a pull
// depends on that. The store stops the shared work when the last of its callers has gone.
func (s *imageService) PullImage(ctx context.Context, r *pb.PullImageRequest) (*pb.PullImageResponse, error) {
	ref, err := s.decodeImage(ctx, r.GetImage())
	if err != nil {
		return nil, err
	}
	done := s.starts(ctx, r.GetSandboxConfig().GetMetadata(), ref)
	a := r.GetAuth()
	id, err := s.deps.Images.Pull(ctx, image.PullRequest{
		Ref:         ref,
		Annotations: copyMap(r.GetImage().GetAnnotations()),
		Auth: image.Auth{
			Username: a.GetUsername(), Password: a.GetPassword(), Auth: a.GetAuth(),
			ServerAddress: a.GetServerAddress(), IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken(),
		},
	})
	done(id, err)
	return &pb.PullImageResponse{ImageRef: string(id)}, err
}

// starts notes that a pull belongs to the start of a pod.
func (s *imageService) starts(ctx context.Context, m *pb.PodSandboxMetadata, ref string) (done func(image.ID, error)) {
	if s.deps.Starts == nil {
		return func(image.ID, error) {}
	}
	pod := sandbox.Metadata{Name: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUid(), Attempt: m.GetAttempt()}
	return s.deps.Starts.Pulling(ctx, pod, ref)
}

// ImageStatus answers with nothing, and no error, for an image that is not there. Asked
// for details, it shows a pull of the reference that is in flight under "pull": CRI has
// no other place for how far it is.
func (s *imageService) ImageStatus(ctx context.Context, r *pb.ImageStatusRequest) (*pb.ImageStatusResponse, error) {
	ref, err := s.decodeImage(ctx, r.GetImage())
	if err != nil {
		return nil, err
	}
	out := &pb.ImageStatusResponse{}
	img, err := s.deps.Images.Resolve(ref)
	switch {
	case err == nil:
		out.Image = encodeImage(img)
	case !errors.Is(err, errdef.ErrNotFound):
		return nil, err
	}
	if !r.GetVerbose() {
		return out, nil
	}
	if img != nil {
		if out.Info, err = encodeInfo(imageInfo(img)); err != nil {
			return nil, err
		}
	}
	pull, ok := s.deps.Pulls.Pulling(ref)
	if !ok {
		return out, nil
	}
	out.Info, err = addInfo(out.Info, "pull", pull)
	return out, err
}

func (s *imageService) RemoveImage(ctx context.Context, r *pb.RemoveImageRequest) (*pb.RemoveImageResponse, error) {
	ref, err := s.decodeImage(ctx, r.GetImage())
	if err != nil {
		return nil, err
	}
	return &pb.RemoveImageResponse{}, s.deps.Images.Remove(ctx, ref)
}

// images is the one list behind ListImages and StreamImages.
func (s *imageService) images(f *pb.ImageFilter) ([]*pb.Image, error) {
	ref := f.GetImage().GetImage()
	if ref == "" {
		return convert(s.deps.Images.List(), encodeImage), nil
	}
	img, err := s.deps.Images.Resolve(ref)
	if errors.Is(err, errdef.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return []*pb.Image{encodeImage(img)}, nil
}

func (s *imageService) ListImages(_ context.Context, r *pb.ListImagesRequest) (*pb.ListImagesResponse, error) {
	images, err := s.images(r.GetFilter())
	return &pb.ListImagesResponse{Images: images}, err
}

func (s *imageService) StreamImages(r *pb.StreamImagesRequest, out grpc.ServerStreamingServer[pb.StreamImagesResponse]) error {
	images, err := s.images(r.GetFilter())
	if err != nil {
		return err
	}
	return sendBatches(images, func(batch []*pb.Image) error {
		return out.Send(&pb.StreamImagesResponse{Images: batch})
	})
}

// ImageFsInfo fills both lists: the kubelet's path through cAdvisor fails when either
// is empty.
func (s *imageService) ImageFsInfo(context.Context, *pb.ImageFsInfoRequest) (*pb.ImageFsInfoResponse, error) {
	now := time.Now()
	layers, writable, err := s.deps.Images.FsUsage()
	if err != nil {
		return nil, fmt.Errorf("measure image store: %w", err)
	}
	usage := func(f image.FsStat) []*pb.FilesystemUsage {
		return []*pb.FilesystemUsage{encodeFilesystem(now, f.Path, f.Bytes, f.Inodes)}
	}
	return &pb.ImageFsInfoResponse{ImageFilesystems: usage(layers), ContainerFilesystems: usage(writable)}, nil
}

// encodeImage shows an image under its one identity. The user decides whether the
// kubelet's runAsNonRoot can be kept.
func encodeImage(i *image.Image) *pb.Image {
	uid, name := encodeUser(i.Config.User)
	return &pb.Image{
		Id:          string(i.ID),
		RepoTags:    i.RepoTags,
		RepoDigests: i.RepoDigests,
		Size:        uint64(max(i.Size, 1)), // 0 makes the kubelet fail
		Uid:         uid,
		Username:    name,
		Spec:        &pb.ImageSpec{Image: string(i.ID)},
		Pinned:      i.Pinned,
	}
}

// encodeUser splits "user[:group]" of an image's configuration: a number or a name.
// No user at all is neither, which the kubelet takes for root.
func encodeUser(user string) (*pb.Int64Value, string) {
	name, _, _ := strings.Cut(user, ":")
	if uid, err := strconv.ParseInt(name, 10, 64); err == nil {
		return &pb.Int64Value{Value: uid}, ""
	}
	return nil, name
}

// imageInfo is what a verbose status shows, with containerd's names where it has one.
func imageInfo(i *image.Image) map[string]any {
	c := i.Config
	config := map[string]any{
		"User": c.User, "Env": c.Env, "Entrypoint": c.Entrypoint, "Cmd": c.Cmd, "WorkingDir": c.WorkingDir,
		"StopSignal": c.StopSignal, "Volumes": c.Volumes, "ExposedPorts": c.ExposedPorts, "Labels": c.Labels,
	}
	return map[string]any{
		"chainID": i.ChainID.String(),
		"diffIDs": i.DiffIDs,
		"usage":   map[string]any{"bytes": i.Size, "uniqueBytes": i.Unique, "sharedBytes": i.Size - i.Unique},
		"imageSpec": map[string]any{
			"created": i.Created, "architecture": c.Arch, "os": c.OS, "variant": c.Variant, "config": config,
		},
	}
}
