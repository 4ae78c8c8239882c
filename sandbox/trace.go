package sandbox

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// The operations that are traced carry the names of their CRI calls.
const (
	opRunPod = "RunPodSandbox"
	opStop   = "StopPodSandbox"
	opCreate = "CreateContainer"
	opStart  = "StartContainer"
	opPull   = "PullImage"
)

const (
	// traceErrorLimit bounds the text of a failure in a record.
	traceErrorLimit = 512
	// startsKept is how many earlier starts of a container its record keeps, the first
	// one among them.
	startsKept = 4
)

// An Op is one operation of a start, as records keep it.
type Op struct {
	Name  string    `json:"name"` // of the CRI call
	Begun time.Time `json:"begun"`
	// Steps follow each other without a gap from Begun on, so that a duration each says
	// when each was. If the operation failed, it did so in the last one.
	Steps  []Step `json:"steps"`
	Error  string `json:"error,omitempty"`
	Joined int    `json:"joined,omitempty"` // further calls that waited for it, as retries do
	Image  string `json:"image,omitempty"`  // of a pull
}

// A Step is one timed part of an operation.
type Step struct {
	Name string        `json:"name"`
	Took time.Duration `json:"ns"`
}

// Took is how long the operation took.
func (o *Op) Took() time.Duration {
	var sum time.Duration
	for _, s := range o.Steps {
		sum += s.Took
	}
	return sum
}

// A Start is how an earlier container of the same name began.
type Start struct {
	ID      ID
	Attempt uint32
	LogPath string `json:",omitempty"`
	Ops     []Op
}

// startsBefore is what a container's record keeps of the containers that had its name
// before: how the first one began, and the last few. A container that restarts for ever
// has no longer record than one that did so a few times.
func (s *Service) startsBefore(pod ID, m ContainerMetadata) []Start {
	var last *containerRecord
	for _, c := range s.containersOf(pod) {
		r := c.record()
		if r.Config.Metadata.Name == m.Name && r.Config.Metadata.Attempt < m.Attempt && (last == nil || last.CreatedAt.Before(r.CreatedAt)) {
			last = r
		}
	}
	if last == nil {
		return nil
	}
	all := append(slices.Clone(last.Before), Start{ID: last.ID, Attempt: last.Config.Metadata.Attempt, LogPath: last.LogPath, Ops: last.Ops})
	if len(all) > startsKept {
		all = slices.Delete(all, 1, 1+len(all)-startsKept)
	}
	return all
}

// stage says what an operation is doing now and how long each part took. Any
// goroutine may read it while its owner goes on. It reads the clock once a part.
type stage struct {
	mu        sync.Mutex // guards all below
	op        Op         // Steps: those that are over
	name      string     // of the present one, "" for none
	since     time.Time
	pod       podRef // whose operation it is; zero for one that is not traced
	container string
	attempt   uint32
	id        ID // of the container
}

func newStage() *stage { return &stage{op: Op{Begun: time.Now()}} }

// podRef is a pod, also one that has no record any more.
type podRef struct {
	id   ID
	meta Metadata
}

// traces says whose operation it is, and under which name it is shown.
func (s *stage) traces(op string, pod *podRecord) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.op.Name, s.pod = op, podRef{pod.ID, pod.Config.Metadata}
}

// of names the container that the operation is about.
func (s *stage) of(id ID, m ContainerMetadata) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.id, s.container, s.attempt = id, m.Name, m.Attempt
}

// enter ends the stage before and begins name. The first one began with the operation.
func (s *stage) enter(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.op.Steps == nil && s.name == "" {
		s.op.Steps, s.since = make([]Step, 0, 8), s.op.Begun
	} else {
		s.close()
	}
	s.name = name
}

// close ends the present stage; the lock is held.
func (s *stage) close() {
	now := time.Now()
	if s.name != "" {
		s.op.Steps = append(s.op.Steps, Step{Name: s.name, Took: now.Sub(s.since)})
	}
	s.name, s.since = "", now
}

// traceStart names the container whose start st is.
func (s *Service) traceStart(st *stage, c *container) {
	r := c.record()
	st.of(r.ID, r.Config.Metadata)
	if p, err := s.pods.get(r.Pod); err == nil {
		st.traces(opStart, p.record())
	}
}

// join counts a call that waits for the operation.
func (s *stage) join() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.op.Joined++
}

// end ends the last stage and returns the operation, which failed with err or did not.
func (s *stage) end(err error) Op {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.name != "" {
		s.close()
	}
	if err != nil {
		s.op.Error = cut(err.Error(), traceErrorLimit)
	}
	return s.op
}

// String names the present stage and its age, for errors and operators.
func (s *stage) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.name == "" {
		return "nothing"
	}
	return fmt.Sprintf("%q (for %v)", s.name, time.Since(s.since).Round(time.Millisecond))
}

// cut bounds a text.
func cut(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit], "") + "..."
}
