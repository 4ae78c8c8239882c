package sandbox

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/cri-runtime/cri-runtime/image"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// recentKept bounds the memory of what no record keeps.
const recentKept = 64

// recent remembers what no record keeps: pulls, which come before the container that
// they are for, and what failed and was taken back. It ends with the daemon; once a
// container is created, its record has the pull.
type recent struct {
	mu  sync.Mutex // guards all below
	ops []*recentOp
}

// recentOp is an operation that is over, or a pull under way. It is never changed.
type recentOp struct {
	TraceOp
	pod     podRef // of a pull, without an id
	imageID string // what a pull gave
}

// add remembers op and forgets the oldest one if there are too many, and an earlier
// failure of the same.
func (m *recent) add(op *recentOp) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if op.Error != "" {
		m.ops = slices.DeleteFunc(m.ops, func(o *recentOp) bool {
			return o.Error != "" && o.Name == op.Name && o.Container == op.Container && o.Image == op.Image && samePod(o.pod.meta, op.pod.meta)
		})
	}
	if len(m.ops) >= recentKept {
		m.ops = slices.Delete(m.ops, 0, len(m.ops)-recentKept+1)
	}
	m.ops = append(m.ops, op)
}

func (m *recent) drop(op *recentOp) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ops = slices.DeleteFunc(m.ops, func(o *recentOp) bool { return o == op })
}

// find returns those that match, oldest first.
func (m *recent) find(match func(*recentOp) bool) []*recentOp {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*recentOp
	for _, o := range m.ops {
		if match(o) {
			out = append(out, o)
		}
	}
	return out
}

// samePod leaves the attempt aside: a pull may belong to the next one.
func samePod(a, b Metadata) bool {
	return a.Name == b.Name && a.Namespace == b.Namespace && a.UID == b.UID
}

// pullOf gives the pull that brought the image of a container that is being created to
// the container's record.
func (m *recent) pullOf(pod *podRecord, c *containerRecord) []Op {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, o := range slices.Backward(m.ops) {
		if !o.Running && o.imageID != "" && o.imageID == c.ImageID && samePod(o.pod.meta, pod.Config.Metadata) {
			m.ops = slices.Delete(m.ops, i, i+1)
			return []Op{o.Op}
		}
	}
	return nil
}

// Pulling notes that an image is pulled for a pod. The function that it returns notes
// the end. A pull for no pod is not noted.
func (s *Service) Pulling(ctx context.Context, pod Metadata, ref string) (done func(id image.ID, err error)) {
	if pod.Name == "" {
		return func(image.ID, error) {}
	}
	begun := time.Now()
	running := &recentOp{pod: podRef{meta: pod}, TraceOp: TraceOp{Op: Op{Name: opPull, Begun: begun, Image: ref}, Running: true}}
	s.recent.add(running)
	return func(id image.ID, err error) {
		s.recent.drop(running)
		over := &recentOp{pod: running.pod, imageID: string(id), TraceOp: TraceOp{Op: running.Op}}
		over.Steps, _ = s.pullSteps(ref, begun, time.Since(begun))
		if err != nil {
			over.Error = cut(err.Error(), traceErrorLimit)
		}
		s.recent.add(over)
		if s.Traced != nil {
			ref := over.pod
			if p := s.podByName(pod.Namespace, pod.Name); p != nil && samePod(p.record().Config.Metadata, pod) {
				ref.id = p.id
			}
			s.Traced(ctx, &Trace{Pod: ref.id, Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, Ops: []TraceOp{over.TraceOp}})
		}
	}
}

// pullSteps tells the parts of a pull that began at begun and has taken took, and what it
// waits for. The call may have joined a pull under way.
func (s *Service) pullSteps(ref string, begun time.Time, took time.Duration) (steps []Step, waits string) {
	var st image.PullStatus
	ok := false
	if s.Pulls != nil {
		st, ok = s.Pulls.LastPull(ref)
	}
	end := begun.Add(took)
	if !ok || st.Ended != nil && st.Ended.Before(begun) || st.Started.After(end) {
		return []Step{{Name: "pull", Took: took}}, ""
	}
	at := begun
	for i, p := range st.Phases {
		next := end
		if i+1 < len(st.Phases) {
			next = st.Phases[i+1].Since
		}
		if p.Phase == image.PhaseDone || p.Phase == image.PhaseFailed || !next.After(at) {
			continue // before the call, or the end itself
		}
		steps = append(steps, Step{Name: string(p.Phase), Took: next.Sub(at)})
		at = next
	}
	if len(steps) == 0 {
		steps = []Step{{Name: "pull", Took: took}}
	}
	return steps, pullWaits(st)
}

// traced is told of each operation when it is over.
func (s *Service) traced(ctx context.Context, st *stage, err error) {
	st.mu.Lock()
	pod, op := st.pod, st.view()
	st.mu.Unlock()
	if pod.id == "" {
		return
	}
	op.Op, op.Running = st.end(err), false
	// A start that fails is in the container's record, unless it is worth a retry; what
	// fails before has no record.
	if err != nil && (op.Name == opRunPod || op.Name == opCreate || op.Name == opStart && errors.Is(err, errdef.ErrRetry)) {
		s.recent.add(&recentOp{TraceOp: op, pod: pod})
	}
	if s.Traced != nil {
		m := pod.meta
		s.Traced(ctx, &Trace{Pod: pod.id, Namespace: m.Namespace, Name: m.Name, UID: m.UID, Attempt: m.Attempt, Ops: []TraceOp{op}})
	}
}
