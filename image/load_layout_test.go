package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/cri-runtime/cri-runtime/image/archive"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

func TestLoadLayouts(t *testing.T) { // long: a table
	l1, l2 := base(t), makeTar(t, file{name: "etc/c", body: "x"})
	for title, tc := range map[string]struct {
		make func(b *box)
		want []string // names of what is loaded, "-" for none
		fail string
		kind error
	}{
		"documents last": {func(b *box) { b.index(named(b.image(runtime.GOARCH, "", "gzip", l1, l2), "r.io/a:1")) }, []string{"r.io/a:1"}, "", nil},
		"documents first": {func(b *box) {
			b.index(named(b.image(runtime.GOARCH, "", "", l1, l2), "r.io/a:1"))
			slices.Reverse(b.files)
		}, []string{"r.io/a:1"}, "", nil},
		"no layers": {func(b *box) { b.index(b.image(runtime.GOARCH, "", "")) }, []string{"-"}, "", nil},
		"tag alone": {func(b *box) { b.index(named(b.image(runtime.GOARCH, "", "zstd", l1), "v1")) }, []string{"-"}, "", nil},
		"by digest": {func(b *box) {
			d := b.image(runtime.GOARCH, "", "zstd", l1)
			b.index(named(d, "r.io/a@"+d["digest"].(string)))
		}, []string{"r.io/a@"}, "", nil},
		"by another's digest": {func(b *box) { b.index(named(b.image(runtime.GOARCH, "", "", l1), "r.io/a@"+sum(nil))) }, nil, "it is called", errdef.ErrInvalid},
		"two images": {func(b *box) {
			b.index(named(b.image(runtime.GOARCH, "1", "", l1, l2), "a:1"), named(b.image(runtime.GOARCH, "2", "gzip", l1), "a:2"))
		}, []string{"docker.io/library/a:1", "docker.io/library/a:2"}, "", nil},
		"blob twice": {func(b *box) { b.index(b.image(runtime.GOARCH, "", "", l1)); b.image(runtime.GOARCH, "", "", l1) }, []string{"-"}, "", nil},
		"with ./":    {func(b *box) { b.index(b.image(runtime.GOARCH, "", "", l1)); b.prefix("./") }, []string{"-"}, "", nil},
		"other's too": {func(b *box) {
			d := b.image("other", "", "", l2)
			d["platform"] = map[string]string{"os": "linux", "architecture": "other"}
			b.index(d, b.image(runtime.GOARCH, "", "", l1))
		}, []string{"-"}, "", nil},
		"artifact beside": {func(b *box) {
			d := b.blob(marshal(map[string]any{"schemaVersion": 2, "mediaType": typeManifest, "config": map[string]any{"mediaType": "x/y", "digest": sum(nil), "size": 0}}))
			b.index(d, b.image(runtime.GOARCH, "", "", l1))
		}, []string{"-"}, "", nil},
		"not for us": {func(b *box) {
			d := b.image("other", "", "", l1)
			d["platform"] = map[string]string{"os": "linux", "architecture": "other"}
			b.index(d)
		}, nil, "only images for linux/other", errdef.ErrNotFound},
		"not for us (2)": {func(b *box) { b.index(b.image("other", "", "", l1)) }, nil, "image is for linux/other", errdef.ErrInvalid},
		"empty":          {func(*box) {}, nil, "neither index.json nor manifest.json", errdef.ErrInvalid},
		"no images":      {func(b *box) { b.index() }, nil, "no image", errdef.ErrInvalid},
		"no oci-layout":  {func(b *box) { b.index(b.image(runtime.GOARCH, "", "", l1)); b.drop("oci-layout") }, nil, `no "oci-layout"`, errdef.ErrNotFound},
		"other version": {func(b *box) {
			b.index(b.image(runtime.GOARCH, "", "", l1))
			b.replace("oci-layout", `{"imageLayoutVersion":"2.0"}`)
		}, nil, "version", errdef.ErrInvalid},
		"missing layer": {func(b *box) { b.index(b.image(runtime.GOARCH, "", "", l1, l2)); b.drop(sum(l2)[7:]) }, nil, "layer 1: the archive has no \"blobs/sha256/" + sum(l2)[7:], errdef.ErrNotFound},
		"missing config": {func(b *box) {
			b.index(b.image(runtime.GOARCH, "", "", l1))
			b.drop(sum(testConfig(runtime.GOARCH, "", l1))[7:])
		}, nil, "image config: the archive has no", errdef.ErrNotFound},
		"missing manifest": {func(b *box) { d := b.image(runtime.GOARCH, "", "", l1); b.index(d); b.drop(d["digest"].(string)[7:]) }, nil,
			"manifests[0]: the archive has no", errdef.ErrNotFound},
		"altered layer": {func(b *box) { b.index(b.image(runtime.GOARCH, "", "", l1)); b.alter(sum(l1)[7:]) }, nil, sum(l1)[7:], errdef.ErrInvalid},
		"altered gzip": {func(b *box) {
			b.index(b.image(runtime.GOARCH, "", "gzip", l1))
			b.alter(sum(pack(b.t, "gzip", l1))[7:])
		}, nil, "does not match its descriptor", errdef.ErrInvalid},
		"altered config": {func(b *box) {
			b.index(b.image(runtime.GOARCH, "", "", l1))
			b.alter(sum(testConfig(runtime.GOARCH, "", l1))[7:])
		}, nil, "does not match", errdef.ErrInvalid},
		"wrong size": {func(b *box) { d := b.image(runtime.GOARCH, "", "", l1); d["size"] = 1; b.index(d) }, nil, "its descriptor says 1", errdef.ErrInvalid},
		"wrong size of a layer": {func(b *box) {
			cfg, l := b.blob(testConfig(runtime.GOARCH, "", l1)), b.blob(l1)
			cfg["mediaType"], l["mediaType"], l["size"] = typeConfig, layerTypes[0], len(l1)+1
			b.index(b.blob(marshal(map[string]any{"schemaVersion": 2, "mediaType": typeManifest, "config": cfg, "layers": []any{l}})))
		}, nil, "the manifest says", errdef.ErrInvalid},
		"altered, of no image": {func(b *box) {
			b.blob(pack(t, "gzip", random(t)))
			b.alter("")
			b.index(b.image(runtime.GOARCH, "", "", l1))
		}, nil, "does not match its descriptor", errdef.ErrInvalid},
		"layer is text": {func(b *box) {
			b.index(b.image(runtime.GOARCH, "", "", []byte("hello")))
		}, nil, "layer 0: \"blobs/sha256/" + sum([]byte("hello"))[7:] + "\" is no layer: it has 5 bytes", errdef.ErrInvalid},
		"layer is gzip of text": {func(b *box) { b.index(b.image(runtime.GOARCH, "", "gzip", bytes.Repeat([]byte("hello"), 500))) }, nil, "is no layer: unpack layer", errdef.ErrInvalid},
		"hostile layer":         {func(b *box) { b.index(b.image(runtime.GOARCH, "", "gzip", makeTar(t, file{name: "../x", body: "y"}))) }, nil, "leads upwards", errdef.ErrInvalid},
		"wrong diff id": {func(b *box) {
			cfg := b.blob(testConfig(runtime.GOARCH, "", l2))
			cfg["mediaType"] = typeConfig
			l := b.blob(l1)
			l["mediaType"] = layerTypes[0]
			b.index(b.blob(marshal(map[string]any{"schemaVersion": 2, "mediaType": typeManifest, "config": cfg, "layers": []any{l}})))
		}, nil, "the configuration says " + sum(l2), errdef.ErrInvalid},
		"index and manifest at once": {func(b *box) {
			b.index(b.blob(marshal(map[string]any{"schemaVersion": 2, "mediaType": typeIndex, "manifests": []any{}, "layers": []any{map[string]any{}}})))
		}, nil, "at once", errdef.ErrInvalid},
		"index of itself": {func(b *box) {
			d := any(b.image(runtime.GOARCH, "", "", l1))
			for range maxIndex + 2 {
				x := b.blob(marshal(map[string]any{"schemaVersion": 2, "mediaType": typeIndex, "manifests": []any{d}}))
				x["mediaType"] = typeIndex
				d = x
			}
			b.index(d)
		}, nil, "index within index", errdef.ErrInvalid},
		"two index.json": {func(b *box) {
			b.index(b.image(runtime.GOARCH, "", "", l1))
			b.index(b.image(runtime.GOARCH, "2", "", l1))
		}, nil, "it is there twice", errdef.ErrInvalid},
		"upwards":         {func(b *box) { b.add("../x", nil); b.index(b.image(runtime.GOARCH, "", "", l1)) }, nil, "lead nowhere else", errdef.ErrInvalid},
		"absolute":        {func(b *box) { b.index(b.image(runtime.GOARCH, "", "", l1)); b.prefix("/") }, nil, "lead nowhere else", errdef.ErrInvalid},
		"upwards, hidden": {func(b *box) { b.add("a/../../x", nil) }, nil, "lead nowhere else", errdef.ErrInvalid},
		"device":          {func(b *box) { b.files = append(b.files, file{name: "x", kind: tar.TypeChar}) }, nil, "have no place", errdef.ErrInvalid},
		"link outwards": {func(b *box) {
			b.files = append(b.files, file{name: "a/x", kind: tar.TypeSymlink, link: "../../etc/passwd"})
		}, nil, "which is outside", errdef.ErrInvalid},
		"link to absolute": {func(b *box) { b.files = append(b.files, file{name: "a/x", kind: tar.TypeSymlink, link: "/etc/passwd"}) }, nil, "which is outside", errdef.ErrInvalid},
		"link in a circle": {func(b *box) {
			b.add("manifest.json", []byte(`[{"Config":"a","Layers":[]}]`))
			b.files = append(b.files, file{name: "a", kind: tar.TypeSymlink, link: "b"}, file{name: "b", kind: tar.TypeSymlink, link: "a"})
		}, nil, "16 links", errdef.ErrInvalid},
		"huge document": {func(b *box) {
			b.index(b.image(runtime.GOARCH, "", "", l1))
			b.replace("index.json", `{"manifests":[]`+strings.Repeat(" ", archive.MaxDocument)+"}")
		}, nil, "a document has at most", errdef.ErrInvalid},
		"many documents": {func(b *box) {
			for i := range 20 {
				b.add(fmt.Sprint(i), append([]byte("{"), bytes.Repeat([]byte(" "), archive.MaxDocument-1)...))
			}
		}, nil, "documents of more than", errdef.ErrExhausted},
		"config of another name": {func(b *box) {
			b.add(strings.Repeat("0", 64)+".json", testConfig(runtime.GOARCH, ""))
			b.add("manifest.json", []byte(`[{"Config":"`+strings.Repeat("0", 64)+`.json","Layers":[]}]`))
		}, nil, "image config \"0000", errdef.ErrInvalid},
		"docker layer missing": {func(b *box) {
			b.add("c.json", testConfig(runtime.GOARCH, "", l1))
			b.add("manifest.json", []byte(`[{"Config":"c.json","Layers":["x/layer.tar"]}]`))
		}, nil, `the archive has no "x/layer.tar"`, errdef.ErrNotFound},
		"docker name is bad": {func(b *box) {
			b.add("c.json", testConfig(runtime.GOARCH, ""))
			b.add("manifest.json", []byte(`[{"Config":"c.json","RepoTags":["A:b:c"],"Layers":[]}]`))
		}, nil, "image reference", errdef.ErrInvalid},
		"docker layers too few": {func(b *box) {
			b.add("c.json", testConfig(runtime.GOARCH, "", l1))
			b.add("manifest.json", []byte(`[{"Config":"c.json","Layers":[]}]`))
		}, nil, "has 0 layers, its configuration says 1", errdef.ErrInvalid},
		"docker layer twice": {func(b *box) { b.add("x/layer.tar", l1); b.add("x/layer.tar", l2) }, nil, "there twice", errdef.ErrInvalid},
	} {
		t.Run(title, func(t *testing.T) {
			overStores(t, func(t *testing.T, o Options) {
				s := openTest(t, o)
				b := &box{t: t}
				tc.make(b)
				got, err := s.Load(t.Context(), streamOnly{bytes.NewReader(b.tar())}, nil)
				if tc.fail != "" {
					if err == nil || !strings.Contains(err.Error(), tc.fail) || !errors.Is(err, tc.kind) {
						t.Errorf("got %v, %v, want %q and %v", got, err, tc.fail, tc.kind)
					}
					checkNothing(t, s)
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				var names []string
				for _, l := range got {
					if len(l.Names) == 0 {
						names = append(names, "-")
					}
					for _, n := range l.Names {
						if i := strings.IndexByte(n, '@'); i > 0 {
							n = n[:i+1]
						}
						names = append(names, n)
					}
				}
				if !slices.Equal(names, tc.want) {
					t.Errorf("names: got %v, want %v", names, tc.want)
				}
				for _, l := range got {
					if len(tc.want) > 1 || s.images[l.ID].layers == nil {
						continue
					}
					if n := len(s.images[l.ID].layers); fileIn(t, s, l.ID, n-1, "etc/a") != "one" {
						t.Errorf("image %s has other files", l.ID)
					}
				}
				if err := s.Flush(t.Context()); err != nil {
					t.Error(err)
				}
				checkOrphans(t, s)
				for _, l := range got {
					mustRemove(t, s, string(l.ID))
				}
				checkNothing(t, s)
			})
		})
	}
}

func (b *box) prefix(p string) {
	for i := range b.files {
		b.files[i].name = p + b.files[i].name
	}
}

func (b *box) drop(part string) {
	b.files = slices.DeleteFunc(b.files, func(f file) bool { return strings.Contains(f.name, part) })
}

func (b *box) replace(name, body string) {
	for i := range b.files {
		if b.files[i].name == name {
			b.files[i].body = body
		}
	}
}

func (b *box) alter(part string) {
	for i, f := range b.files {
		if strings.Contains(f.name, part) {
			body := []byte(f.body)
			body[len(body)/2] ^= 1
			b.files[i].body = string(body)
		}
	}
}

// random is a layer that compression does not make small.
func random(t *testing.T) []byte {
	t.Helper()
	body := make([]byte, 64<<10)
	rng := rand.NewChaCha8([32]byte{})
	_, _ = rng.Read(body)
	return makeTar(t, file{name: "noise", body: string(body)})
}
