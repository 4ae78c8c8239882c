package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
	"github.com/cri-runtime/cri-runtime/internal/linux/pidfd"
	"github.com/cri-runtime/cri-runtime/oci/monitor"
	"github.com/cri-runtime/cri-runtime/oci/runtime"
)

// startErrorCode is the exit code of a container whose set-up failed, as containerd's.
const startErrorCode = 128

// start runs the container's program. The caller holds the gate and has committed
// PhaseStarting.
func (s *Service) start(ctx context.Context, st *stage, c *container, p *pod) error {
	r := *c.record()
	rt, err := s.runtime(r.Handler)
	if err != nil {
		return err
	}
	rs, err := s.startSpec(c)
	if err != nil {
		return err
	}
	joined, err := s.holdPIDNamespace(&r, p, rs)
	if err != nil {
		return err
	}
	defer closeAll(joined)
	root := c.rootfs.Swap(nil)
	if root == nil { // the daemon was started anew since the container was created
		if root, err = s.mountRoot(c.id, p.record()); err != nil {
			return err
		}
	}
	defer root.Close()
	st.enter("make cgroup")
	group, err := s.Cgroups.Create(cgroup.Path(r.Cgroup), groupResources(rs, r.Resources))
	if err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	defer group.Close()
	st.enter("open log")
	log, pipes, err := openStreams(&r, p.record())
	if err != nil {
		return err
	}
	defer pipes.CloseContainerEnds()
	st.enter("compile plan")
	proc, err := rt.Start(ctx, runtime.Start{
		ID: string(c.id), Bundle: s.paths.bundle(c.id), Spec: rs, Rootfs: root, Group: group,
		Stdio: runtime.Stdio{Stdin: pipes.Stdin, Stdout: pipes.Stdout, Stderr: pipes.Stderr}, Log: log, StdinKeep: pipes.StdinW, Phase: st.enter,
	})
	if err != nil {
		return err
	}
	r.Process = &process{PID: proc.PID, Start: proc.StartTime}
	r.StartedAt = time.Now()
	r.Ops = append(slices.Clip(r.Ops), st.end(nil))
	return s.step(c, r, ctrStarted)
}

// errReused is about an id that a later process got.
var errReused = errors.New("its id belongs to another process now")

// holdPIDNamespace opens the pid namespace of another process that the container joins,
// and puts its descriptor into the spec. The path that was written at creation may by now
// be another process's, and its namespace the host's.
func (s *Service) holdPIDNamespace(r *containerRecord, p *pod, rs *specs.Spec) (*os.File, error) {
	var owner *process
	switch ns := r.Config.Security.Namespaces; ns.PID {
	case ModePod:
		owner = p.record().Init
	case ModeTarget:
		target, err := s.containers.get(ns.TargetID)
		if err != nil {
			return nil, err
		}
		owner = target.record().Process
	case ModeContainer, ModeNode:
		return nil, nil
	}
	if owner == nil || rs.Linux == nil {
		return nil, fmt.Errorf("the process whose pid namespace it shares is not known: %w", errdef.ErrPhase)
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", owner.PID))
	if err != nil {
		return nil, fmt.Errorf("open shared pid namespace: %w: %w", err, errdef.ErrPhase)
	}
	start, err := pidfd.StartTime(owner.PID)
	if err == nil && start != owner.Start {
		err = errReused
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("the process %d whose pid namespace it shares has ended: %w: %w", owner.PID, err, errdef.ErrPhase)
	}
	for i := range rs.Linux.Namespaces {
		if rs.Linux.Namespaces[i].Type == specs.PIDNamespace {
			// Named by our process: an OCI runtime program reads the spec too.
			rs.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
		}
	}
	return f, nil
}

// startFailed commits that the container ended before it began, so that the kubelet
// shows why. After a failure that is worth a retry it is created again.
func (s *Service) startFailed(ctx context.Context, st *stage, c *container, cause error) error {
	r := *c.record()
	if r.Phase != PhaseStarting {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endLimit)
	defer cancel()
	if errors.Is(cause, errdef.ErrRetry) { // the monitor died in the middle: not the container's fault
		return errors.Join(s.release(ctx, c), s.step(c, r, ctrNotStarted))
	}
	r.Ops = append(slices.Clip(r.Ops), st.end(cause))
	now := time.Now()
	r.StartedAt = now
	r.Ended = &ending{At: now, ExitCode: startErrorCode, Reason: reasonStart, Message: cause.Error()}
	if failed, ok := errors.AsType[*runtime.ExecError](cause); ok {
		r.Ended.ExitCode = failed.Code
	}
	if err := s.stepEnded(ctx, c, r); err != nil {
		return err
	}
	return s.release(ctx, c)
}

// openLog opens the log file before the container starts: the kubelet makes its
// symlink to it only if it is there.
func openLog(r *containerRecord) (*monitor.Log, error) {
	path := r.LogPath
	if path == "" {
		path = os.DevNull
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make log directory: %w", err)
	}
	f, err := monitor.OpenLog(path)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return &monitor.Log{Path: path, File: f}, nil
}

// openStreams makes the log and, without a terminal, the pipes of a container. The
// runtime takes the log and our end of stdin; the rest is for the caller to close.
func openStreams(r *containerRecord, pr *podRecord) (*monitor.Log, *monitor.Pipes, error) {
	log, err := openLog(r)
	if err != nil || r.Config.TTY {
		return log, &monitor.Pipes{}, err
	}
	uid, gid := mapID(pr.userns(), r.User.UID, false), mapID(pr.userns(), r.User.GID, true)
	pipes, err := monitor.NewPipes(uid, gid, r.Config.Stdin)
	if err != nil {
		log.File.Close()
		return nil, nil, err
	}
	log.Stdout, log.Stderr = pipes.StdoutR, pipes.StderrR
	return log, pipes, nil
}

// mapID is the host's id of a container's id.
func mapID(u *UserNamespace, id int64, group bool) int {
	if u == nil {
		return int(id)
	}
	maps := u.UIDs
	if group {
		maps = u.GIDs
	}
	for _, m := range maps {
		if id >= int64(m.Container) && id < int64(m.Container)+int64(m.Length) {
			return int(int64(m.Host) + id - int64(m.Container))
		}
	}
	return int(hostID(u, group))
}

// bounded reads at most accountFileLimit bytes of f, which may be nil: image content
// must not fill memory (CVE-2026-47262).
func bounded(f *os.File) io.Reader {
	if f == nil {
		return nil
	}
	return io.LimitReader(f, accountFileLimit)
}
