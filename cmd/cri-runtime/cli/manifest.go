package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// pod is what `run` understands of a Kubernetes Pod, and all of it is honoured. The
// types are our own: those of the Kubernetes API know every field, and so could not
// tell what is refused.
type pod struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Metadata   metadata `json:"metadata"`
	Spec       podSpec  `json:"spec"`
}

type metadata struct {
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace"`
	UID         string            `json:"uid"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

type podSpec struct {
	InitContainers                []container  `json:"initContainers"`
	Containers                    []container  `json:"containers"`
	Volumes                       []volume     `json:"volumes"`
	Hostname                      string       `json:"hostname"`
	HostNetwork                   bool         `json:"hostNetwork"`
	HostPID                       bool         `json:"hostPID"`
	HostIPC                       bool         `json:"hostIPC"`
	ShareProcessNamespace         bool         `json:"shareProcessNamespace"`
	DNSPolicy                     string       `json:"dnsPolicy"`
	DNSConfig                     *dnsConfig   `json:"dnsConfig"`
	RestartPolicy                 string       `json:"restartPolicy"`
	TerminationGracePeriodSeconds *int64       `json:"terminationGracePeriodSeconds"`
	SecurityContext               *podSecurity `json:"securityContext"`
}

type dnsConfig struct {
	Nameservers []string `json:"nameservers"`
	Searches    []string `json:"searches"`
	Options     []struct {
		Name  string  `json:"name"`
		Value *string `json:"value"`
	} `json:"options"`
}

type container struct {
	Name            string             `json:"name"`
	Image           string             `json:"image"`
	ImagePullPolicy string             `json:"imagePullPolicy"`
	Command         []string           `json:"command"`
	Args            []string           `json:"args"`
	WorkingDir      string             `json:"workingDir"`
	Env             []envVar           `json:"env"`
	Ports           []port             `json:"ports"`
	Resources       resources          `json:"resources"`
	SecurityContext *containerSecurity `json:"securityContext"`
	VolumeMounts    []volumeMount      `json:"volumeMounts"`
	Stdin           bool               `json:"stdin"`
	StdinOnce       bool               `json:"stdinOnce"`
	TTY             bool               `json:"tty"`
	RestartPolicy   string             `json:"restartPolicy"` // of an init container: Always makes it a sidecar
}

func (c *container) sidecar() bool { return c.RestartPolicy == "Always" }

type envVar struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type port struct {
	Name          string `json:"name"`
	ContainerPort int32  `json:"containerPort"`
	HostPort      int32  `json:"hostPort"`
	HostIP        string `json:"hostIP"`
	Protocol      string `json:"protocol"`
}

type resources struct {
	Limits   map[string]quantity `json:"limits"`
	Requests map[string]quantity `json:"requests"`
}

type volume struct {
	Name     string    `json:"name"`
	EmptyDir *struct{} `json:"emptyDir"`
	HostPath *struct {
		Path string `json:"path"`
		Type string `json:"type"`
	} `json:"hostPath"`
}

type volumeMount struct {
	Name             string `json:"name"`
	MountPath        string `json:"mountPath"`
	ReadOnly         bool   `json:"readOnly"`
	MountPropagation string `json:"mountPropagation"`
}

// security is what pod and container both may say; the container's word counts.
type security struct {
	RunAsUser       *int64   `json:"runAsUser"`
	RunAsGroup      *int64   `json:"runAsGroup"`
	RunAsNonRoot    *bool    `json:"runAsNonRoot"`
	SeccompProfile  *profile `json:"seccompProfile"`
	AppArmorProfile *profile `json:"appArmorProfile"`
}

type profile struct {
	Type             string `json:"type"`
	LocalhostProfile string `json:"localhostProfile"`
}

type podSecurity struct {
	security
	FSGroup                  *int64  `json:"fsGroup"`
	SupplementalGroups       []int64 `json:"supplementalGroups"`
	SupplementalGroupsPolicy string  `json:"supplementalGroupsPolicy"`
	Sysctls                  []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	} `json:"sysctls"`
}

type containerSecurity struct {
	security
	Privileged               bool  `json:"privileged"`
	AllowPrivilegeEscalation *bool `json:"allowPrivilegeEscalation"`
	ReadOnlyRootFilesystem   bool  `json:"readOnlyRootFilesystem"`
	Capabilities             *struct {
		Add  []string `json:"add"`
		Drop []string `json:"drop"`
	} `json:"capabilities"`
}

// readManifest reads a file that holds one pod, "-" for standard input, and fills in
// what Kubernetes would.
func readManifest(file string) (*pod, error) {
	var text []byte
	var err error
	if file == "-" {
		text, err = readLimited(os.Stdin)
	} else {
		var f *os.File
		if f, err = os.Open(file); err == nil {
			text, err = readLimited(f)
			f.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	p, err := parseManifest(text)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", file, err)
	}
	return p, nil
}

func parseManifest(text []byte) (*pod, error) {
	text, err := onlyDocument(text)
	if err != nil {
		return nil, err
	}
	body, err := yaml.YAMLToJSONStrict(text) // strict: a key that stands there twice is an error
	if err != nil {
		return nil, err
	}
	var tree any
	if err := json.Unmarshal(body, &tree); err != nil {
		return nil, err
	}
	head, _ := tree.(map[string]any)
	if head["apiVersion"] != "v1" || head["kind"] != "Pod" {
		return nil, fmt.Errorf("holds apiVersion %v, kind %v: want v1, Pod", head["apiVersion"], head["kind"])
	}
	if bad := unknownFields("", tree, reflect.TypeFor[pod]()); len(bad) > 0 {
		return nil, fmt.Errorf("`cri-runtime run` cannot honour %s", strings.Join(bad, ", "))
	}
	var p pod
	if err := json.Unmarshal(body, &p); err != nil {
		if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return nil, fmt.Errorf("%s is a %s", wrong.Field, wrong.Value)
		}
		return nil, err
	}
	p.setDefaults()
	return &p, p.check()
}

// onlyDocument refuses a stream of several documents, of which a YAML decoder would
// silently take the first.
func onlyDocument(text []byte) ([]byte, error) {
	var found [][]byte
	for doc := range bytes.SplitSeq(append([]byte("\n"), text...), []byte("\n---")) {
		var v any
		if err := yaml.Unmarshal(doc, &v); err != nil || v != nil {
			found = append(found, doc)
		}
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("holds %d documents, want one pod", len(found))
	}
	return found[0][min(1, len(found[0])):], nil
}

// unknownFields lists the paths of all values that type t has no place for. What is
// empty asks for nothing and passes, as kubectl writes "status: {}" into manifests.
func unknownFields(path string, v any, t reflect.Type) (bad []string) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()) {
		return nil
	}
	switch v := v.(type) {
	case []any:
		if t.Kind() == reflect.Slice {
			for i, e := range v {
				bad = append(bad, unknownFields(fmt.Sprintf("%s[%d]", path, i), e, t.Elem())...)
			}
		}
	case map[string]any:
		if t.Kind() != reflect.Struct {
			return nil
		}
		for name, e := range v {
			field, ok := fieldOf(t, name)
			at := strings.TrimPrefix(path+"."+name, ".")
			switch {
			case ok:
				bad = append(bad, unknownFields(at, e, field)...)
			case !empty(e):
				bad = append(bad, at)
			}
		}
	}
	slices.Sort(bad)
	return bad
}

func fieldOf(t reflect.Type, name string) (reflect.Type, bool) {
	for _, f := range reflect.VisibleFields(t) {
		if f.Tag.Get("json") == name {
			return f.Type, true
		}
	}
	return nil, false
}

func empty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case []any:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	}
	return false
}

func (p *pod) setDefaults() {
	if p.Metadata.Namespace == "" {
		p.Metadata.Namespace = "default"
	}
	if p.Spec.TerminationGracePeriodSeconds == nil {
		p.Spec.TerminationGracePeriodSeconds = new(int64(30))
	}
	if p.Spec.SecurityContext == nil {
		p.Spec.SecurityContext = &podSecurity{}
	}
	if p.Spec.Hostname == "" {
		p.Spec.Hostname = strings.TrimRight(p.Metadata.Name[:min(63, len(p.Metadata.Name))], "-.")
	}
	for _, c := range p.all() {
		if c.SecurityContext == nil {
			c.SecurityContext = &containerSecurity{}
		}
		if c.ImagePullPolicy == "" {
			c.ImagePullPolicy = "IfNotPresent"
			if name := c.Image[strings.LastIndexByte(c.Image, '/')+1:]; !strings.ContainsAny(name, ":@") || strings.HasSuffix(name, ":latest") {
				c.ImagePullPolicy = "Always"
			}
		}
		for i := range c.Ports {
			if c.Ports[i].Protocol == "" {
				c.Ports[i].Protocol = "TCP"
			}
			if p.Spec.HostNetwork && c.Ports[i].HostPort == 0 {
				c.Ports[i].HostPort = c.Ports[i].ContainerPort
			}
		}
	}
}

// all returns the containers in their order of start.
func (p *pod) all() []*container {
	var all []*container
	for i := range p.Spec.InitContainers {
		all = append(all, &p.Spec.InitContainers[i])
	}
	for i := range p.Spec.Containers {
		all = append(all, &p.Spec.Containers[i])
	}
	return all
}
