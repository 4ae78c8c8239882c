package sandbox

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// A Trace is how a pod started, as JSON shows it.
type Trace struct {
	Pod       ID        `json:"pod"`
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	UID       string    `json:"uid"`
	Attempt   uint32    `json:"attempt"`
	State     string    `json:"state"` // the phase of the pod, "failed" for one that was taken back, or "no pod yet"
	Problem   string    `json:"problem,omitempty"`
	Now       time.Time `json:"now"` // when it was asked
	Ops       []TraceOp `json:"ops"` // in the order in which they began
}

// A TraceOp is an operation of a start. The last step of one under way is not over yet.
type TraceOp struct {
	Op
	Container   string     `json:"container,omitempty"`
	ContainerID ID         `json:"containerID,omitempty"`
	Attempt     uint32     `json:"attempt,omitempty"` // of the container
	Running     bool       `json:"running,omitempty"`
	Waits       string     `json:"waits,omitempty"`    // for what, if that is known
	FirstLog    *time.Time `json:"firstLog,omitempty"` // after a start: when the first line was logged
}

// Trace shows how a pod started, or why it does not. The pod is named by its id, a
// unique beginning of it, or NAMESPACE/NAME, which finds pods that have no id yet for
// those who asked for them, and those that failed.
func (s *Service) Trace(name string) (*Trace, error) {
	if ns, name, ok := strings.Cut(name, "/"); ok {
		if p := s.podByName(ns, name); p != nil {
			return s.trace(podRef{p.id, p.record().Config.Metadata}, p.record()), nil
		}
		return s.failed(ns+"/"+name, func(o *recentOp) bool { return o.pod.meta.Namespace == ns && o.pod.meta.Name == name })
	}
	p, err := s.pods.get(ID(name))
	if err == nil {
		return s.trace(podRef{p.id, p.record().Config.Metadata}, p.record()), nil
	}
	if t, err := s.failed(name, func(o *recentOp) bool { return o.pod.id != "" && o.pod.id.matches(ID(name)) }); err == nil {
		return t, nil
	}
	return nil, err
}

// podByName finds the newest pod of a name.
func (s *Service) podByName(ns, name string) *pod {
	var found *pod
	for _, p := range s.pods.all() {
		r := p.record()
		if m := r.Config.Metadata; m.Namespace == ns && m.Name == name && (found == nil || found.record().CreatedAt.Before(r.CreatedAt)) {
			found = p
		}
	}
	return found
}

// failed shows a pod that was taken back, or one of which there is only a pull.
func (s *Service) failed(name string, match func(*recentOp) bool) (*Trace, error) {
	ops := s.recent.find(match)
	if len(ops) == 0 {
		return nil, fmt.Errorf("pod %s: %w", name, errdef.ErrNotFound)
	}
	last := ops[len(ops)-1]
	return s.trace(last.pod, nil), nil
}

// trace puts together what records, operations under way and the memory of failures
// know of a pod. It reads logs and looks at processes: it is for people, not for polls.
// r is nil for a pod that has no record.
func (s *Service) trace(pod podRef, r *podRecord) *Trace {
	m := pod.meta
	t := &Trace{Pod: pod.id, Namespace: m.Namespace, Name: m.Name, UID: m.UID, Attempt: m.Attempt, State: "failed", Now: time.Now()}
	if r != nil {
		t.State, t.Problem = r.Phase.String(), r.Problem
		for _, op := range r.Ops {
			t.Ops = append(t.Ops, TraceOp{Op: op})
		}
		for _, c := range s.containersOf(r.ID) {
			t.Ops = append(t.Ops, c.record().traces()...)
		}
	}
	t.Ops = append(t.Ops, s.flights.under(pod.id)...)
	for _, o := range s.recent.find(func(o *recentOp) bool { return o.concerns(pod, r) }) {
		t.Ops = append(t.Ops, o.TraceOp)
	}
	for i := range t.Ops {
		switch op := &t.Ops[i]; {
		case op.Running && op.Name == opRunPod:
			op.Waits = pluginOf(pod.id)
		case op.Running && op.Name == opPull:
			op.Steps, op.Waits = s.pullSteps(op.Image, op.Begun, t.Now.Sub(op.Begun))
		}
	}
	if last := len(t.Ops) - 1; r == nil && last >= 0 && t.Ops[last].Error == "" {
		t.State = "no pod yet" // somebody pulls its images first
	}
	slices.SortStableFunc(t.Ops, func(a, b TraceOp) int { return a.Begun.Compare(b.Begun) })
	t.Ops = distinct(t.Ops)
	return t
}

// concerns says whether an operation belongs to a pod, and to no pod of that name before
// it. A pull has no pod's id; RunPodSandbox begins before there is a record.
func (o *recentOp) concerns(pod podRef, r *podRecord) bool {
	if o.pod.id != "" {
		return o.pod.id == pod.id
	}
	return samePod(o.pod.meta, pod.meta) && (r == nil || !o.Begun.Before(r.CreatedAt))
}

// distinct drops an operation that ended while it was looked for: it was found under
// way and in a record.
func distinct(ops []TraceOp) []TraceOp {
	return slices.CompactFunc(ops, func(a, b TraceOp) bool {
		return a.Name == b.Name && a.Container == b.Container && a.Begun.Equal(b.Begun)
	})
}

// traces are the operations of a container, and of those that had its name before.
func (r *containerRecord) traces() []TraceOp {
	var out []TraceOp
	name := r.Config.Metadata.Name
	for _, b := range append(slices.Clip(r.Before), Start{ID: r.ID, Attempt: r.Config.Metadata.Attempt, LogPath: r.LogPath, Ops: r.Ops}) {
		for _, op := range b.Ops {
			o := TraceOp{Op: op, Container: name, ContainerID: b.ID, Attempt: b.Attempt}
			if op.Name == opStart && op.Error == "" {
				o.FirstLog = firstLog(b.LogPath, op.Begun)
			}
			out = append(out, o)
		}
	}
	return out
}

// under are the operations of a pod that are under way.
func (f *flights) under(pod ID) []TraceOp {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []TraceOp
	for _, fl := range f.run {
		fl.stage.mu.Lock()
		if pod != "" && fl.stage.pod.id == pod {
			out = append(out, fl.stage.view())
		}
		fl.stage.mu.Unlock()
	}
	return out
}

// view shows an operation under way; the lock is held.
func (s *stage) view() TraceOp {
	op := TraceOp{Op: s.op, Container: s.container, ContainerID: s.id, Attempt: s.attempt, Running: true}
	op.Steps = slices.Clone(op.Steps)
	if s.name != "" {
		op.Steps = append(op.Steps, Step{Name: s.name, Took: time.Since(s.since)})
	}
	return op
}

// firstLog is the time of the first line that a container logged, nil when it logged
// none or when that line went with a rotation.
func firstLog(path string, begun time.Time) *time.Time {
	if path == "" {
		return nil
	}
	if rotated, err := filepath.Glob(globEscape(path) + ".*"); err != nil || len(rotated) > 0 {
		return nil
	}
	// The directory is the kubelet's; what lies there must not make us wait or follow.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil
	}
	line := make([]byte, len(time.RFC3339Nano)+1)
	n, err := io.ReadFull(f, line)
	if err != nil && n == 0 {
		return nil
	}
	stamp, _, ok := bytes.Cut(line[:n], []byte{' '})
	at, err := time.Parse(time.RFC3339Nano, string(stamp))
	if !ok || err != nil || at.Before(begun) {
		return nil
	}
	return &at
}

// globEscape keeps Glob from taking a name for a pattern.
func globEscape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// pullWaits says how far a pull is, and what it waits for.
func pullWaits(p image.PullStatus) string {
	if p.Ended != nil {
		return ""
	}
	var words []string
	if p.Total > 0 {
		words = append(words, fmt.Sprintf("%d of %d MB", p.Done/1e6, p.Total/1e6))
	}
	if p.Host != "" {
		words = append(words, "from "+p.Host)
	}
	wait := p.Waiting
	for _, l := range p.Layers {
		if wait == nil && l.Waiting != nil {
			wait = l.Waiting
		}
	}
	if wait != nil {
		words = append(words, "waits: "+wait.Reason)
	}
	return strings.Join(words, ", ")
}

// pluginOf names the network plugin that runs for a pod: a child of ours that has the
// pod's id in its environment, as CNI says. "" when there is none.
func pluginOf(pod ID) string {
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, list := range lists {
		pids, _ := os.ReadFile(list)
		for pid := range strings.FieldsSeq(string(pids)) {
			if environ, err := os.ReadFile("/proc/" + pid + "/environ"); err != nil || !bytes.Contains(environ, []byte("CNI_CONTAINERID="+string(pod))) {
				continue
			}
			name, _ := os.ReadFile("/proc/" + pid + "/comm")
			return fmt.Sprintf("plugin %s (process %s)", bytes.TrimSpace(name), pid)
		}
	}
	return ""
}
