package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// options are the flags of `run`.
type options struct {
	socket, data         string
	timeout, logsFor     time.Duration
	follow, remove, http bool
}

// readyLimit is how long a daemon that has just started may lack its network.
const readyLimit = 15 * time.Second

var (
	errInterrupted = errors.New("interrupted")
	errTimeout     = errors.New("not done within --timeout")
)

// runner runs one pod.
type runner struct {
	*client
	pod    *pod
	opts   options
	show   *screen
	near   surroundings
	config *rt.PodSandboxConfig

	sandbox   string               // id
	ip        string               // of the pod, "" with host network
	found     map[string]*rt.Image // images by the manifest's name
	instances []*instance          // in order of start

	changed chan struct{} // something happened to a container
	live    atomic.Bool   // events come, so that asking is rarely needed
	helpers sync.WaitGroup
	stop    context.CancelFunc // of the helpers
}

// instance is a container that was created.
type instance struct {
	spec *container
	id   string
	init bool
	said bool // its end was told
}

// run starts the pod and stays with it for as long as the options say.
func run(ctx context.Context, c *client, p *pod, o options, show *screen) (err error) {
	r := &runner{client: c, pod: p, opts: o, show: show, found: map[string]*rt.Image{}, changed: make(chan struct{}, 1)}
	if err := r.surround(); err != nil {
		return err
	}
	helpers, stop := context.WithCancel(context.WithoutCancel(ctx)) // the log's end comes after Ctrl-C
	r.stop = stop
	defer r.endHelpers()
	if err := r.alone(ctx); err != nil {
		return err
	}
	defer func() {
		if err != nil || o.remove {
			err = errors.Join(err, r.takeAway(ctx))
			return
		}
		show.step("pod", "%s/%s goes on running; to remove it: crictl -r unix://%s rmp -f %.13s && rm -r %s",
			p.Metadata.Namespace, p.Metadata.Name, strings.TrimPrefix(o.socket, "unix://"), r.sandbox, r.near.dir)
	}()
	if err := r.start(ctx, helpers); err != nil {
		return err
	}
	return r.watch(ctx)
}

// surround collects what the configurations need to know of the node.
func (r *runner) surround() error {
	uid := r.pod.Metadata.UID
	if uid == "" {
		uid = strings.ToLower(rand.Text())
	}
	memory, err := nodeMemory()
	if err != nil {
		return err
	}
	resolv, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read name servers: %w", err)
	}
	dir := filepath.Join(r.opts.data, fmt.Sprintf("%s_%s_%s", r.pod.Metadata.Namespace, r.pod.Metadata.Name, uid))
	r.near = surroundings{uid: uid, dir: dir, memory: memory, resolv: string(resolv)}
	r.config = r.pod.sandboxConfig(r.near)
	return nil
}

// alone refuses to run a pod a second time: most manifests name ports or directories.
func (r *runner) alone(ctx context.Context) error {
	labels := r.pod.labels(r.near.uid)
	delete(labels, labelUID)
	reply, err := r.runtime.ListPodSandbox(ctx, &rt.ListPodSandboxRequest{Filter: &rt.PodSandboxFilter{LabelSelector: labels}})
	if err != nil {
		return fmt.Errorf("list pods: %w", plain(err))
	}
	for _, p := range reply.Items {
		if p.State == rt.PodSandboxState_SANDBOX_READY || p.Metadata.Uid == r.near.uid {
			return fmt.Errorf("pod %s/%s is there already: to remove it: crictl -r unix://%s rmp -f %.13s",
				p.Metadata.Namespace, p.Metadata.Name, strings.TrimPrefix(r.opts.socket, "unix://"), p.Id)
		}
	}
	return nil
}

// start brings everything up. Its errors name the stage.
func (r *runner) start(ctx, helpers context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, r.opts.timeout, errTimeout)
	defer cancel()
	r.show.step("pod", "%s/%s", r.pod.Metadata.Namespace, r.pod.Metadata.Name)
	for _, stage := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"wait for the runtime", r.awaitReady},
		{"get images", r.getImages},
		{"make volumes", func(context.Context) error { return r.pod.makeVolumes(r.near) }},
		{"start the pod", r.startSandbox},
		{"start containers", func(ctx context.Context) error {
			r.helpers.Go(func() { r.events(helpers) })
			return r.startAll(ctx, helpers)
		}},
		{"ask for the page", r.fetchPage},
	} {
		if err := stage.do(ctx); err != nil {
			if ctx.Err() != nil {
				err = why(ctx, err)
			}
			return fmt.Errorf("%s: %w", stage.name, err)
		}
	}
	return nil
}

// why explains an error of a context that has ended.
func why(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errTimeout) {
		return fmt.Errorf("%w: %w", errTimeout, err)
	}
	return errInterrupted
}

func (r *runner) awaitReady(ctx context.Context) error {
	limit, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	var missing string
	err := r.await(limit, func() (bool, error) {
		reply, err := r.runtime.Status(limit, &rt.StatusRequest{})
		if err != nil {
			return false, plain(err)
		}
		missing = ""
		for _, c := range reply.GetStatus().GetConditions() {
			if !c.Status && (c.Type == rt.RuntimeReady || c.Type == rt.NetworkReady && !r.pod.Spec.HostNetwork) {
				missing = fmt.Sprintf("%s is false: %s: %s", c.Type, c.Reason, c.Message)
			}
		}
		return missing == "", nil
	})
	if err != nil && missing != "" && ctx.Err() == nil {
		return errors.New(missing)
	}
	return err
}

// await asks until the answer is yes: after each event, and now and then.
func (r *runner) await(ctx context.Context, ready func() (bool, error)) error {
	for {
		if ok, err := ready(); ok || err != nil {
			return err
		}
		pause := 200 * time.Millisecond
		if r.live.Load() {
			pause = 5 * time.Second
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-r.changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// events listens for what happens to containers; a server without events is asked more often.
func (r *runner) events(ctx context.Context) {
	stream, err := r.runtime.GetContainerEvents(ctx, &rt.GetEventsRequest{})
	for err == nil {
		if _, err = stream.Recv(); err == nil {
			r.live.Store(true)
			select {
			case r.changed <- struct{}{}:
			default:
			}
		}
	}
	r.live.Store(false)
	select {
	case r.changed <- struct{}{}: // so that who waits asks again soon
	default:
	}
}

func (r *runner) getImages(ctx context.Context) error {
	for _, c := range r.pod.all() {
		if r.found[c.Image] == nil {
			if err := r.getImage(ctx, c); err != nil {
				return err
			}
		}
		if err := r.checkUser(c, r.found[c.Image]); err != nil {
			return err
		}
	}
	return nil
}

func (r *runner) getImage(ctx context.Context, c *container) error {
	image, err := r.find(ctx, c.Image)
	switch {
	case err != nil:
		return err
	case image == nil && c.ImagePullPolicy == "Never":
		return fmt.Errorf("image %s is not here, and imagePullPolicy is Never", c.Image)
	case image != nil && c.ImagePullPolicy != "Always":
		r.show.step("image", "%s is here", c.Image)
	default:
		if image, err = r.pull(ctx, c.Image, pullOptions{pod: r.config}, r.show); err != nil {
			return err
		}
	}
	r.found[c.Image] = image
	return nil
}

// checkUser keeps runAsNonRoot's promise, which the runtime is not told of.
func (r *runner) checkUser(c *container, image *rt.Image) error {
	outer := r.pod.Spec.SecurityContext
	if nonRoot := either(c.SecurityContext.RunAsNonRoot, outer.RunAsNonRoot); nonRoot == nil || !*nonRoot {
		return nil
	}
	user := either(c.SecurityContext.RunAsUser, outer.RunAsUser)
	switch {
	case user != nil && *user == 0:
		return fmt.Errorf("container %s: runAsNonRoot, but runAsUser is 0", c.Name)
	case user == nil && image.Username != "":
		return fmt.Errorf("container %s: runAsNonRoot, but the image's user %q may be anybody: set runAsUser", c.Name, image.Username)
	case user == nil && image.Uid.GetValue() == 0:
		return fmt.Errorf("container %s: runAsNonRoot, but the image runs as root: set runAsUser", c.Name)
	}
	return nil
}

func (r *runner) startSandbox(ctx context.Context) error {
	start := time.Now()
	reply, err := r.runtime.RunPodSandbox(ctx, &rt.RunPodSandboxRequest{Config: r.config})
	if err != nil {
		return plain(err)
	}
	r.sandbox = reply.PodSandboxId
	state, err := r.runtime.PodSandboxStatus(ctx, &rt.PodSandboxStatusRequest{PodSandboxId: r.sandbox})
	if err != nil {
		return fmt.Errorf("ask for its address: %w", plain(err))
	}
	address := "the host's network"
	if !r.pod.Spec.HostNetwork {
		r.ip = state.GetStatus().GetNetwork().GetIp()
		if r.ip == "" {
			return errors.New("it has no address")
		}
		address = "IP " + r.ip
		for _, more := range state.Status.Network.AdditionalIps {
			address += ", " + more.Ip
		}
	}
	r.show.step("pod", "ready in %s, ID %.13s, %s", took(start), r.sandbox, address)
	return nil
}

func (r *runner) fetchPage(ctx context.Context) error {
	number, ok := r.pod.httpPort()
	if !ok || !r.opts.http {
		return nil
	}
	ip := r.ip
	if ip == "" {
		ip = "127.0.0.1"
	}
	return fetch(ctx, ip, number, r.show)
}

// takeAway removes what this run made: containers first, with their grace, so that
// their last words are shown.
func (r *runner) takeAway(ctx context.Context) error {
	grace := *r.pod.Spec.TerminationGracePeriodSeconds
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Duration(grace)*time.Second+time.Minute)
	defer cancel()
	errs := []error{r.stopAll(ctx, grace)}
	// By label: an interrupted call may have made a pod whose id never came back.
	reply, err := r.runtime.ListPodSandbox(ctx, &rt.ListPodSandboxRequest{Filter: &rt.PodSandboxFilter{LabelSelector: r.pod.labels(r.near.uid)}})
	if err != nil {
		errs = append(errs, fmt.Errorf("list pods: %w", plain(err)))
	}
	for _, p := range reply.GetItems() {
		if _, err := r.runtime.StopPodSandbox(ctx, &rt.StopPodSandboxRequest{PodSandboxId: p.Id}); err != nil {
			errs = append(errs, fmt.Errorf("stop pod %.13s: %w", p.Id, plain(err)))
		}
		if _, err := r.runtime.RemovePodSandbox(ctx, &rt.RemovePodSandboxRequest{PodSandboxId: p.Id}); err != nil {
			errs = append(errs, fmt.Errorf("remove pod %.13s: %w", p.Id, plain(err)))
		}
	}
	r.endHelpers()
	if err := errors.Join(errs...); err != nil {
		return err // its logs and volumes may be in use
	}
	if err := os.RemoveAll(r.near.dir); err != nil {
		return fmt.Errorf("remove logs and volumes: %w", err)
	}
	_ = os.Remove(r.opts.data) // when no other pod's directory is in it
	r.show.step("pod", "%s/%s removed", r.pod.Metadata.Namespace, r.pod.Metadata.Name)
	return nil
}

// endHelpers lets the log be read to its end.
func (r *runner) endHelpers() {
	r.stop()
	r.helpers.Wait()
}

// plain takes gRPC's words off an error.
func plain(err error) error {
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	switch s.Code() {
	case codes.Canceled:
		return errInterrupted
	case codes.Unavailable, codes.DeadlineExceeded, codes.Unimplemented:
		return fmt.Errorf("%s (%s)", s.Message(), s.Code())
	default: // the message says it
		return errors.New(s.Message())
	}
}
