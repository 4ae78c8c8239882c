package node

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-runtime/cri-runtime/test/images/catalogue"
)

// Image is what all containers are made of: busybox and the files below.
const Image = "docker.io/" + testsName + ":1"

const (
	testsName = "library/tests"
	name      = "library/busybox"
	base      = name + ":1.37" // what Image adds to
)

func example(ctx context.Context, cache string) (*catalogue.Store, error) {
	return catalogue.Example(ctx, cache, "docker.io/"+base)
}

// file is an entry of the layer that Image has above busybox.
type file struct {
	name, body string
	mode       int64
	uid        int
}

func files(probe []byte) []file {
	return []file{
		{name: "etc/passwd", mode: 0o644, body: "root:x:0:0:root:/root:/bin/sh\napp:x:1001:1002:app:/home/app:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"},
		{name: "etc/group", mode: 0o644, body: "root:x:0:\nfirst:x:5001:app\nsecond:x:5002:nobody,app\nother:x:5003:nobody\n"},
		{name: "data/sub/file", mode: 0o644, body: "from the image\n"},
		{name: "data/sub/owned", mode: 0o600, body: "33's own\n", uid: 33},
		{name: "opt/probe", mode: 0o4755, body: string(probe)},
		{name: "opt/plain", mode: 0o644, body: "not a program\n"},
		{name: "opt/garbage", mode: 0o755, body: "neither script nor ELF\n"},
		{name: "opt/orphan", mode: 0o755, body: "#!/no/such/interpreter\n"},
	}
}

// Registry answers as a registry that has Image, and what the catalogue's has.
type Registry struct {
	store    *catalogue.Store
	manifest []byte
	blobs    map[digest.Digest][]byte // by digest; Image's own
}

// newRegistry makes Image from what store has.
func newRegistry(store *catalogue.Store, probe []byte) (*Registry, error) {
	r := &Registry{store: store, blobs: map[digest.Digest][]byte{}}
	var index v1.Index
	var manifest v1.Manifest
	var config v1.Image
	if err := r.read("manifests/"+strings.TrimPrefix(base, name+":"), &index); err != nil {
		return nil, err
	}
	at := slices.IndexFunc(index.Manifests, func(d v1.Descriptor) bool { return d.Platform.Architecture == runtime.GOARCH })
	if at < 0 {
		return nil, fmt.Errorf("read image %s: nothing for %s", base, runtime.GOARCH)
	}
	if err := r.read("manifests/"+string(index.Manifests[at].Digest), &manifest); err != nil {
		return nil, err
	}
	if err := r.read("blobs/"+string(manifest.Config.Digest), &config); err != nil {
		return nil, err
	}
	layer, err := pack(files(probe))
	if err != nil {
		return nil, err
	}
	manifest.Layers = append(manifest.Layers, r.add(v1.MediaTypeImageLayer, layer))
	config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(layer))
	config.History = nil
	body, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	manifest.Config = r.add(v1.MediaTypeImageConfig, body)
	manifest.MediaType = v1.MediaTypeImageManifest
	r.manifest, err = json.Marshal(manifest)
	return r, err
}

func (r *Registry) add(media string, body []byte) v1.Descriptor {
	d := digest.FromBytes(body)
	r.blobs[d] = body
	return v1.Descriptor{MediaType: media, Digest: d, Size: int64(len(body))}
}

// read decodes something of base.
func (r *Registry) read(what string, into any) error {
	w := httptest.NewRecorder()
	r.store.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v2/"+name+"/"+what, nil)) //nolint:noctx // no network: a function call
	if w.Code != http.StatusOK {
		return fmt.Errorf("read image %s: %s: %s", base, what, w.Body)
	}
	return json.Unmarshal(w.Body.Bytes(), into)
}

// ServeHTTP answers one request.
func (r *Registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	own := digest.FromBytes(r.manifest)
	dir, what := path.Split(q.URL.Path)
	body, media := r.blobs[digest.Digest(what)], "application/octet-stream"
	if dir == "/v2/"+testsName+"/manifests/" && (what == "1" || what == string(own)) {
		body, media = r.manifest, v1.MediaTypeImageManifest
		w.Header().Set("Docker-Content-Digest", string(own))
	}
	if body == nil {
		r.store.ServeHTTP(w, q)
		return
	}
	w.Header().Set("Content-Type", media)
	http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(body))
}

func pack(files []file) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Uid: f.uid, Size: int64(len(f.body))}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := io.WriteString(w, f.body); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), w.Close()
}

// buildProbe compiles the probe program, once a test binary: the directory is fresh.
func buildProbe(ctx context.Context, work string) ([]byte, error) {
	program := filepath.Join(work, "probe")
	if body, err := os.ReadFile(program); err == nil {
		return body, nil
	}
	return Build(ctx, "github.com/cri-runtime/cri-runtime/test/container/node/probe", program)
}

// Build compiles a package to a static program and returns its content, too.
func Build(ctx context.Context, pkg, program string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", program, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build %s: %w: %s", pkg, err, out)
	}
	return os.ReadFile(program)
}
