package sandbox

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/cri-runtime/cri-runtime/cni"
	"github.com/cri-runtime/cri-runtime/internal/linux/namespace"
	"github.com/cri-runtime/cri-runtime/sandbox/journal"
)

// Versions of the records on disk. A reader for each older one stays: version 1 had no
// changes after the record, and is read as one without.
const (
	podRecordVersion       = 2
	containerRecordVersion = 2
)

// podRecord is all that is kept of a pod. It is never changed in place once committed.
type podRecord struct {
	*podBase
	podState
}

// podBase is what seldom changes: a record with another one is written whole.
type podBase struct {
	ID        ID
	Config    PodConfig
	CreatedAt time.Time
	// Cgroup is the pod's own cgroup when we made it, "" when the kubelet did.
	Cgroup string `json:",omitempty"`
	// Parent is where the containers' cgroups go.
	Parent string
}

// podState is what each step of a pod's life may change. What omits nothing when empty
// may become empty again.
type podState struct {
	Phase      Phase
	Namespaces map[namespace.Kind]string
	// NoInit says that there is neither an init of a shared pid namespace nor its cgroup.
	NoInit     bool
	Init       *process
	Attachment *cni.Attachment `json:",omitempty"`
	Problem    string
	Ops        []Op `json:",omitempty"` // how it began
}

func (r *podRecord) sameBase(before *podRecord) bool { return r.podBase == before.podBase }

// change is what a reader of the records up to before has to be told.
func (r *podRecord) change(before *podRecord) any {
	st := r.podState
	if st.Attachment == before.Attachment {
		st.Attachment = nil
	}
	if len(st.Ops) == len(before.Ops) { // they only become more
		st.Ops = nil
	}
	return st
}

// decodePod reads a record and what has changed since.
func decodePod(rec journal.Record) (*podRecord, error) {
	r := &podRecord{podBase: &podBase{}}
	if err := json.Unmarshal(rec.Body, r); err != nil {
		return nil, fmt.Errorf("decode pod: %w", err)
	}
	for _, c := range rec.Changes {
		var st podState
		if err := json.Unmarshal(c, &st); err != nil {
			return nil, fmt.Errorf("decode change of pod: %w", err)
		}
		if st.Attachment == nil {
			st.Attachment = r.Attachment
		}
		if st.Ops == nil {
			st.Ops = r.Ops
		}
		r.podState = st
	}
	return r, nil
}

// maxChanges bounds the changes after a record: then it is written whole again.
const maxChanges = 100

// changing is a record that knows what is different from an earlier one.
type changing[R any] interface {
	comparable
	sameBase(before R) bool
	change(before R) any
}

// written is what the file of an object tells.
type written[R changing[R]] struct {
	record  R // zero: there is none, or nobody knows
	changes int
}

// commit writes r whole, or what has changed where the rest is on disk.
func (w *written[R]) commit(j *journal.Journal, id ID, r R) error {
	var none R
	before := w.record
	w.record = none
	if before != none && w.changes < maxChanges && r.sameBase(before) {
		if err := j.Append(string(id), r.change(before)); err != nil {
			return err
		}
		w.changes++
	} else {
		if err := j.Write(string(id), r); err != nil {
			return err
		}
		w.changes = 0
	}
	w.record = r
	return nil
}

// process names a process for ever: pids are used again, start times are not.
type process struct {
	PID   int
	Start uint64 // clock ticks after boot
}

// containerRecord is all that is kept of a container but its runtime-spec, which is
// beside it in a file of its own because it is large and written once.
type containerRecord struct {
	*containerBase
	containerState
}

// containerBase is what seldom changes: a record with another one is written whole.
type containerBase struct {
	ID         ID
	Pod        ID
	Config     ContainerConfig
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
	Before     []Start `json:",omitempty"` // how those began that had its name before
}

// containerState is what each step of a container's life may change. What omits nothing
// when empty may become empty again.
type containerState struct {
	Phase     ContainerPhase
	StartedAt time.Time `json:",omitzero"`
	Process   *process  `json:",omitempty"`
	Ended     *ending   `json:",omitempty"` // set in PhaseExited only
	StdinDone bool      // stdin_once was used up
	Ops       []Op      `json:",omitempty"` // how it began; in a change: those that are new
}

// seed is what is recorded of a container before there is anything else of it.
func (r *containerRecord) seed() any {
	return struct {
		ID, Pod         ID
		Cgroup, Handler string
		Phase           ContainerPhase
	}{r.ID, r.Pod, r.Cgroup, r.Handler, r.Phase}
}

// own gives r a base of its own, that may be changed until r is committed.
func (r *containerRecord) own() {
	base := *r.containerBase
	r.containerBase = &base
}

func (r *containerRecord) sameBase(before *containerRecord) bool {
	return r.containerBase == before.containerBase
}

// change is what a reader of the records up to before has to be told.
func (r *containerRecord) change(before *containerRecord) any {
	st := r.containerState
	if st.Process == before.Process {
		st.Process = nil
	}
	if st.StartedAt.Equal(before.StartedAt) {
		st.StartedAt = time.Time{}
	}
	st.Ops = st.Ops[min(len(before.Ops), len(st.Ops)):] // they only become more
	return st
}

// decodeContainer reads a record and what has changed since.
func decodeContainer(rec journal.Record) (*containerRecord, error) {
	r := &containerRecord{containerBase: &containerBase{}}
	if err := json.Unmarshal(rec.Body, r); err != nil {
		return nil, fmt.Errorf("decode container: %w", err)
	}
	for _, c := range rec.Changes {
		var st containerState
		if err := json.Unmarshal(c, &st); err != nil {
			return nil, fmt.Errorf("decode change of container: %w", err)
		}
		if st.Process == nil {
			st.Process = r.Process
		}
		if st.StartedAt.IsZero() {
			st.StartedAt = r.StartedAt
		}
		st.Ops = append(slices.Clip(r.Ops), st.Ops...)
		r.containerState = st
	}
	return r, nil
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
