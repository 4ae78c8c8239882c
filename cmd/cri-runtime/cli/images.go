package cli

import (
	"context"
	"fmt"
	"time"

	rt "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func imageSpec(name string) *rt.ImageSpec {
	return &rt.ImageSpec{Image: name, UserSpecifiedImage: name}
}

// find asks for an image, nil when it is not there.
func (c *client) find(ctx context.Context, name string) (*rt.Image, error) {
	reply, err := c.images.ImageStatus(ctx, &rt.ImageStatusRequest{Image: imageSpec(name)})
	if err != nil {
		return nil, fmt.Errorf("look for image %s: %w", name, plain(err))
	}
	return reply.Image, nil
}

// pull fetches an image, for a pod or for none.
func (c *client) pull(ctx context.Context, name string, pod *rt.PodSandboxConfig, show *screen) (*rt.Image, error) {
	start := time.Now()
	done := show.wait("image", "pulling "+name)
	_, err := c.images.PullImage(ctx, &rt.PullImageRequest{Image: imageSpec(name), SandboxConfig: pod})
	done()
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", name, plain(err))
	}
	image, err := c.find(ctx, name)
	if err != nil {
		return nil, err
	}
	if image == nil {
		return nil, fmt.Errorf("pull %s: the runtime does not know it afterwards", name)
	}
	show.step("image", "%s pulled in %s, %.1f MB", name, took(start), float64(image.Size)/1e6)
	return image, nil
}
