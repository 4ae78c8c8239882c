package sandbox

import (
	"path/filepath"
	"time"

	"github.com/cri-runtime/cri-runtime/cni"
	"github.com/cri-runtime/cri-runtime/internal/linux/namespace"
)

// Versions of the records on disk. A reader for each older one stays.
const (
	podRecordVersion       = 1
	containerRecordVersion = 1
)

// podRecord is all that is kept of a pod. It is never changed in place once committed.
type podRecord struct {
	ID        ID
	Config    PodConfig
	Phase     Phase
	CreatedAt time.Time
	// Cgroup is the pod's own cgroup when we made it, "" when the kubelet did.
	Cgroup string `json:",omitempty"`
	// Parent is where the containers' cgroups go.
	Parent     string
	Namespaces map[namespace.Kind]string `json:",omitempty"`
	Init       *process                  `json:",omitempty"` // of the shared pid namespace
	Attachment *cni.Attachment           `json:",omitempty"`
	Problem    string                    `json:",omitempty"`
	Ops        []Op                      `json:",omitempty"` // how it began
}

// process names a process for ever: pids are used again, start times are not.
type process struct {
	PID   int
	Start uint64 // clock ticks after boot
}

// containerRecord is all that is kept of a container but its runtime-spec, which is
// beside it in a file of its own because it is large and written once.
type containerRecord struct {
	ID         ID
	Pod        ID
	Config     ContainerConfig
	Phase      ContainerPhase
	ImageID    string
	ImageRef   string
	ImageName  string
	LogPath    string `json:",omitempty"`
	Cgroup     string
	Handler    string
	User       LinuxUser
	UserName   string `json:",omitempty"`
	Home       string `json:",omitempty"`
	StopSignal int
	Resources  Resources
	Mounts     []Mount
	Args       []string
	Views      []string `json:",omitempty"` // keys of image volumes' snapshots
	CreatedAt  time.Time
	StartedAt  time.Time `json:",omitzero"`
	Process    *process  `json:",omitempty"`
	Ended      *ending   `json:",omitempty"` // set in PhaseExited only
	StdinDone  bool      `json:",omitempty"` // stdin_once was used up
	Ops        []Op      `json:",omitempty"` // how it began
	Before     []Start   `json:",omitempty"` // and those that had its name before
}

// ending is how a container ended.
type ending struct {
	At       time.Time
	ExitCode int32
	Reason   string
	Message  string `json:",omitempty"`
}

// paths is the one place where names below State are joined.
type paths struct{ state string }

func (p paths) podJournal() string       { return filepath.Join(p.state, "pods") }
func (p paths) containerJournal() string { return filepath.Join(p.state, "containers") }
func (p paths) podsDir() string          { return filepath.Join(p.state, "pod") }
func (p paths) podDir(id ID) string      { return filepath.Join(p.podsDir(), string(id)) }
func (p paths) pins(id ID) string        { return filepath.Join(p.podDir(id), "ns") }
func (p paths) file(id ID, name string) string {
	return filepath.Join(p.podDir(id), name)
}
func (p paths) base() string        { return filepath.Join(p.state, "base") }
func (p paths) bundlesDir() string  { return filepath.Join(p.state, "bundle") }
func (p paths) bundle(id ID) string { return filepath.Join(p.bundlesDir(), string(id)) }
func (p paths) spec(id ID) string   { return filepath.Join(p.bundle(id), "config.json") }
