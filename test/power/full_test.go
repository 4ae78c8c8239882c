package power

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/test/container/node"
	"github.com/cri-runtime/cri-runtime/test/lab"
)

// small is a disk with room for what containers are made of and a little more.
const small = 48 << 20

// nodeOn starts a node whose root is an ext4 filesystem of so many bytes.
func nodeOn(t *testing.T, size int64, args ...string) (n *node.Node, mnt string) {
	t.Helper()
	dir := workDir(t)
	format(t, dir+"/disk", size)
	mnt = dir + "/mnt"
	attach(t, dir+"/disk", mnt, "data=ordered")
	if err := os.Chmod(mnt, 0o711); err != nil {
		t.Fatal(err)
	}
	n = node.New(t, append(args, "--root", mnt)...)
	n.Begin(t)
	return n, mnt
}

// used is how many bytes of a filesystem are not free.
func used(t *testing.T, dir string) int64 {
	t.Helper()
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		t.Fatal(err)
	}
	return int64(s.Blocks-s.Bfree) * s.Bsize
}

// fill takes every byte and gives back the name of what has them.
func fill(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "ballast")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// Delayed allocation may find out late: again until nothing gets through.
	for size := 1 << 20; size > 0; {
		_, err := f.Write(make([]byte, size))
		if err == nil {
			err = f.Sync()
		}
		if errors.Is(err, unix.ENOSPC) {
			size /= 4
		} else if err != nil {
			t.Fatal("fill disk: ", err)
		}
	}
	return path
}

func pull(t *testing.T, n *node.Node, ref string) (string, error) {
	t.Helper()
	reply, err := n.Images.PullImage(t.Context(), &rt.PullImageRequest{Image: &rt.ImageSpec{Image: ref}})
	return reply.GetImageRef(), err
}

func listed(t *testing.T, n *node.Node) (ids []string) {
	t.Helper()
	reply, err := n.Images.ListImages(t.Context(), &rt.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range reply.Images {
		ids = append(ids, i.Id)
	}
	return ids
}

// known tells the daemon how to reach r: the node's own registry is the default.
func (r *registry) known(t *testing.T, n *node.Node) {
	t.Helper()
	dir := filepath.Join(n.Hosts, r.Host())
	must(t, os.MkdirAll(dir, 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte("server = \""+r.URL+"\"\n"), 0o600))
}

// settled is used once nothing changes any more: trees are deleted behind the callers.
func settled(t *testing.T, dir string) int64 {
	t.Helper()
	last, since := used(t, dir), time.Now()
	for time.Since(since) < 500*time.Millisecond {
		time.Sleep(20 * time.Millisecond)
		if u := used(t, dir); u != last {
			last, since = u, time.Now()
		}
	}
	return last
}

// records counts the images recorded below the daemon's root or state.
func records(dir string) int {
	names, _ := filepath.Glob(filepath.Join(dir, "image/images/*.json"))
	return len(names)
}

// removeAll stops and removes containers, the pod, and an image.
func removeAll(t *testing.T, p *node.Pod, ctrs []string, ref string) {
	t.Helper()
	for _, id := range ctrs {
		if _, err := p.Runtime.StopContainer(t.Context(), &rt.StopContainerRequest{ContainerId: id, Timeout: 5}); err != nil {
			t.Errorf("stop container: %v", err)
		}
		if _, err := p.Runtime.RemoveContainer(t.Context(), &rt.RemoveContainerRequest{ContainerId: id}); err != nil {
			t.Errorf("remove container: %v", err)
		}
	}
	p.Remove(t)
	removeImage(t, p.Node, ref)
}

// removeImage removes an image; the containers' own is left.
func removeImage(t *testing.T, n *node.Node, ref string) {
	t.Helper()
	if _, err := n.Images.RemoveImage(t.Context(), &rt.RemoveImageRequest{Image: &rt.ImageSpec{Image: ref}}); err != nil {
		t.Errorf("remove image: %v", err)
	}
	if ids := listed(t, n); len(ids) != 1 {
		t.Errorf("images after the removal: %q", ids)
	}
}

// TestFullDisk holds that a pull that does not fit leaves nothing, and that a node with
// not a byte left can still stop and remove all.
func TestFullDisk(t *testing.T) {
	lab.Here(t)
	r := newRegistry(t)
	r.Push("big", "1", pack(t, tree{"big": stamped("big", small+small/4)}))
	for _, f := range formats {
		t.Run(f, func(t *testing.T) {
			n, mnt := nodeOn(t, small, "--layer-store", f)
			const word = "no space left on device"
			p := n.RunPod(t, n.PodConfig("a"))
			running := p.Start(t, p.ContainerConfig("running", node.Sleeper()...))
			created := p.Create(t, p.ContainerConfig("created", "true"))
			r.known(t, n)
			before := settled(t, mnt)
			_, err := pull(t, n, r.Host()+"/big:1")
			node.WantError(t, err, codes.ResourceExhausted, word, "/big:1")
			node.Eventually(t, "the failed pull leaves no residue", func() bool { return used(t, mnt) <= before })
			if ids := listed(t, n); len(ids) != 1 {
				t.Errorf("images after the failed pull: %q", ids)
			}
			id, err := pull(t, n, r.refs[0])
			if err != nil || id != r.ids[0] {
				t.Fatalf("pull what fits: %s, %v", id, err)
			}
			node.Eventually(t, "both images are durable", func() bool { return records(n.State) == 0 && records(mnt) == 2 })
			ballast := fill(t, mnt)
			_, err = pull(t, n, r.refs[1])
			node.WantError(t, err, codes.ResourceExhausted, word)
			if got := n.Exec(t, running, "echo", "still there"); got != "still there" {
				t.Errorf("exec: got %q", got)
			}
			removeAll(t, p, []string{running, created}, r.refs[0])
			node.Eventually(t, "removing has made room", func() bool { return used(t, mnt) < small-8<<20 })
			if err := os.Remove(ballast); err != nil {
				t.Fatal(err)
			}
			if id, err := pull(t, n, r.refs[1]); err != nil || id != r.ids[1] {
				t.Errorf("pull afterwards: %s, %v", id, err)
			}
			n.RunPod(t, n.PodConfig("b")).Shell(t, "true", nil)
			removeImage(t, n, r.refs[1])
		})
	}
}
