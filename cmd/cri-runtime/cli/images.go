package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"
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

// pullOptions say for whom an image is pulled, and how to show it.
type pullOptions struct {
	pod    *rt.PodSandboxConfig // nil: none
	auth   *rt.AuthConfig       // nil: none
	output string               // "" is text
}

// pulled is how a pull ended, as JSON shows it.
type pulled struct {
	Ref     string  `json:"ref"`
	Image   string  `json:"image,omitempty"`
	Bytes   uint64  `json:"bytes,omitempty"`
	Seconds float64 `json:"seconds"`
	Error   string  `json:"error,omitempty"`
}

// pull fetches an image and shows how far it is.
func (c *client) pull(ctx context.Context, name string, o pullOptions, show *screen) (*rt.Image, error) {
	start := time.Now()
	image, err := c.pullShown(ctx, name, o, show)
	if o.output == outputJSON {
		end := pulled{Ref: name, Image: image.GetId(), Bytes: image.GetSize(), Seconds: time.Since(start).Seconds()}
		if err != nil {
			end.Error = err.Error()
		}
		printJSON(show.out, end)
		return image, err
	}
	if err != nil {
		return nil, err
	}
	show.step("image", "%s pulled in %s, %.1f MB", name, took(start), float64(image.Size)/1e6)
	return image, nil
}

func (c *client) pullShown(ctx context.Context, name string, o pullOptions, show *screen) (*rt.Image, error) {
	var pull sync.WaitGroup
	var err error
	done := make(chan struct{})
	pull.Go(func() {
		defer close(done)
		_, err = c.images.PullImage(ctx, &rt.PullImageRequest{Image: imageSpec(name), SandboxConfig: o.pod, Auth: o.auth})
	})
	idle := func() {}
	if o.output != outputJSON {
		idle = newSpinner(show, "image", "pulling "+name).tick
	}
	c.follow(ctx, name, done, newView(show, o.output), idle)
	pull.Wait()
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
	return image, nil
}

// imageLine is an image as `image ls` shows it.
type imageLine struct {
	ID      string   `json:"id"`
	Tags    []string `json:"tags"`
	Digests []string `json:"digests"`
	Bytes   uint64   `json:"bytes"`
	Unique  int64    `json:"uniqueBytes"` // of bytes: what no other image shares
	Pinned  bool     `json:"pinned"`
}

// unique asks how much of an image's bytes no other image shares. CRI has no field for
// it: runtimes other than ours do not tell.
func (c *client) unique(ctx context.Context, id string) (int64, bool) {
	reply, err := c.images.ImageStatus(ctx, &rt.ImageStatusRequest{Image: &rt.ImageSpec{Image: id}, Verbose: true})
	if err != nil {
		return 0, false // removed meanwhile
	}
	var info struct {
		Usage struct {
			UniqueBytes *int64 `json:"uniqueBytes"`
		} `json:"usage"`
	}
	if json.Unmarshal([]byte(reply.Info["info"]), &info) != nil || info.Usage.UniqueBytes == nil {
		return 0, false
	}
	return *info.Usage.UniqueBytes, true
}

// listImages prints all images, a line for each name.
func (c *client) listImages(ctx context.Context, out io.Writer, output string) error {
	reply, err := c.images.ListImages(ctx, &rt.ListImagesRequest{})
	if err != nil {
		return fmt.Errorf("list images: %w", plain(err))
	}
	if output == outputJSON {
		list := []imageLine{}
		for _, i := range reply.Images {
			own, _ := c.unique(ctx, i.Id)
			list = append(list, imageLine{i.Id, i.RepoTags, i.RepoDigests, i.Size, own, i.Pinned})
		}
		printJSON(out, list)
		return nil
	}
	rows := [][]string{{"IMAGE", "ID", "SIZE", "UNIQUE"}}
	for _, i := range reply.Images {
		own := "-"
		if n, ok := c.unique(ctx, i.Id); ok {
			own = size(n)
		}
		names := i.RepoTags
		if len(names) == 0 {
			names = i.RepoDigests
		}
		if len(names) == 0 {
			names = []string{"-"}
		}
		for _, n := range names {
			rows = append(rows, []string{printable(n), shortID(i.Id), size(int64(i.Size)), own}) // #nosec G115 -- a size on disk
		}
	}
	table(out, rows)
	return nil
}
