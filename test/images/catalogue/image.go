package catalogue

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// searchPath is the PATH that the images set.
const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// refName is the annotation of an index entry that holds its full reference.
const refName = "org.opencontainers.image.ref.name"

// foreign are the platforms that every index lists beside this machine's. Their
// images hold one text file: they exist to be passed over.
var foreign = []v1.Platform{
	{OS: "linux", Architecture: "arm", Variant: "v7"},
	{OS: "linux", Architecture: "ppc64le"},
	{OS: "linux", Architecture: "s390x"},
	{OS: "windows", Architecture: "amd64", OSVersion: "10.0.20348.1970"},
}

// format is the family of media types of an image.
type format struct {
	layer, config, manifest, index types.MediaType
}

var (
	docker = format{types.DockerLayer, types.DockerConfigJSON, types.DockerManifestSchema2, types.DockerManifestList}
	oci    = format{types.OCILayer, types.OCIConfigJSON, types.OCIManifestSchema1, types.OCIImageIndex}
)

// writer builds images from what it finds on the machine into an OCI layout.
type writer struct {
	root    string // unpacked Debian packages
	applets string // the compiled applets program
	out     layout.Path
	err     error // the first that happened: later additions do nothing
}

func newWriter(dir string) (*writer, error) {
	out, err := layout.Write(dir, empty.Index)
	if err != nil {
		return nil, fmt.Errorf("create layout: %w", err)
	}
	return &writer{out: out}, nil
}

// image stacks the trees and sets the run configuration.
func image(f format, platform v1.Platform, run v1.Config, trees ...*tree) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, f.manifest), f.config)
	for i, t := range trees {
		content, err := t.pack()
		if err != nil {
			return nil, err
		}
		if img, err = mutate.Append(img, mutate.Addendum{
			Layer:     layer{content, f.layer},
			MediaType: f.layer,
			History:   v1.History{Created: v1.Time{Time: stamp}, CreatedBy: fmt.Sprintf("test layer %d", i)},
		}); err != nil {
			return nil, err
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Variant, config.OSVersion = platform.OS, platform.Architecture, platform.Variant, platform.OSVersion
	config.Created = v1.Time{Time: stamp}
	config.Config = run
	return mutate.ConfigFile(img, config)
}

// add stores an image of this machine's platform under its references, inside
// an index that also lists the foreign platforms.
func (w *writer) add(f format, run v1.Config, trees []*tree, references ...string) {
	if w.err == nil {
		if w.err = w.store(f, run, trees, references); w.err != nil {
			w.err = fmt.Errorf("build image %s: %w", references[0], w.err)
		}
	}
}

func (w *writer) store(f format, run v1.Config, trees []*tree, references []string) error {
	index := mutate.IndexMediaType(empty.Index, f.index)
	platforms := append([]v1.Platform{{OS: "linux", Architecture: runtime.GOARCH}}, foreign...)
	for i, platform := range platforms {
		content := trees
		if i > 0 {
			stub := newTree()
			stub.file("README", 0o644, text(references[0]+" for "+platform.String()))
			content = []*tree{stub}
		}
		img, err := image(f, platform, run, content...)
		if err != nil {
			return err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &platform}})
	}
	for _, reference := range references {
		if err := w.out.AppendIndex(index, layout.WithAnnotations(map[string]string{refName: reference})); err != nil {
			return err
		}
	}
	return nil
}

// exampleImage is what `make run` pulls where no registry can be reached: a shell,
// a web server and a page, from the busybox of Debian's busybox-static.
func (w *writer) exampleImage(name, busybox string) error {
	base, err := shellTree(busybox)
	if err != nil {
		return err
	}
	page := newTree()
	page.file("www/index.html", 0o644, text("<h1>It works!</h1>"))
	w.add(oci, v1.Config{
		Env: []string{searchPath}, ExposedPorts: map[string]struct{}{"8080/tcp": {}}, Cmd: []string{"httpd", "-f", "-p", "8080", "-h", "/www"},
	}, []*tree{base, page}, name)
	return w.err
}

// findBusybox returns the static busybox of this machine, or "".
func findBusybox() string {
	for _, dir := range filepath.SplitList(os.Getenv("PATH") + ":/bin:/usr/bin") {
		if file := filepath.Join(dir, "busybox"); filepath.IsAbs(file) && isStatic(file) {
			return file
		}
	}
	return ""
}
