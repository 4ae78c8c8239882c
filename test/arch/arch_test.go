// Package arch keeps the shape of the code: which tree may import which, that each
// package says what it is, which modules the product needs directly, and how large
// the programs and files are. It reads source and runs the go command; it keeps no
// state and leaves nothing on disk but its temporary directory.
package arch

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/cri-runtime/cri-runtime"

// mayImport lists, for each package tree, the trees of this module it may use besides
// itself. Data flows one way: cmd, cri, sandbox, then image, cni and oci, which do not
// know each other, then internal, which knows Linux and not Kubernetes.
var mayImport = map[string][]string{
	"cmd/cri-runtime":     {"cri", "sandbox", "image", "cni", "oci", "internal"},
	"cmd/cri-runtime/cli": {"cri/admin", "image"}, // a client like any other; image: values only
	"cmd/cri-monitor":     {"oci/monitor/wire", "oci/launch/plan", "internal/linux/clone"},
	"cri":                 {"sandbox", "image", "oci/spec", "internal"}, // oci/spec: values only
	"sandbox":             {"image", "cni", "oci", "internal"},
	"image":               {"internal"},
	"cni":                 {"internal"},
	"oci":                 {"internal"},
	"internal":            {},
	"test":                {"cmd", "cri", "sandbox", "image", "cni", "oci", "internal", "test"},
	"hack":                {},
}

// onlyIn lists modules that belong to one tree.
var onlyIn = map[string][]string{
	"k8s.io/cri-api":                         {"cri", "cmd/cri-runtime/cli", "test"},
	"google.golang.org/grpc":                 {"cri", "cmd/cri-runtime/cli", "test"},
	"k8s.io/cri-streaming":                   {"cri", "test"},
	"github.com/containernetworking/cni":     {"cni", "test"},
	"github.com/opencontainers/image-spec":   {"image", "test"},
	"github.com/google/go-containerregistry": {"image", "test"}, // tests' registry
	"github.com/prometheus/common":           {"test"},          // tests' parser
	"go.opentelemetry.io/proto/otlp":         {"test"},          // tests' collector

	"go.opentelemetry.io/otel": {"cmd/cri-runtime"},
}

// direct are the modules that the product may need directly, each with its reason.
var direct = map[string]string{
	"k8s.io/cri-api":                          "the interface that we serve",
	"google.golang.org/grpc":                  "its transport",
	"github.com/containernetworking/cni":      "the network contract: conflists, results, versions",
	"github.com/opencontainers/runtime-spec":  "the description of a container",
	"golang.org/x/sys":                        "system calls",
	"k8s.io/klog/v2":                          "structured, contextual logs as the kubelet's",
	"k8s.io/cri-streaming":                    "servers of exec, attach and port-forward: SPDY and WebSocket",
	"k8s.io/streaming":                        "the connections below cri-streaming",
	"k8s.io/utils":                            "the exit code type that cri-streaming knows",
	"github.com/vishvananda/netlink":          "links, addresses, routes",
	"github.com/google/nftables":              "host ports and masquerade in one transaction",
	"github.com/mdlayher/netlink":             "the socket options of nftables' connection",
	"github.com/moby/sys/mountinfo":           "parsing /proc/self/mountinfo",
	"github.com/opencontainers/go-digest":     "digests and their verification",
	"github.com/opencontainers/image-spec":    "manifests, indexes and configurations",
	"github.com/klauspost/compress":           "zstd; gzip for archives that are saved",
	"github.com/pelletier/go-toml/v2":         "hosts.toml",
	"github.com/spf13/cobra":                  "the command line",
	"github.com/spf13/pflag":                  "its flags",
	"sigs.k8s.io/yaml":                        "pod manifests",
	"golang.org/x/sync":                       "errgroup",
	"golang.org/x/net":                        "the WebSocket of the command line's and the tests' clients",
	"golang.org/x/term":                       "progress on a terminal",
	"google.golang.org/protobuf":              "walking every field of a request in tests",
	"tags.cncf.io/container-device-interface": "devices of vendors",
	"github.com/google/go-containerregistry":  "the registry of the tests",
	"github.com/prometheus/common":            "the parser that tests read our metrics with",
	"go.opentelemetry.io/proto/otlp":          "the collector of the tests",
	"github.com/gorilla/websocket":            "the WebSocket client of the streaming tests",
	"github.com/google/go-cmp":                "differences in tests",
	"github.com/go-logr/logr":                 "the type behind contextual klog",
	"github.com/vishvananda/netns":            "handles of network namespaces for netlink",

	"go.opentelemetry.io/otel":                                        "OpenTelemetry: attributes, traceparent, the hook for errors",
	"go.opentelemetry.io/otel/trace":                                  "its spans",
	"go.opentelemetry.io/otel/sdk":                                    "its sampling, batches, resource and environment",
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace":               "the type of both exporters",
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc": "spans to a collector by gRPC",
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp": "spans to a collector by HTTP",
}

type pkg struct {
	Dir, ImportPath, Name                        string
	GoFiles, TestGoFiles, XTestGoFiles           []string
	Imports, TestImports, XTestImports, CgoFiles []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	out, err := goRun("list", "-json", module+"/...")
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func goRun(args ...string) ([]byte, error) {
	cmd := exec.Command("go", args...)
	cmd.Stderr = os.Stderr
	cmd.Dir = "../.."
	return cmd.Output()
}

// tree is the longest key of mayImport that holds path.
func tree(path string) string {
	found := ""
	for key := range mayImport {
		if under(path, key) && len(key) > len(found) {
			found = key
		}
	}
	return found
}

func under(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

func TestDataFlowsOneWay(t *testing.T) {
	for _, p := range packages(t) {
		path := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		from := tree(path)
		if from == "" {
			t.Errorf("%s belongs to no tree: name it in mayImport", path)
			continue
		}
		for _, imp := range p.Imports {
			to, ok := strings.CutPrefix(imp, module+"/")
			if !ok || under(to, from) || slices.ContainsFunc(mayImport[from], func(allowed string) bool { return under(to, allowed) }) {
				continue
			}
			t.Errorf("%s imports %s, which %s may not", path, to, from)
		}
		checkOwners(t, path, p)
		if path == "oci/spec" && (slices.Contains(p.Imports, "os") || slices.Contains(p.Imports, "golang.org/x/sys/unix")) {
			t.Error("oci/spec must stay pure: neither os nor x/sys")
		}
		if len(p.CgoFiles) > 0 {
			t.Errorf("%s uses cgo: see docs/adr/0006-no-cgo.md", path)
		}
	}
}

func checkOwners(t *testing.T, path string, p pkg) {
	t.Helper()
	for _, imp := range p.Imports {
		for mod, owners := range onlyIn {
			if under(imp, mod) && !slices.ContainsFunc(owners, func(o string) bool { return under(path, o) }) {
				t.Errorf("%s imports %s, which belongs to %v", path, imp, owners)
			}
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range packages(t) {
		if len(p.GoFiles) == 0 {
			continue
		}
		said := false
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			said = said || f.Doc != nil && len(f.Doc.Text()) > 40
		}
		if !said {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

func TestDirectDependencies(t *testing.T) {
	f, err := os.Open("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	seen := map[string]bool{}
	in := false
	for sc := bufio.NewScanner(f); sc.Scan(); {
		line := strings.TrimSpace(sc.Text())
		switch {
		case line == "require (":
			in = true
		case line == ")":
			in = false
		case in && line != "" && !strings.HasSuffix(line, "// indirect"):
			seen[strings.Fields(line)[0]] = true
		}
	}
	for mod := range seen {
		if direct[mod] == "" {
			t.Errorf("go.mod needs %s directly: say in direct why the standard library will not do", mod)
		}
	}
	if len(seen) < 10 {
		t.Errorf("found %v: go.mod was not understood", slices.Sorted(maps.Keys(seen)))
	}
}

// TestSizes holds the limits of the style guide: a longer function or file carries its
// reason on the line that declares it, after "long:".
func TestSizes(t *testing.T) {
	const maxFunc, maxFile = 80, 600
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == ".git" || d.Name() == "bin") {
			return filepath.SkipDir
		}
		if d.IsDir() || filepath.Ext(path) != ".go" {
			return nil
		}
		checkSizes(t, path, maxFunc, maxFile)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func checkSizes(t *testing.T, path string, maxFunc, maxFile int) {
	t.Helper()
	src, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, path, src, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	if ast.IsGenerated(f) {
		return
	}
	lines := bytes.Split(src, []byte{'\n'})
	if n := len(lines) - 1; n > maxFile && !bytes.Contains(src, []byte("long:")) {
		t.Errorf("%s has %d lines, more than %d, without a reason", path, n, maxFile)
	}
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		first, last := set.Position(fn.Pos()).Line, set.Position(fn.End()).Line
		if last-first+1 > maxFunc && !bytes.Contains(lines[first-1], []byte("long:")) {
			t.Errorf("%s:%d: %s has %d lines, more than %d, without a reason", path, first, fn.Name.Name, last-first+1, maxFunc)
		}
	}
}

// TestMonitorStaysSmall: one process per node holds all containers, and its size is its
// defence. Nothing that reflects, formats or serves may be linked in.
func TestMonitorStaysSmall(t *testing.T) {
	out, err := goRun("list", "-deps", module+"/cmd/cri-monitor")
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(out))
	for _, banned := range []string{"fmt", "net", "encoding/json", "log", "google.golang.org/grpc", "k8s.io/klog/v2"} {
		if slices.Contains(deps, banned) {
			t.Errorf("cri-monitor links %s", banned)
		}
	}
	file := filepath.Join(t.TempDir(), "cri-monitor")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", file, module+"/cmd/cri-monitor")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	st, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if limit := int64(2_500_000); st.Size() > limit {
		t.Errorf("cri-monitor has %d bytes, more than %d", st.Size(), limit)
	}
}

// TestDaemonLosesUnusedMethods: one function that calls methods by a name known only at
// run time, as text/template does, makes the linker keep every exported method of every
// type: 23.0 instead of 18.7 MB, and 2.4 MB more of resident memory.
func TestDaemonLosesUnusedMethods(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	tags := regexp.MustCompile(`(?m)^TAGS\s*:= (.*)$`).FindSubmatch(makefile)
	if tags == nil {
		t.Fatal("the Makefile has no TAGS")
	}
	cmd := exec.Command("go", "build", "-trimpath", "-tags", string(tags[1]), "-ldflags", "-dumpdep",
		"-o", filepath.Join(t.TempDir(), "cri-runtime"), module+"/cmd/cri-runtime")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	deps, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(deps, []byte("\nmain.main -> ")) {
		t.Fatalf("build: %v, %d bytes of dependencies", err, len(deps))
	}
	for line := range strings.Lines(string(deps)) {
		if by, what, _ := strings.Cut(line, " -> "); strings.Contains(what, "<ReflectMethod>") {
			t.Errorf("%s calls %s", by, what)
		}
	}
}

// TestNoStrayPaths: nothing in the project speaks of the machine it was made on.
func TestNoStrayPaths(t *testing.T) {
	out, err := exec.Command("git", "-C", "../..", "grep", "-nIE", "/(wor"+"k|far"+"m)/[a-z.]").Output()
	if err == nil {
		t.Errorf("paths of one machine:\n%s", out)
	}
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		t.Fatal(err)
	}
}
