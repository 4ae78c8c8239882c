package catalogue

import (
	"fmt"
	"path/filepath"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// digestImage is the one that critest pulls by digest.
const digestImage = "gcr.io/k8s-staging-cri-tools/test-image-digest:latest"

const (
	e2e     = "registry.k8s.io/e2e-test-images/"
	staging = "gcr.io/k8s-staging-cri-tools/"
	library = "public.ecr.aws/docker/library/"
)

var shell = v1.Config{Env: []string{searchPath}, Cmd: []string{"sh"}}

// critestImages adds every image that critest v1.36.0 pulls, and the sandbox
// images that other runtimes use by default.
func (w *writer) critestImages() error {
	base, err := shellTree(filepath.Join(w.root, "bin/busybox"))
	if err != nil {
		return err
	}
	if err := base.copyFile("bin/applets", 0o755, w.applets); err != nil {
		return err
	}
	for _, name := range []string{"sh", "ipcs", "pgrep"} {
		base.hardlink("bin/"+name, "bin/applets")
	}
	w.shells(base)
	w.users(base)
	w.pauses()
	return w.servers(base)
}

// marked is base with a layer of its own: two images with the same content
// would be one image with two names to a runtime.
func marked(base *tree, name string) []*tree {
	t := newTree()
	t.file("test/"+name, 0o644, text(name))
	return []*tree{base, t}
}

func (w *writer) shells(base *tree) {
	w.add(docker, shell, []*tree{base}, e2e+"busybox:1.29-2")
	for _, tag := range []string{"1.35.0-glibc", "1-uclibc", "1", "1-glibc", "1-musl"} {
		w.add(oci, shell, marked(base, "busybox-"+tag), library+"busybox:"+tag)
	}
	for _, name := range []string{"test-image-1", "test-image-2", "test-image-3", "test-image-latest"} {
		w.add(docker, shell, marked(base, name), staging+name+":latest")
	}
	w.add(docker, shell, marked(base, "same-image"), staging+"test-image-tags:1", staging+"test-image-tags:2", staging+"test-image-tags:3")
	w.add(oci, shell, marked(base, "test"), staging+"test-image-tag:test")
	w.add(oci, shell, marked(base, "all"), staging+"test-image-tag:all")

	// This one is pulled by digest: its content is fixed, whatever the packages.
	fixed := newTree()
	fixed.file("test-image-digest", 0o644, text("test-image-digest"))
	w.add(docker, shell, []*tree{fixed}, digestImage)
}

func (w *writer) users(base *tree) {
	for _, u := range []struct{ name, user string }{
		{"uid", "1002"}, {"username", "www-data"}, {"uid-group", "1003:1004"}, {"username-group", "www-data:1004"},
	} {
		run := shell
		run.User = u.user
		w.add(docker, run, marked(base, "user-"+u.name), staging+"test-image-user-"+u.name+":latest")
	}
	with := func(file string, lines ...string) []byte {
		return append(slices.Clone(base.entries[file].body), text(lines...)...)
	}
	groups := newTree()
	groups.file("etc/passwd", 0o644, with("etc/passwd", "default-user:x:1000:1000::/home/default-user:/bin/sh"))
	groups.file("etc/group", 0o644, with("etc/group", "default-user:x:1000:", "group-defined-in-image:x:50000:default-user"))
	run := shell
	run.User = "1000"
	w.add(docker, run, []*tree{base, groups}, staging+"test-image-predefined-group:latest")
}

// pauses adds the sandbox images. The suite removes pause:3.9, so a sandbox
// image that a runtime uses must not be the same image.
func (w *writer) pauses() {
	for _, tag := range []string{"3.9", "3.10", "3.10.1", "3.10.2"} {
		pause := newTree()
		pause.file("pause", 0o755, pauseELF())
		references := []string{"registry.k8s.io/pause:" + tag}
		if tag == "3.9" {
			references = append(references, "k8s.gcr.io/pause:3.9")
		}
		w.add(docker, v1.Config{
			Env: []string{searchPath}, Entrypoint: []string{"/pause"}, User: "65535:65535", WorkingDir: "/",
			Labels: map[string]string{"version": tag},
		}, []*tree{pause}, references...)
	}
}

func (w *writer) servers(base *tree) error {
	privileged := newTree()
	if err := privileged.copyFile("nnp", 0o4755, w.applets); err != nil {
		return err
	}
	w.add(docker, v1.Config{Env: []string{searchPath}, Entrypoint: []string{"/nnp"}}, []*tree{base, privileged}, e2e+"nonewprivs:1.3")

	httpd := newTree()
	httpd.file("htdocs/index.html", 0o644, text("<h1>It works!</h1>"))
	w.add(oci, v1.Config{
		Env: []string{searchPath}, WorkingDir: "/htdocs", ExposedPorts: map[string]struct{}{"80/tcp": {}},
		Cmd: []string{"sh", "-c", "echo starting httpd; exec httpd -f -p 80 -h /htdocs"},
	}, []*tree{base, httpd}, e2e+"httpd:2.4.39-4")

	for _, s := range []struct {
		port      int
		reference string
	}{{80, e2e + "nginx:1.14-2"}, {12003, staging + "hostnet-nginx-amd64:latest"}} {
		trees, err := w.nginx(s.port)
		if err != nil {
			return err
		}
		w.add(docker, v1.Config{
			Env: []string{searchPath}, Cmd: []string{"nginx", "-g", "daemon off;"}, StopSignal: "SIGQUIT",
			ExposedPorts: map[string]struct{}{fmt.Sprintf("%d/tcp", s.port): {}},
		}, append([]*tree{base}, trees...), s.reference)
	}
	return w.err
}

// nginx is Debian's web server: the shared libraries that it loads, the server
// and its configuration for a port, each a layer.
func (w *writer) nginx(port int) ([]*tree, error) {
	libs, server, site := newTree(), newTree(), newTree()
	const dir = "lib/x86_64-linux-gnu/"
	if err := libs.copyMatching(w.root, 0o755, dir+"ld-linux-x86-64.so.2", dir+"libc.so.6", dir+"libcrypt.so.1", dir+"libz.so.1",
		"usr/"+dir+"libssl.so.3", "usr/"+dir+"libcrypto.so.3", "usr/"+dir+"libpcre2-8.so.0"); err != nil {
		return nil, err
	}
	libs.symlink("lib64/ld-linux-x86-64.so.2", "/"+dir+"ld-linux-x86-64.so.2")
	if err := server.copyMatching(w.root, 0o755, "usr/sbin/nginx"); err != nil {
		return nil, err
	}
	if err := server.copyMatching(w.root, 0o644, "etc/nginx/mime.types"); err != nil {
		return nil, err
	}
	for _, d := range []string{"var/lib/nginx", "var/log/nginx", "etc/nginx/conf.d"} {
		server.dir(d, 0o755)
	}
	server.file("etc/nginx/nginx.conf", 0o644, text(
		"user www-data;", "worker_processes 1;", "pid /var/run/nginx.pid;", "error_log stderr notice;",
		"events { worker_connections 256; }",
		"http {", "  include mime.types;", "  access_log off;", "  include /etc/nginx/conf.d/*.conf;", "}"))
	site.file("etc/nginx/conf.d/default.conf", 0o644, text(
		"server {", fmt.Sprintf("  listen %d;", port), "  root /usr/share/nginx/html;", "  index index.html;", "}"))
	site.file("usr/share/nginx/html/index.html", 0o644, text("<h1>It works!</h1>", "<p>nginx</p>"))
	return []*tree{libs, server, site}, nil
}
