package image

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/cri-runtime/cri-runtime/image/content"
	"github.com/cri-runtime/cri-runtime/image/layer"
	"github.com/cri-runtime/cri-runtime/image/policy"
	"github.com/cri-runtime/cri-runtime/image/registry"
	"github.com/cri-runtime/cri-runtime/image/snapshot"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// parallelLayers bounds the layers in work per pull: one more than there are processors,
// so that none of them waits for a host, and not more than four, since each takes 2 MiB
// between its stages and up to 128 MiB, most often 8, for the window of zstd.
var parallelLayers = min(4, runtime.NumCPU()+1)

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
	f, err := s.pulls.join(ctx, key, func(ctx context.Context) (id ID, err error) {
		t := s.progress.begin(r.String())
		defer func() { t.end(id, err) }()
		return s.pull(ctx, r, cred, t)
	})
	if err != nil {
		return "", err
	}
	id, err := s.pulls.wait(ctx, key, f)
	if (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) && !errors.Is(err, errdef.ErrExhausted) {
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
func (s *Store) pull(ctx context.Context, r reference, cred registry.Credentials, t *pullProgress) (ID, error) {
	sess, err := s.client.Open(registry.Repository{Host: r.host, Path: r.path}, cred)
	if err != nil {
		return "", err
	}
	defer sess.Close()
	sess.Observe(t.observer())
	if s.has(r) {
		// A registry that cannot answer this gets the full question.
		if d, err := sess.Digest(ctx, r.version()); err == nil {
			// Not allowed: perhaps not the index is signed but the manifest in it.
			if id, ok := s.known(r, d); ok && s.allowed(ctx, sess, r, [2]Digest{d}) == nil {
				return id, nil
			}
		}
	}
	found, err := s.manifest(ctx, sess, r)
	if err != nil {
		return "", err
	}
	if err := s.allowed(ctx, sess, r, [2]Digest{found.top, found.own}); err != nil {
		return "", err
	}
	id := ID(found.Config.Digest)
	if s.hasID(id) {
		// IDs stand in the status of pods, and a manifest of anybody's may name one. Who
		// has a right to the image can show its configuration.
		if _, err := s.config(ctx, sess, *found.Config, t); err != nil {
			return "", err
		}
	}
	if ok, err := s.addNames(id, r, found.top); ok || err != nil {
		return id, err
	}
	e, err := s.fetch(ctx, sess, found.manifest, t)
	if err != nil {
		return "", err
	}
	if err := s.insert(e, r, found.top); err != nil {
		return "", err
	}
	return id, nil
}

// fetch gets an image's configuration and its layers, which are usable and held then.
func (s *Store) fetch(ctx context.Context, sess *registry.Session, m *manifest, t *pullProgress) (*entry, error) {
	start := time.Now()
	raw, err := s.config(ctx, sess, *m.Config, t)
	if err != nil {
		return nil, err
	}
	e, err := newEntry(record{Version: recordVersion, ID: ID(m.Config.Digest), Raw: raw}, nil)
	if err != nil {
		return nil, err
	}
	if got, want := len(m.Layers), len(e.image.DiffIDs); got != want {
		return nil, fmt.Errorf("manifest has %d layers, config has %d: %w", got, want, errdef.ErrInvalid)
	}
	if e.layers, err = s.fetchLayers(ctx, sess, e.image.DiffIDs, t.pulling(m.Layers)); err != nil {
		return nil, err
	}
	t.enter(PhasePublishing)
	if err := s.snaps.Publish(ctx, e.layers); err != nil {
		return nil, errors.Join(err, s.snaps.Drop(e.layers))
	}
	for _, l := range e.layers {
		e.rec.Layers = append(e.rec.Layers, l.Name)
	}
	klog.FromContext(ctx).V(2).Info("Image pulled", "image", t.ref, "id", e.rec.ID, "layers", len(e.layers), "took", time.Since(start))
	return e, nil
}

// allowed asks the signature policy about what a reference stands for: the digest that
// it names, and that of this machine's manifest where another is known.
func (s *Store) allowed(ctx context.Context, sess *registry.Session, r reference, digests [2]Digest) error {
	c := policy.Candidate{Host: r.host, Repository: r.path, Tag: r.tag, Digest: digests[0]}
	if digests[1] != digests[0] {
		c.Instance = digests[1]
	}
	return s.opt.Policy.Check(ctx, c, signatures{s, sess})
}

// signatures fetches what a policy has to see, through the session of the pull.
type signatures struct {
	s    *Store
	sess *registry.Session
}

// Manifest implements policy.Fetcher.
func (f signatures) Manifest(ctx context.Context, ref string) ([]byte, error) {
	doc, err := f.sess.Manifest(ctx, ref)
	return doc.Body, err
}

// Blob implements policy.Fetcher.
func (f signatures) Blob(ctx context.Context, d Digest, size int64) (data []byte, err error) {
	if size < 0 || size > registry.MaxDocument {
		return nil, fmt.Errorf("blob %s of %d bytes is no signature: %w", d, size, errdef.ErrInvalid)
	}
	err = f.s.transfer(ctx, f.sess, descriptor{Digest: d, Size: size}, nil, func(v *content.Verifier) (err error) {
		data, err = io.ReadAll(v)
		return err
	})
	return data, err
}

// resolved is what a reference stands for.
type resolved struct {
	*manifest
	top Digest // of what the reference itself names: the index where there is one
	own Digest // of the manifest for this machine
}

// manifest fetches the manifest for this machine.
func (s *Store) manifest(ctx context.Context, sess *registry.Session, r reference) (resolved, error) {
	doc, err := sess.Manifest(ctx, r.version())
	if err != nil {
		return resolved{}, err
	}
	top := r.digest
	if top == "" {
		top = Digest(fmt.Sprintf("sha256:%x", sha256.Sum256(doc.Body)))
	}
	want := top
	for range maxIndex + 1 {
		if err := content.Check(doc.Body, want); err != nil {
			return resolved{}, fmt.Errorf("manifest %s: %w", want, err)
		}
		m, err := parseManifest(doc)
		if err != nil {
			return resolved{}, err
		}
		if !m.isIndex() {
			return resolved{m, top, want}, nil
		}
		d, err := choose(m.Manifests)
		if err != nil {
			return resolved{}, err
		}
		want = d.Digest
		if doc, err = sess.Manifest(ctx, string(want)); err != nil {
			return resolved{}, err
		}
		if d.Size != int64(len(doc.Body)) {
			return resolved{}, fmt.Errorf("manifest %s has %d bytes, the index says %d: %w", want, len(doc.Body), d.Size, errdef.ErrInvalid)
		}
	}
	return resolved{}, fmt.Errorf("index within index, more than %d deep: %w", maxIndex, errdef.ErrInvalid)
}

func (s *Store) config(ctx context.Context, sess *registry.Session, d descriptor, t *pullProgress) (raw []byte, err error) {
	err = s.transfer(ctx, sess, d, t.observer(), func(v *content.Verifier) (err error) {
		raw, err = io.ReadAll(v) // check bounded the size
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("get image config: %w", err)
	}
	return raw, nil
}

// fetchLayers gets all layers, several at once, each held once.
func (s *Store) fetchLayers(ctx context.Context, sess *registry.Session, diffs []Digest, from []*layerProgress) ([]*snapshot.Layer, error) {
	layers := make([]*snapshot.Layer, len(diffs))
	chains := chainIDs(diffs)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelLayers)
	for i, diff := range diffs {
		g.Go(func() (err error) {
			layers[i], err = s.layer(gctx, sess, from[i], [2]Digest{diff, chains[i]})
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

// layer finds a layer or unpacks it; ids are its diff ID and the chain ID of the stack
// that it tops. Two pulls that need the same layer transfer it once; if the first fails,
// the second does it itself.
func (s *Store) layer(ctx context.Context, sess *registry.Session, from *layerProgress, ids [2]Digest) (*snapshot.Layer, error) {
	for {
		if l, ok := s.snaps.Hold(ids[0], ids[1]); ok {
			from.shared()
			return l, nil
		}
		s.pulls.mu.Lock()
		busy := s.pulls.layers[ids[0]]
		if busy == nil {
			busy = make(chan struct{})
			s.pulls.layers[ids[0]] = busy
			s.pulls.mu.Unlock()
			defer func() {
				s.pulls.mu.Lock()
				delete(s.pulls.layers, ids[0])
				s.pulls.mu.Unlock()
				close(busy)
			}()
			l, err := s.unpack(ctx, sess, from, ids)
			from.end(err)
			return l, err
		}
		s.pulls.mu.Unlock()
		from.Waiting("another pull transfers it", time.Time{})
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for layer %s: %w", from.digest, context.Cause(ctx))
		}
	}
}

// unpack is the pipeline of one layer. Its stages run at the same time: fetch and hash
// the blob; decompress; hash the tar and apply it.
func (s *Store) unpack(ctx context.Context, sess *registry.Session, from *layerProgress, ids [2]Digest) (l *snapshot.Layer, err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	blob := descriptor{Digest: from.digest, Size: from.size}
	err = s.transfer(ctx, sess, blob, from, func(packed *content.Verifier) (err error) {
		fetched := readAhead(packed)
		defer fetched.Close()
		tar, err := layer.Decompress(fetched)
		if err != nil {
			return err
		}
		defer tar.Close()
		unpacked := readAhead(tar)
		defer unpacked.Close()
		defer func() {
			// The digest tells whose fault damage is, for which the rest has to be read. All
			// else ends the transfer: what is left of it would only be waited for.
			if err != nil && !errors.Is(err, errdef.ErrInvalid) {
				stop()
			}
		}()
		plain, err := content.Verify(from.unpacking(unpacked), ids[0], -1)
		if err != nil {
			return err
		}
		l, err = s.snaps.Unpack(ctx, ids[0], ids[1], &bothEnds{plain, fetched})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", from.digest, err)
	}
	return l, nil
}

// bothEnds ends only when the compressed stream, too, is what it should be.
type bothEnds struct {
	plain  *content.Verifier
	packed io.Reader
}

// Read implements io.Reader.
func (b *bothEnds) Read(p []byte) (int, error) {
	n, err := b.plain.Read(p)
	if errors.Is(err, io.EOF) {
		if _, e := io.Copy(io.Discard, b.packed); e != nil {
			return n, e
		}
	}
	return n, err
}
