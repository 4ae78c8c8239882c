package cri

import (
	"context"
	"fmt"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/cri/stream"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/sandbox"
)

// maxReply is what clients take in one message, less some room for what is around the
// output. The limit of 16 MiB is the kubelet's and crictl's (k8s.io/cri-client).
const maxReply = 16<<20 - 4096

func (s *runtimeService) ExecSync(ctx context.Context, r *pb.ExecSyncRequest) (*pb.ExecSyncResponse, error) {
	id, err := decodeID("container_id", r.GetContainerId())
	if err != nil {
		return nil, err
	}
	cmd, err := decodeCmd(r.GetCmd())
	if err != nil {
		return nil, err
	}
	// Probes without a timeout send 0; less is taken for the same.
	result, err := s.deps.Runtime.ExecSync(ctx, id, cmd, seconds(max(r.GetTimeout(), 0)))
	if err != nil {
		return nil, err
	}
	stdout, stderr := fitReply(result.Stdout, result.Stderr)
	return &pb.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: result.ExitCode}, nil
}

// fitReply cuts the output of two streams, each of which may have 16 MiB, to what
// arrives: a longer reply would be dropped by the client as a whole.
func fitReply(stdout, stderr []byte) (o, e []byte) {
	if over := len(stdout) + len(stderr) - maxReply; over > 0 {
		room := max(maxReply-len(stderr), maxReply/2)
		stdout = stdout[:min(len(stdout), room)]
		stderr = stderr[:min(len(stderr), maxReply-len(stdout))]
	}
	return stdout, stderr
}

func decodeCmd(cmd []string) ([]string, error) {
	if len(cmd) == 0 {
		return nil, field("cmd").refuse("is empty")
	}
	return field("cmd").texts(cmd, field.text)
}

func (s *runtimeService) Exec(_ context.Context, r *pb.ExecRequest) (*pb.ExecResponse, error) {
	cmd, err := decodeCmd(r.GetCmd())
	if err != nil {
		return nil, err
	}
	req := stream.Request{Kind: stream.Exec, Cmd: cmd, TTY: r.GetTty(), Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr()}
	url, err := s.sessionURL(r.GetContainerId(), req)
	return &pb.ExecResponse{Url: url}, err
}

func (s *runtimeService) Attach(_ context.Context, r *pb.AttachRequest) (*pb.AttachResponse, error) {
	req := stream.Request{Kind: stream.Attach, TTY: r.GetTty(), Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr()}
	url, err := s.sessionURL(r.GetContainerId(), req)
	return &pb.AttachResponse{Url: url}, err
}

// sessionURL makes the URL of a session in a running container. What can be said now
// is said now: a client understands a gRPC error better than a broken stream.
func (s *runtimeService) sessionURL(container string, req stream.Request) (string, error) {
	id, err := decodeID("container_id", container)
	if err != nil {
		return "", err
	}
	if req.TTY && req.Stderr {
		return "", field("stderr").refuse("is set beside tty, which has one output only")
	}
	if !req.Stdin && !req.Stdout && !req.Stderr {
		return "", field("stdin").refuse(", stdout and stderr are all unset")
	}
	c, err := s.deps.Runtime.Container(id)
	if err != nil {
		return "", err
	}
	if c.State != sandbox.ContainerRunning {
		return "", fmt.Errorf("%s in container %s, which is not running: %w", req.Kind, c.ID, errdef.ErrPhase)
	}
	req.ID = c.ID
	return s.sessions.URL(req)
}

func (s *runtimeService) PortForward(_ context.Context, r *pb.PortForwardRequest) (*pb.PortForwardResponse, error) {
	id, err := decodeID("pod_sandbox_id", r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	for i, p := range r.GetPort() {
		if p < 1 || p > 65535 {
			return nil, field("").at("port", i).refuse("%d is not a port", p)
		}
	}
	pod, err := s.deps.Runtime.Pod(id)
	if err != nil {
		return nil, err
	}
	if pod.State != sandbox.PodReady {
		return nil, fmt.Errorf("forward ports of pod %s, which is not ready: %w", pod.ID, errdef.ErrPhase)
	}
	url, err := s.sessions.URL(stream.Request{Kind: stream.PortForward, ID: pod.ID, Ports: r.GetPort()})
	return &pb.PortForwardResponse{Url: url}, err
}
