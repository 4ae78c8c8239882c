package image

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/image/content"
	"github.com/cri-runtime/cri-runtime/image/layer"
	"github.com/cri-runtime/cri-runtime/image/registry"
	"github.com/cri-runtime/cri-runtime/image/snapshot"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// parallelLayers bounds the layers in work per pull: enough to keep cores and network
// busy, few enough that small machines keep their memory.
const parallelLayers = 4

// pulls joins equal requests. A pull runs on its own context and ends when the last
// caller that waits for it leaves, or the store is closed.
type pulls struct {
	base context.Context //nolint:containedctx // ends all pulls at close
	stop context.CancelFunc
	done sync.WaitGroup

	mu     sync.Mutex
	closed bool
	byKey  map[string]*pull
	layers map[Digest]chan struct{} // being unpacked; closed when over, well or not
}

type pull struct {
	waiters int
	cancel  context.CancelFunc
	done    chan struct{}
	id      ID
	err     error
}

func (p *pulls) init(ctx context.Context) {
	p.base, p.stop = context.WithCancel(context.WithoutCancel(ctx))
	p.byKey, p.layers = map[string]*pull{}, map[Digest]chan struct{}{}
}

func (p *pulls) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.stop()
	p.done.Wait()
}

// join finds the running pull of a key or starts run.
func (p *pulls) join(ctx context.Context, key string, run func(context.Context) (ID, error)) (*pull, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, fmt.Errorf("image store is closed: %w", errdef.ErrRetry)
	}
	if f := p.byKey[key]; f != nil {
		f.waiters++
		return f, nil
	}
	// The first caller's logger and values, nobody's deadline.
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f := &pull{waiters: 1, cancel: cancel, done: make(chan struct{})}
	p.byKey[key] = f
	unlink := context.AfterFunc(p.base, cancel) //nolint:contextcheck // the store's life, beside the request's
	p.done.Go(func() {
		defer cancel()
		defer unlink()
		f.id, f.err = run(own)
		p.mu.Lock()
		if p.byKey[key] == f {
			delete(p.byKey, key)
		}
		p.mu.Unlock()
		close(f.done)
	})
	return f, nil
}

// wait waits for the result as long as the caller does.
func (p *pulls) wait(ctx context.Context, key string, f *pull) (ID, error) {
	select {
	case <-f.done:
		return f.id, f.err
	case <-ctx.Done():
	}
	p.mu.Lock()
	if f.waiters--; f.waiters == 0 {
		f.cancel()
		if p.byKey[key] == f {
			delete(p.byKey, key) // who comes now starts anew
		}
	}
	p.mu.Unlock()
	return "", fmt.Errorf("wait for pull: %w", context.Cause(ctx))
}

// Pull fetches an image and makes it known under the reference. Equal requests share one
// transfer, and a caller that leaves does not end it while another waits. What is here
// already is not transferred again, but the registry is asked: it may have moved the
// tag, or refuse these credentials.
func (s *Store) Pull(ctx context.Context, req PullRequest) (ID, error) {
	r, err := parseRef(req.Ref)
	if err != nil {
		return "", err
	}
	cred, err := req.Auth.credentials()
	if err != nil {
		return "", fmt.Errorf("pull image %s: %w", r, err)
	}
	key := fmt.Sprintf("%s %x", r, sha256.Sum256(fmt.Appendf(nil, "%q", []string{
		cred.Username, cred.Password, cred.ServerAddress, cred.IdentityToken, cred.RegistryToken})))
	f, err := s.pulls.join(ctx, key, func(ctx context.Context) (ID, error) { return s.pull(ctx, r, cred) })
	if err != nil {
		return "", err
	}
	id, err := s.pulls.wait(ctx, key, f)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		err = fmt.Errorf("%w: %w", err, errdef.ErrExhausted)
	}
	if err != nil {
		return "", fmt.Errorf("pull image %s: %w", r, err)
	}
	return id, nil
}

func (a Auth) credentials() (registry.Credentials, error) {
	c := registry.Credentials{Username: a.Username, Password: a.Password, ServerAddress: a.ServerAddress,
		IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
	if a.Auth != "" && a.Username == "" && a.Password == "" {
		data, err := base64.StdEncoding.DecodeString(strings.TrimRight(a.Auth, "\x00"))
		user, pass, ok := strings.Cut(string(data), ":")
		if err != nil || !ok {
			return c, fmt.Errorf("auth: want base64 of username:password: %w", errdef.ErrInvalid)
		}
		c.Username, c.Password = user, strings.TrimRight(pass, "\x00")
	}
	return c, nil
}

// pull does the work of one shared pull.
func (s *Store) pull(ctx context.Context, r reference, cred registry.Credentials) (ID, error) {
	start := time.Now()
	sess, err := s.client.Open(registry.Repository{Host: r.host, Path: r.path}, cred)
	if err != nil {
		return "", err
	}
	defer sess.Close()
	if s.has(r) {
		// A registry that cannot answer this gets the full question.
		if d, err := sess.Digest(ctx, r.version()); err == nil {
			if id, ok := s.known(r, d); ok {
				return id, nil
			}
		}
	}
	m, top, err := s.manifest(ctx, sess, r)
	if err != nil {
		return "", err
	}
	id := ID(m.Config.Digest)
	if ok, err := s.addNames(id, r, top); ok || err != nil {
		return id, err
	}
	raw, err := s.config(ctx, sess, *m.Config)
	if err != nil {
		return "", err
	}
	e, err := newEntry(record{Version: recordVersion, ID: id, Raw: raw}, nil)
	if err != nil {
		return "", err
	}
	if got, want := len(m.Layers), len(e.image.DiffIDs); got != want {
		return "", fmt.Errorf("manifest has %d layers, config has %d: %w", got, want, errdef.ErrInvalid)
	}
	if e.layers, err = s.fetchLayers(ctx, sess, m.Layers, e.image.DiffIDs); err != nil {
		return "", err
	}
	if err := s.snaps.Commit(ctx, e.layers); err != nil {
		return "", errors.Join(err, s.snaps.Drop(e.layers))
	}
	for _, l := range e.layers {
		e.rec.Layers = append(e.rec.Layers, l.Name)
	}
	if err := s.insert(e, r, top); err != nil {
		return "", err
	}
	klog.FromContext(ctx).V(2).Info("Image pulled", "image", r.String(), "id", id, "layers", len(e.layers), "took", time.Since(start))
	return id, nil
}

// manifest fetches the manifest for this machine, and gives the digest of what the
// reference itself names: the index where there is one.
func (s *Store) manifest(ctx context.Context, sess *registry.Session, r reference) (*manifest, Digest, error) {
	doc, err := sess.Manifest(ctx, r.version())
	if err != nil {
		return nil, "", err
	}
	top := r.digest
	if top == "" {
		top = Digest(fmt.Sprintf("sha256:%x", sha256.Sum256(doc.Body)))
	}
	want := top
	for range maxIndex + 1 {
		if err := content.Check(doc.Body, want); err != nil {
			return nil, "", fmt.Errorf("manifest %s: %w", want, err)
		}
		m, err := parseManifest(doc)
		if err != nil {
			return nil, "", err
		}
		if !m.isIndex() {
			return m, top, nil
		}
		d, err := choose(m.Manifests)
		if err != nil {
			return nil, "", err
		}
		want = d.Digest
		if doc, err = sess.Manifest(ctx, string(want)); err != nil {
			return nil, "", err
		}
		if d.Size != int64(len(doc.Body)) {
			return nil, "", fmt.Errorf("manifest %s has %d bytes, the index says %d: %w", want, len(doc.Body), d.Size, errdef.ErrInvalid)
		}
	}
	return nil, "", fmt.Errorf("index within index, more than %d deep: %w", maxIndex, errdef.ErrInvalid)
}

func (s *Store) config(ctx context.Context, sess *registry.Session, d descriptor) (raw []byte, err error) {
	err = s.transfer(ctx, sess, d, nil, func(v *content.Verifier) (err error) {
		raw, err = io.ReadAll(v) // check bounded the size
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("get image config: %w", err)
	}
	return raw, nil
}

// fetchLayers gets all layers, several at once, each held once.
func (s *Store) fetchLayers(ctx context.Context, sess *registry.Session, ds []descriptor, diffs []Digest) ([]*snapshot.Layer, error) {
	layers := make([]*snapshot.Layer, len(ds))
	chains := chainIDs(diffs)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelLayers)
	for i, d := range ds {
		g.Go(func() (err error) {
			layers[i], err = s.layer(gctx, sess, d, diffs[i], chains[i])
			return err
		})
	}
	err := g.Wait()
	if err == nil {
		return layers, nil
	}
	for _, l := range layers {
		if l != nil {
			err = errors.Join(err, s.snaps.Drop([]*snapshot.Layer{l}))
		}
	}
	return nil, err
}

// layer finds a layer or unpacks it. Two pulls that need the same layer transfer it
// once; if the first fails, the second does it itself.
func (s *Store) layer(ctx context.Context, sess *registry.Session, d descriptor, diff, chain Digest) (*snapshot.Layer, error) {
	for {
		if l, ok := s.snaps.Hold(diff, chain); ok {
			return l, nil
		}
		s.pulls.mu.Lock()
		busy := s.pulls.layers[diff]
		if busy == nil {
			busy = make(chan struct{})
			s.pulls.layers[diff] = busy
			s.pulls.mu.Unlock()
			defer func() {
				s.pulls.mu.Lock()
				delete(s.pulls.layers, diff)
				s.pulls.mu.Unlock()
				close(busy)
			}()
			return s.unpack(ctx, sess, d, [2]Digest{diff, chain})
		}
		s.pulls.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for layer %s: %w", d.Digest, context.Cause(ctx))
		}
	}
}

// unpack is the pipeline of one layer: fetch, hash, decompress, hash, apply. ids are its
// diff ID and the chain ID of the stack that it tops.
func (s *Store) unpack(ctx context.Context, sess *registry.Session, d descriptor, ids [2]Digest) (l *snapshot.Layer, err error) {
	err = s.transfer(ctx, sess, d, nil, func(packed *content.Verifier) (err error) {
		tar, err := layer.Decompress(packed)
		if err != nil {
			return err
		}
		defer tar.Close()
		plain, err := content.Verify(tar, ids[0], -1)
		if err != nil {
			return err
		}
		l, err = s.snaps.Unpack(ctx, ids[0], ids[1], &bothEnds{plain, packed})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", d.Digest, err)
	}
	return l, nil
}

// bothEnds ends only when the compressed stream, too, is what it should be.
type bothEnds struct{ plain, packed *content.Verifier }

func (b *bothEnds) Read(p []byte) (int, error) {
	n, err := b.plain.Read(p)
	if errors.Is(err, io.EOF) {
		if e := b.packed.Drain(); e != nil {
			return n, e
		}
	}
	return n, err
}
