package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

// TestConfigGolden shows what CRI is asked for, for the example and for a manifest
// with every field that is understood.
func TestConfigGolden(t *testing.T) {
	for name, file := range map[string]string{"web": "../../../examples/web.yaml", "all": "testdata/all.yaml"} {
		t.Run(name, func(t *testing.T) {
			p, err := readManifest(file)
			if err != nil {
				t.Fatal(err)
			}
			near := surroundings{uid: "the-uid", dir: "/data/pod", memory: 8 << 30, resolv: "search a.example b.example\nnameserver 192.0.2.1\noptions rotate\n"}
			asked := []any{p.sandboxConfig(near)}
			for _, c := range p.all() {
				asked = append(asked, p.containerConfig(c, "sha256:id", near))
			}
			body, err := json.MarshalIndent(asked, "", " ")
			if err != nil {
				t.Fatal(err)
			}
			testkit.Golden(t, name+".json", append(body, '\n'))
		})
	}
}

func TestBadManifests(t *testing.T) {
	const ok = "  containers: [{name: c, image: x}]\n"
	for name, tc := range map[string]struct{ text, want string }{
		"kind":             {"apiVersion: apps/v1\nkind: Deployment\n", "apiVersion apps/v1, kind Deployment: want v1, Pod"},
		"empty":            {"", "holds 0 documents"},
		"two":              {head + ok + "---\n" + head + ok, "holds 2 documents"},
		"key twice":        {head + ok + ok, `key "containers" already set`},
		"unknown":          {head + "  nodeName: x\n  containers: [{name: c, image: x, livenessProbe: {exec: {command: [a]}}}]\n", "cannot honour spec.containers[0].livenessProbe, spec.nodeName"},
		"case":             {head + "  containers: [{name: c, Image: x}]\n", "spec.containers[0].Image"},
		"inner":            {head + "  containers: [{name: c, image: x, env: [{name: A, valueFrom: {fieldRef: {fieldPath: a}}}]}]\n", "spec.containers[0].env[0].valueFrom"},
		"emptyDir medium":  {head + ok + "  volumes: [{name: v, emptyDir: {medium: Memory}}]\n", "spec.volumes[0].emptyDir.medium"},
		"type":             {head + "  containers: [{name: c, image: x, ports: [{containerPort: http}]}]\n", "containerPort is a string"},
		"no containers":    {head + "  hostNetwork: true\n", "spec.containers: empty"},
		"name":             {strings.Replace(head, "name: p", "name: P_", 1) + ok, "metadata.name"},
		"path as name":     {strings.Replace(head, "name: p", "name: ../p", 1) + ok, "metadata.name"},
		"path as uid":      {strings.Replace(head, "name: p", "name: p, uid: ../../etc", 1) + ok, "metadata.uid"},
		"twice":            {head + "  containers: [{name: c, image: x}, {name: c, image: x}]\n", "spec.containers[1].name"},
		"restart":          {head + ok + "  restartPolicy: Always\n", "spec.restartPolicy"},
		"no volume":        {head + "  containers: [{name: c, image: x, volumeMounts: [{name: v, mountPath: /v}]}]\n", `no volume is called "v"`},
		"two sources":      {head + ok + "  volumes: [{name: v, emptyDir: {}, hostPath: {path: /x}}]\n", "one of emptyDir and hostPath"},
		"climbing":         {head + ok + "  volumes: [{name: v, hostPath: {path: /x/../y}}]\n", "hostPath.path"},
		"quantity":         {head + "  containers: [{name: c, image: x, resources: {limits: {cpu: lots}}}]\n", `"lots", which is no quantity`},
		"resource":         {head + "  containers: [{name: c, image: x, resources: {limits: {nvidia.com/gpu: 1}}}]\n", "resources.limits"},
		"request":          {head + "  containers: [{name: c, image: x, resources: {limits: {cpu: 1}, requests: {cpu: 2}}}]\n", "more than the limit"},
		"port":             {head + "  containers: [{name: c, image: x, ports: [{containerPort: 70000}]}]\n", "containerPort"},
		"host port":        {head + "  hostNetwork: true\n  containers: [{name: c, image: x, ports: [{containerPort: 1, hostPort: 2}]}]\n", "hostPort"},
		"seccomp":          {head + "  containers: [{name: c, image: x, securityContext: {seccompProfile: {type: Localhost}}}]\n", "localhostProfile"},
		"propagation":      {head + "  volumes: [{name: v, emptyDir: {}}]\n  containers: [{name: c, image: x, volumeMounts: [{name: v, mountPath: /v, mountPropagation: Bidirectional}]}]\n", "privileged"},
		"dns":              {head + ok + "  dnsPolicy: None\n", "dnsConfig.nameservers"},
		"sidecar":          {head + "  containers: [{name: c, image: x, restartPolicy: Always}]\n", "spec.containers[0].restartPolicy"},
		"two things wrong": {head + "  containers: [{name: C, image: ''}]\n", "image: \"\" names no image"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseManifest([]byte(tc.text))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q in it", err, tc.want)
			}
		})
	}
}

// TestGenerated takes what kubectl run --dry-run writes, less its restart policy.
func TestGenerated(t *testing.T) {
	_, err := parseManifest([]byte("apiVersion: v1\nkind: Pod\nmetadata:\n  creationTimestamp: null\n  labels:\n    run: x\n  name: x\nspec:\n" +
		"  containers:\n  - image: x\n    name: x\n    resources: {}\n  dnsPolicy: ClusterFirst\n  restartPolicy: Never\nstatus: {}\n"))
	if err != nil {
		t.Error(err)
	}
}

func TestQuantity(t *testing.T) {
	for text, want := range map[string]int64{
		`"100m"`: 100, `1`: 1000, `1.5`: 1500, `"0.1"`: 100, `"64Mi"`: 64 << 20 * 1000, `"1k"`: 1e6, `"1e3"`: 1e6, `"1Ki"`: 1024_000, `"1M"`: 1e9,
		`"100u"`: 1, `"1500u"`: 2, `"1G"`: 1e12, `"1Gi"`: 1 << 30 * 1000, `".5"`: 500, `"0"`: 0,
	} {
		var q quantity
		if err := json.Unmarshal([]byte(text), &q); err != nil || q.milli != want {
			t.Errorf("%s: got %d, %v, want %d", text, q.milli, err, want)
		}
	}
	for _, text := range []string{`"-1"`, `"1ki"`, `"1 M"`, `""`, `"1e3k"`, `"99999999E"`, `true`, `"mm"`} {
		if err := json.Unmarshal([]byte(text), new(quantity)); err == nil {
			t.Errorf("%s: no error", text)
		}
	}
}

func FuzzManifest(f *testing.F) {
	example, err := os.ReadFile("../../../examples/web.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(example))
	f.Fuzz(func(_ *testing.T, text string) {
		if p, err := parseManifest([]byte(text)); err == nil {
			near := surroundings{dir: "/d", memory: 1}
			p.sandboxConfig(near)
			for _, c := range p.all() {
				p.containerConfig(c, "i", near)
			}
		}
	})
}

func TestExpand(t *testing.T) {
	env := map[string]string{"A": "1", "B": "$(A)"}
	for text, want := range map[string]string{
		"$(A)": "1", "$$(A)": "$(A)", "x$(A)y$(A)": "x1y1", "$(B)": "$(A)", "$(C)": "$(C)", "$(A": "$(A", "$A": "$A", "$": "$", "100$": "100$", "": "",
	} {
		if got := expand(text, env); got != want {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
}

// TestFollow rotates a log and looks for every line, in order, whole.
func TestFollow(t *testing.T) {
	file := filepath.Join(t.TempDir(), "0.log")
	write := func(name, text string) {
		t.Helper()
		f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	f := &follower{file: file, print: func(line string) { got = append(got, line) }}
	step := func(log *os.File) *os.File {
		t.Helper()
		log, err := f.catchUp(log)
		if err != nil {
			t.Fatal(err)
		}
		return log
	}
	log := step(nil)
	write(file, "t stdout F one\nt stdout P tw\nt std")
	log = step(log)
	write(file, "out F o\n")
	log = step(log)
	if err := os.Rename(file, file+".1"); err != nil {
		t.Fatal(err)
	}
	write(file+".1", "t stderr F three\x1b[2J\n")
	write(file, "t stdout F four\n")
	log = step(log)
	defer log.Close()
	if want := "one|two|three[2J|four"; strings.Join(got, "|") != want {
		t.Errorf("got %q, want %s", got, want)
	}
	if tail := logTail(file+".1", 1); len(tail) != 1 || tail[0] != "three[2J" {
		t.Errorf("tail: got %q", tail)
	}
}
