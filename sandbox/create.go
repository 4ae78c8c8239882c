package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/cgroup"
	"github.com/cri-runtime/cri-runtime/internal/linux/mount"
	"github.com/cri-runtime/cri-runtime/internal/linux/namespace"
	"github.com/cri-runtime/cri-runtime/oci/spec"
)

// accountFileLimit bounds what is read of an image's passwd and group files.
const accountFileLimit = 1 << 20

// CreateContainer prepares a container in a ready pod: its snapshot, its runtime-spec
// and its record. Nothing of it runs yet. A call with the name and attempt of one under
// way joins it.
func (s *Service) CreateContainer(ctx context.Context, podID ID, c ContainerConfig) (ID, error) {
	p, err := s.pods.get(podID)
	if err != nil {
		return "", err
	}
	key := fmt.Sprintf("container %s (attempt %d) of pod %s", c.Metadata.Name, c.Metadata.Attempt, p.id)
	return s.flights.do(ctx, key, createLimit, func(ctx context.Context, st *stage) (ID, error) {
		if err := s.swept(ctx, st); err != nil {
			return "", err
		}
		for _, old := range s.containersOf(p.id) {
			r := old.record()
			if r.Config.Metadata != c.Metadata {
				continue
			}
			if r.Phase == PhaseCreated && reflect.DeepEqual(r.Config, c) {
				return r.ID, nil
			}
			return "", fmt.Errorf("%s exists already as %s, %v: %w", key, r.ID, r.Phase, errdef.ErrExists)
		}
		return s.makeContainer(ctx, st, p, c)
	})
}

func (s *Service) makeContainer(ctx context.Context, st *stage, p *pod, cfg ContainerConfig) (_ ID, err error) {
	pr := p.record()
	if pr.Phase != PodRunning {
		return "", fmt.Errorf("create container %s in pod %s, which is %v: %w", cfg.Metadata.Name, p.id, pr.Phase, errdef.ErrPhase)
	}
	st.traces(opCreate, pr)
	st.of("", cfg.Metadata) // it has no id before its image is found
	st.enter("find image")
	img, err := s.Images.Resolve(cfg.Image)
	if err != nil {
		return "", fmt.Errorf("create container %s: %w", cfg.Metadata.Name, err)
	}
	r := containerRecord{containerBase: &containerBase{
		ID: newID(), Pod: p.id, Config: cfg, CreatedAt: time.Now(), Handler: pr.Config.Handler,
		ImageID: string(img.ID), ImageRef: imageRef(img), ImageName: imageName(img, cfg), Resources: cfg.Resources,
	}, containerState: containerState{Phase: PhaseCreating}}
	r.Cgroup = string(cgroup.Path(pr.Parent).Join(string(r.ID)))
	if cfg.LogPath != "" && pr.Config.LogDirectory != "" {
		r.LogPath = filepath.Join(pr.Config.LogDirectory, cfg.LogPath)
	}
	r.Before = s.startsBefore(p.id, cfg.Metadata)
	st.of(r.ID, cfg.Metadata)
	c := newContainer(&r)
	c.gate <- struct{}{} // nobody else knows it yet
	defer c.gate.leave()
	// What follows has the container's id for a name, so that is all that a restarted
	// daemon needs to take it back.
	if err := s.containerJournal.Write(string(c.id), r.seed()); err != nil {
		return "", fmt.Errorf("container %s: %w", c.id, err)
	}
	s.containers.put(c.id, c)
	// A stop or removal that began after the look above may have listed the pod's
	// containers before this one was among them. One that begins from now on waits for
	// this gate.
	if ph := p.record().Phase; ph != PodRunning {
		err := fmt.Errorf("create container %s in pod %s, which is %v: %w", cfg.Metadata.Name, p.id, ph, errdef.ErrPhase)
		return "", errors.Join(err, s.undoCreate(ctx, c))
	}
	if err := s.prepare(ctx, st, c, p, img); err != nil {
		return "", errors.Join(fmt.Errorf("create container %s: %w", cfg.Metadata.Name, err), s.undoCreate(ctx, c))
	}
	s.event(c.id, p, EventCreated, r.CreatedAt)
	return c.id, nil
}

// undoCreate gives back what a creation has made, whatever has ended its context.
func (s *Service) undoCreate(ctx context.Context, c *container) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
	defer cancel()
	return s.discard(ctx, c)
}

// imageRef is the image's name by content: a repository digest, else its id.
func imageRef(img *image.Image) string {
	if len(img.RepoDigests) > 0 {
		return img.RepoDigests[0]
	}
	return string(img.ID)
}

// imageName is the image's name for people.
func imageName(img *image.Image, c ContainerConfig) string {
	switch {
	case c.UserSpecifiedImage != "":
		return c.UserSpecifiedImage
	case len(img.RepoTags) > 0:
		return img.RepoTags[0]
	}
	return c.Image
}

// prepare makes the snapshot and the runtime-spec, fills in the record and commits it.
func (s *Service) prepare(ctx context.Context, st *stage, c *container, p *pod, img *image.Image) error {
	pr, r := p.record(), *c.record()
	r.own()
	st.enter("prepare snapshot")
	_, err := s.Snapshots.Prepare(ctx, string(c.id), img.ID, image.PrepareOptions{UpperUID: pr.rootID(), UpperGID: pr.rootGID()})
	if err != nil {
		return fmt.Errorf("prepare snapshot: %w", err)
	}
	st.enter("mount root")
	root, err := s.mountRoot(c.id, pr)
	if err != nil {
		return err
	}
	c.rootfs.Store(root)
	st.enter("resolve user")
	who, err := resolveUser(root, &r, img)
	if err != nil {
		return err
	}
	r.User = LinuxUser{UID: int64(who.UID), GID: int64(who.GID)}
	for _, g := range who.Groups {
		r.User.Groups = append(r.User.Groups, int64(g))
	}
	st.enter("mount image volumes")
	if err := s.mountVolumes(ctx, c, &r, pr); err != nil {
		return errdef.WithPrefix(errdef.ImageVolumeMountFailed, err)
	}
	st.enter("build runtime-spec")
	rs, err := s.describe(ctx, &r, p, img, who)
	if err != nil {
		return err
	}
	if err := s.writeSpec(c.id, rs); err != nil {
		return err
	}
	c.spec, r.Args = rs, rs.Process.Args
	r.Ops = append(s.recent.pullOf(pr, &r), st.end(nil))
	return s.step(c, r, ctrPrepared)
}

// mountRoot makes the container's root as a detached mount: it is in no mount table.
func (s *Service) mountRoot(id ID, pr *podRecord) (*os.File, error) {
	rootfs, err := s.Snapshots.Snapshot(string(id))
	if err != nil {
		return nil, fmt.Errorf("find snapshot: %w", err)
	}
	o := mount.Overlay{Lower: s.withBase(rootfs.Lower, pr), Upper: rootfs.Upper, Work: rootfs.Work, Volatile: true} // it dies with the boot
	if pr.userns() != nil {
		ns, err := os.Open(pr.Namespaces[namespace.User])
		if err != nil {
			return nil, fmt.Errorf("open the pod's user namespace: %w", err)
		}
		defer ns.Close()
		o.IDMap = ns
	}
	root, err := o.Mount()
	if err != nil {
		return nil, fmt.Errorf("mount root: %w", err)
	}
	return root, nil
}

// account is whom the container's first process runs as.
type account struct {
	spec.User
	home string
}

// resolveUser finds the ids to run as in the image's own passwd and group files.
func resolveUser(root *os.File, r *containerRecord, img *image.Image) (account, error) {
	open := func(path string) (*os.File, error) {
		f, err := mount.OpenRegularInRoot(root, path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			return nil, nil
		}
		return f, err
	}
	passwd, err := open("etc/passwd")
	if err != nil {
		return account{}, fmt.Errorf("read the image's passwd: %w", err)
	}
	defer closeAll(passwd)
	group, err := open("etc/group")
	if err != nil {
		return account{}, fmt.Errorf("read the image's group: %w", err)
	}
	defer closeAll(group)
	sec := r.Config.Security
	u, home, err := spec.ResolveUser(spec.UserRequest{
		UID: sec.RunAsUser, Name: sec.RunAsUsername, GID: sec.RunAsGroup, ImageUser: img.Config.User,
		Supplemental: sec.SupplementalGroups, Strict: sec.StrictGroups,
	}, bounded(passwd), bounded(group))
	if err != nil {
		return account{}, fmt.Errorf("resolve user: %w", err)
	}
	return account{u, home}, nil
}

// StartContainer runs a created container. It returns when its program has been
// executed; a failure leaves the container exited with reason StartError. A call while
// a start is under way joins it, and one that comes after it, as the retry of a kubelet
// whose deadline passed does, finds the container running and succeeds.
func (s *Service) StartContainer(ctx context.Context, id ID) error {
	c, err := s.containers.get(id)
	if err != nil {
		return err
	}
	_, err = s.flights.do(ctx, startOf(c.id), startLimit, func(ctx context.Context, st *stage) (ID, error) {
		return c.id, s.startContainer(ctx, st, c)
	})
	return err
}

// startOf names a container's start among the flights.
func startOf(id ID) string { return "start of container " + string(id) }

func (s *Service) startContainer(ctx context.Context, st *stage, c *container) error {
	s.traceStart(st, c)
	st.enter("wait for the container")
	if err := c.gate.enter(ctx, "container "+string(c.id)); err != nil {
		return err
	}
	defer c.gate.leave()
	r := *c.record()
	p, err := s.pods.get(r.Pod)
	if err != nil {
		return err
	}
	if ph := p.record().Phase; ph != PodRunning {
		return fmt.Errorf("start container %s in pod %s, which is %v: %w", c.id, p.id, ph, errdef.ErrPhase)
	}
	if r.Phase == PhaseRunning {
		return nil
	}
	st.enter("read runtime-spec")
	if err := s.step(c, r, ctrStartAsked); err != nil {
		return err
	}
	if err := s.start(ctx, st, c, p); err != nil {
		return errors.Join(fmt.Errorf("start container %s: %w", c.id, err), s.startFailed(ctx, st, c, err))
	}
	s.event(c.id, p, EventStarted, c.record().StartedAt)
	return nil
}

// startSpec is the runtime-spec for a start, which may change it.
func (s *Service) startSpec(c *container) (rs *specs.Spec, err error) {
	if rs, c.spec = c.spec, nil; rs == nil { // made by an earlier daemon, or for a start that failed
		if rs, err = s.readSpec(c.id); err != nil {
			return nil, err
		}
	}
	return rs, c.record().Resources.apply(rs)
}
