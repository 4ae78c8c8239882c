package power

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/cri-runtime/cri-runtime/test/container/node"
	"github.com/cri-runtime/cri-runtime/test/lab"
)

// marker is in the top layer of the containers' image, and in no other.
const marker = "33's own"

// flip changes the byte in the middle of a file.
func flip(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if _, err := f.ReadAt(b[:], fi.Size()/2); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b[:], fi.Size()/2); err != nil {
		t.Fatal(err)
	}
}

func truncate(t *testing.T, path string) {
	t.Helper()
	fi, err := os.Stat(path)
	if err == nil {
		err = os.Truncate(path, fi.Size()/2)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// found says when damage comes to light.
type found int

const (
	byVerify found = iota + 1 // "image verify", which reads everything
	atStart                   // the daemon's: what sizes tell
	atUse                     // creating a container, after a start: an index is compared with its checksum
)

// damages are what a disk or a person may do to the files of a layer.
var damages = []struct {
	name, format, file string
	do                 func(t *testing.T, path string)
	found              found
}{
	{"tar flipped", "erofs", ".tar", flip, byVerify},
	{"tar truncated", "erofs", ".tar", truncate, atStart},
	{"tar truncated, verified", "erofs", ".tar", truncate, byVerify},
	{"tar gone", "erofs", ".tar", func(t *testing.T, p string) { must(t, os.Remove(p)) }, atStart},
	{"index flipped", "erofs", ".idx", flip, byVerify},
	{"index flipped, used", "erofs", ".idx", flip, atUse},
	{"index truncated", "erofs", ".idx", truncate, atStart},
	{"index gone", "erofs", ".idx", func(t *testing.T, p string) { must(t, os.Remove(p)) }, byVerify},
	{"tree gone", "directory", "", func(t *testing.T, p string) { must(t, os.RemoveAll(p)) }, atStart},
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// topLayer finds the layer that has marker: l/N, without a suffix.
func topLayer(t *testing.T, root, format string) string {
	t.Helper()
	if format == "directory" {
		found, _ := filepath.Glob(filepath.Join(root, "image/l/*/data/sub/owned"))
		if len(found) != 1 {
			t.Fatalf("trees of the top layer: %q", found)
		}
		return strings.TrimSuffix(found[0], "/data/sub/owned")
	}
	tars, _ := filepath.Glob(filepath.Join(root, "image/l/*.tar"))
	for _, p := range tars {
		body, err := os.ReadFile(p)
		must(t, err)
		if bytes.Contains(body, []byte(marker)) {
			return strings.TrimSuffix(p, ".tar")
		}
	}
	t.Fatalf("no layer has the marker: %q", tars)
	return ""
}

// TestDamage holds that a damaged layer is found and fetched again under the same image
// id, while a container of it goes on.
func TestDamage(t *testing.T) {
	lab.Here(t)
	for _, tc := range damages {
		t.Run(tc.name, func(t *testing.T) {
			n, mnt := nodeOn(t, 128<<20, "--layer-store", tc.format)
			p := n.RunPod(t, n.PodConfig("a"))
			running := p.Start(t, p.ContainerConfig("running", node.Sleeper()...))
			node.Eventually(t, "the image is durable", func() bool { return records(n.State) == 0 && records(mnt) == 1 })
			tc.do(t, topLayer(t, mnt, tc.format)+tc.file)
			find(t, n, p, tc.found)
			if ids := listed(t, n); len(ids) != 0 {
				t.Errorf("listed although damaged: %q", ids)
			}
			id, err := pull(t, n, node.Image)
			if err != nil || id != n.ImageID || !slices.Equal(listed(t, n), []string{id}) {
				t.Errorf("pull again: got %s, %v, want %s", id, err, n.ImageID)
			}
			if got := n.Exec(t, running, "echo", "still there"); got != "still there" {
				t.Errorf("exec: got %q", got)
			}
			if out := n.RunPod(t, n.PodConfig("b")).Shell(t, "cat /data/sub/owned; md5sum /opt/* >/dev/null", nil); !strings.Contains(out, marker) {
				t.Errorf("a new container reads %q", out)
			}
		})
	}
}

// find brings damage to light.
func find(t *testing.T, n *node.Node, p *node.Pod, how found) {
	t.Helper()
	if how == byVerify {
		program := filepath.Join(lab.Here(t).Bin, "cri-runtime")
		cmd := exec.CommandContext(t.Context(), program, "image", "verify", "--admin", filepath.Join(n.State, "admin.sock"), n.ImageID)
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "damaged") {
			t.Errorf("verify: %v: %s, want a word about damage", err, out)
		}
		return
	}
	n.Kill()
	n.Start(t)
	if how == atUse {
		_, err := p.TryCreate(t.Context(), p.ContainerConfig("late", "true"))
		node.WantError(t, err, codes.NotFound, "damaged")
	}
}
