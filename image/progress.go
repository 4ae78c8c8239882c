package image

import (
	"cmp"
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image/registry"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

const (
	endedKept   = 10               // pulls that are over and still shown
	endedKeptOf = 15 * time.Minute // how long
	hostsKept   = 64               // hosts that are counted apart: references come from users, who must not fill the memory
	otherHosts  = "other"
)

// PullPhase is what a pull does at the moment.
type PullPhase string

// The phases of a pull. The last two are its end.
const (
	PhaseResolving  PullPhase = "resolving"  // manifest and configuration are asked for
	PhasePulling    PullPhase = "pulling"    // layers are transferred and unpacked
	PhasePublishing PullPhase = "publishing" // the layers are made usable and recorded
	PhaseDone       PullPhase = "done"
	PhaseFailed     PullPhase = "failed"
)

// LayerState is what happens to a layer at the moment.
type LayerState string

// The states of a layer. The last three are its end.
const (
	LayerWaiting     LayerState = "waiting"     // its turn has not come, or another pull transfers it
	LayerDownloading LayerState = "downloading" // and unpacked at the same time
	LayerUnpacking   LayerState = "unpacking"   // all bytes have come
	LayerDone        LayerState = "done"
	LayerShared      LayerState = "shared" // it was here already
	LayerFailed      LayerState = "failed"
)

// PullStatus is a pull at one moment, as JSON shows it. Bytes are those of the layers as
// they are transferred, if the name says nothing else.
type PullStatus struct {
	Number   uint64        `json:"number"` // of the pull in this daemon's life
	Ref      string        `json:"ref"`
	Phase    PullPhase     `json:"phase"`
	Phases   []PhaseSince  `json:"phases"` // so far, the present one last
	Started  time.Time     `json:"started"`
	Ended    *time.Time    `json:"ended,omitempty"`
	Seconds  float64       `json:"seconds"` // from the start to now, or to the end
	Total    int64         `json:"totalBytes"`
	Done     int64         `json:"doneBytes"`
	Resumed  int64         `json:"resumedBytes,omitempty"` // of Done: what an earlier transfer had left
	Shared   int64         `json:"sharedBytes,omitempty"`  // of Done: layers that were here already
	Unpacked int64         `json:"unpackedBytes"`
	Rate     int64         `json:"bytesPerSecond"` // from the network, over the last 3 s
	Host     string        `json:"host,omitempty"` // asked for the manifest last
	Waiting  *WaitStatus   `json:"waiting,omitempty"`
	Layers   []LayerStatus `json:"layers"`
	Image    ID            `json:"image,omitempty"` // the result
	Error    string        `json:"error,omitempty"`
}

// PhaseSince is a phase of a pull and when it began.
type PhaseSince struct {
	Phase PullPhase `json:"phase"`
	Since time.Time `json:"since"`
}

// LayerStatus is a layer of a pull at one moment.
type LayerStatus struct {
	Digest   Digest      `json:"digest"`
	State    LayerState  `json:"state"`
	Total    int64       `json:"totalBytes"`
	Done     int64       `json:"doneBytes"`
	Resumed  int64       `json:"resumedBytes,omitempty"`
	Unpacked int64       `json:"unpackedBytes"`
	Rate     int64       `json:"bytesPerSecond"`
	Host     string      `json:"host,omitempty"`
	Waiting  *WaitStatus `json:"waiting,omitempty"`
}

// WaitStatus says why nothing comes, and when it is tried again, if that is known.
type WaitStatus struct {
	Reason string     `json:"reason"`
	Until  *time.Time `json:"until,omitempty"`
}

// PullCounts are sums over the life of the daemon.
type PullCounts struct {
	Results map[string]uint64 // pulls that ended, by how
	Hosts   map[string]uint64 // bytes of layers and documents from the network, by host
	Resumed uint64            // bytes that an earlier transfer had left
}

// progress knows the pulls in flight and the last ones that ended. The pipeline feeds
// atomic counters; all else is computed when somebody asks, so that a pull that nobody
// watches costs a few additions per read.
type progress struct {
	now     func() time.Time
	resumed atomic.Uint64

	mu      sync.Mutex
	number  uint64
	running map[*pullProgress]struct{}
	ended   []PullStatus // oldest first
	results map[string]uint64
	hosts   map[string]*hostBytes
}

type hostBytes struct {
	name string // of the host, also where it is counted under another
	sum  *atomic.Uint64
}

func newProgress() *progress {
	return &progress{now: time.Now, running: map[*pullProgress]struct{}{}, results: map[string]uint64{}, hosts: map[string]*hostBytes{}}
}

// begin notes a new pull. Who begins it ends it.
func (p *progress) begin(ref string) *pullProgress {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.number++
	t := &pullProgress{all: p, number: p.number, ref: ref, started: p.now()}
	t.source.all = p
	t.phases.Store(&[]PhaseSince{{PhaseResolving, t.started}})
	p.running[t] = struct{}{}
	return t
}

// host finds the counter of a host.
func (p *progress) host(name string) *hostBytes {
	p.mu.Lock()
	defer p.mu.Unlock()
	if h := p.hosts[name]; h != nil {
		return h
	}
	key := name
	if len(p.hosts) >= hostsKept {
		key = otherHosts
	}
	h := p.hosts[key]
	if h == nil {
		h = &hostBytes{name: name, sum: new(atomic.Uint64)}
		p.hosts[key] = h
	}
	return &hostBytes{name: name, sum: h.sum}
}

// forget drops what ended long ago. The lock is held.
func (p *progress) forget() {
	now := p.now()
	p.ended = slices.DeleteFunc(p.ended, func(s PullStatus) bool { return now.Sub(*s.Ended) > endedKeptOf })
	p.ended = slices.Delete(p.ended, 0, max(0, len(p.ended)-endedKept))
}

func (p *progress) list() []PullStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forget()
	list := slices.Clone(p.ended)
	for t := range p.running {
		list = append(list, t.status())
	}
	slices.SortFunc(list, func(a, b PullStatus) int { return cmp.Compare(a.Number, b.Number) })
	return list
}

func (p *progress) find(ref string) (PullStatus, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var found *pullProgress
	for t := range p.running {
		if t.ref == ref && (found == nil || found.number < t.number) {
			found = t
		}
	}
	if found == nil {
		return PullStatus{}, false
	}
	return found.status(), true
}

// LastPull shows the pull of a reference that is in flight, or the last one that ended
// within a quarter of an hour, if it is not forgotten.
func (s *Store) LastPull(ref string) (PullStatus, bool) {
	if p, ok := s.Pulling(ref); ok {
		return p, true
	}
	r, err := parseRef(ref)
	if err != nil {
		return PullStatus{}, false
	}
	for _, p := range slices.Backward(s.Pulls()) {
		if p.Ref == r.String() && p.Ended != nil {
			return p, true
		}
	}
	return PullStatus{}, false
}

// Pulls shows the pulls in flight and the last few that ended within a quarter of an
// hour, oldest first. It waits for none of them.
func (s *Store) Pulls() []PullStatus { return s.progress.list() }

// Pulling shows the pull of a reference that is in flight, the latest if there are several
// with different credentials.
func (s *Store) Pulling(ref string) (PullStatus, bool) {
	r, err := parseRef(ref)
	if err != nil {
		return PullStatus{}, false
	}
	return s.progress.find(r.String())
}

// PullCounts gives sums over the life of the daemon.
func (s *Store) PullCounts() PullCounts {
	p := s.progress
	p.mu.Lock()
	defer p.mu.Unlock()
	c := PullCounts{Results: maps.Clone(p.results), Hosts: map[string]uint64{}, Resumed: p.resumed.Load()}
	for name, h := range p.hosts {
		c.Hosts[name] = h.sum.Load()
	}
	return c
}

// pullProgress is one pull. Its methods may be called by several goroutines.
type pullProgress struct {
	all     *progress
	number  uint64
	ref     string
	started time.Time
	phases  atomic.Pointer[[]PhaseSince] // never changed, replaced
	layers  atomic.Pointer[[]*layerProgress]
	source  source // of manifest and configuration
}

// enter begins a phase. One goroutine at a time does so.
func (t *pullProgress) enter(p PullPhase) {
	t.phases.Store(new(append(slices.Clip(*t.phases.Load()), PhaseSince{p, t.all.now()})))
}

// pulling names the layers, bottom first, and gives the counters of each.
func (t *pullProgress) pulling(ds []descriptor) []*layerProgress {
	layers := make([]*layerProgress, len(ds))
	for i, d := range ds {
		layers[i] = &layerProgress{digest: d.Digest, size: d.Size, began: t.started}
		layers[i].all = t.all
		layers[i].state.Store(new(LayerWaiting))
	}
	t.layers.Store(&layers)
	t.enter(PhasePulling)
	return layers
}

// observer is told of the transfer of manifest and configuration.
func (t *pullProgress) observer() *source { return &t.source }

// end takes the pull from those in flight. A result that is no error has an image.
func (t *pullProgress) end(id ID, err error) {
	p := t.all
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.running[t]; !ok {
		return
	}
	delete(p.running, t)
	p.results[result(err)]++
	s := t.status()
	now := p.now()
	s.Ended, s.Image, s.Phase, s.Rate, s.Waiting = &now, id, PhaseDone, 0, nil
	if err != nil {
		s.Image, s.Phase, s.Error = "", PhaseFailed, err.Error()
	}
	s.Phases = append(slices.Clip(s.Phases), PhaseSince{s.Phase, now})
	for i := range s.Layers {
		s.Layers[i].Rate, s.Layers[i].Waiting = 0, nil
	}
	p.ended = append(p.ended, s)
	p.forget()
}

// result sorts the ends of pulls into a few kinds, for counters.
func result(err error) string {
	if err == nil {
		return "ok"
	}
	if p, ok := errors.AsType[*errdef.Prefixed](err); ok {
		switch p.Prefix {
		case errdef.RegistryUnavailable:
			return "unavailable"
		case errdef.SignatureValidationFailed:
			return "signature"
		default: // of containers
		}
	}
	for _, k := range []struct {
		is   error
		name string
	}{
		{context.Canceled, "canceled"}, {context.DeadlineExceeded, "canceled"}, {errdef.ErrDenied, "denied"}, {errdef.ErrNotFound, "not_found"},
		{errdef.ErrExhausted, "exhausted"}, {unix.ENOSPC, "exhausted"}, {unix.EDQUOT, "exhausted"}, {errdef.ErrInvalid, "invalid"}, {errdef.ErrRetry, "unavailable"},
	} {
		if errors.Is(err, k.is) {
			return k.name
		}
	}
	return "other"
}

func (t *pullProgress) status() PullStatus {
	now := t.all.now()
	phases := *t.phases.Load()
	s := PullStatus{
		Number: t.number, Ref: t.ref, Phase: phases[len(phases)-1].Phase, Phases: phases, Started: t.started, Seconds: now.Sub(t.started).Seconds(),
		Host: t.source.name(), Waiting: t.source.waiting(), Layers: []LayerStatus{},
	}
	layers := t.layers.Load()
	if layers == nil {
		return s
	}
	for _, l := range *layers {
		x := l.status(now)
		s.Layers = append(s.Layers, x)
		s.Total += x.Total
		s.Done += x.Done
		s.Resumed += x.Resumed
		s.Unpacked += x.Unpacked
		s.Rate += x.Rate
		if x.State == LayerShared {
			s.Shared += x.Total
		}
	}
	return s
}

// source is where bytes come from. It observes transfers: its methods are those of
// registry.Observer.
type source struct {
	all  *progress
	host atomic.Pointer[hostBytes]
	wait atomic.Pointer[WaitStatus]
}

// Host notes who answered; a wait is over.
func (s *source) Host(host string) {
	if s.wait.Load() != nil {
		s.wait.Store(nil)
	}
	if h := s.host.Load(); h == nil || h.name != host {
		s.host.Store(s.all.host(host))
	}
}

// Bytes notes what came.
func (s *source) Bytes(n int64, resumed bool) {
	if s.wait.Load() != nil {
		s.wait.Store(nil)
	}
	if resumed {
		s.all.resumed.Add(uint64(n)) // #nosec G115 -- a count
	} else if h := s.host.Load(); h != nil {
		h.sum.Add(uint64(n)) // #nosec G115 -- a count
	}
}

// Waiting notes why nothing comes; no reason means that it goes on. A zero time says
// that nobody knows until when.
func (s *source) Waiting(reason string, until time.Time) {
	if reason == "" {
		s.wait.Store(nil)
		return
	}
	w := &WaitStatus{Reason: reason}
	if !until.IsZero() {
		w.Until = &until
	}
	s.wait.Store(w)
}

// Restarted has nothing to take back: what came was transferred.
func (s *source) Restarted() {}

func (s *source) name() string {
	if h := s.host.Load(); h != nil {
		return h.name
	}
	return ""
}

func (s *source) waiting() *WaitStatus { return s.wait.Load() }

// layerProgress is one layer of one pull. Its transfer is told of by one goroutine at a
// time; anybody may read.
type layerProgress struct {
	source
	digest Digest
	size   int64
	began  time.Time

	state                   atomic.Pointer[LayerState]
	done, resumed, unpacked atomic.Int64
	rate                    meter
}

var _ registry.Observer = (*layerProgress)(nil)

// started notes that the layer's turn has come.
func (l *layerProgress) started() {
	if *l.state.Load() == LayerWaiting {
		l.state.Store(new(LayerDownloading))
	}
}

// Host notes who answered.
func (l *layerProgress) Host(host string) {
	l.started()
	l.source.Host(host)
}

// Restarted begins to count anew: what came was damaged.
func (l *layerProgress) Restarted() {
	l.done.Store(0)
	l.resumed.Store(0)
	l.unpacked.Store(0)
}

// Bytes counts what came of the blob, as it is transferred.
func (l *layerProgress) Bytes(n int64, resumed bool) {
	l.started()
	l.source.Bytes(n, resumed)
	l.done.Add(n)
	if resumed {
		l.resumed.Add(n)
	} else {
		l.rate.add(l.all.now().Sub(l.began), n)
	}
}

// end notes how it ended; no error means that the layer is here.
func (l *layerProgress) end(err error) {
	state := LayerDone
	if err != nil {
		state = LayerFailed
	}
	l.state.Store(&state)
	l.Waiting("", time.Time{})
}

// shared notes that the layer was here before.
func (l *layerProgress) shared() {
	l.state.Store(new(LayerShared))
	l.Waiting("", time.Time{})
}

// unpacking counts what is read from r, the layer's tar.
func (l *layerProgress) unpacking(r io.Reader) io.Reader { return &countedReader{r, &l.unpacked} }

func (l *layerProgress) status(now time.Time) LayerStatus {
	s := LayerStatus{
		Digest: l.digest, State: *l.state.Load(), Total: l.size, Done: min(l.done.Load(), l.size), Resumed: min(l.resumed.Load(), l.size),
		Unpacked: l.unpacked.Load(), Rate: l.rate.perSecond(now.Sub(l.began)), Host: l.name(), Waiting: l.waiting(),
	}
	switch s.State {
	case LayerDownloading:
		if s.Done == s.Total {
			s.State = LayerUnpacking
		}
	case LayerDone, LayerShared:
		s.Done, s.Rate = s.Total, 0
	default:
		s.Rate = 0
	}
	return s
}

type countedReader struct {
	r io.Reader
	n *atomic.Int64
}

func (c *countedReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// meter is an average over the last seconds: a ring of short spans with the bytes of
// each, so that neither writer nor reader needs a lock, and silence counts without a
// timer. One goroutine adds at a time. A reader between two steps of the writer is off
// by one addition.
type meter struct {
	slots [meterSlots]struct{ span, bytes atomic.Int64 }
}

const (
	meterSpan  = 500 * time.Millisecond
	meterSpans = 6 // of the average: 3 s
	meterSlots = meterSpans + 2
)

func (m *meter) add(at time.Duration, n int64) {
	span := int64(at/meterSpan) + 1 // 0 is a slot never used
	s := &m.slots[span%meterSlots]
	if s.span.Load() != span {
		s.bytes.Store(0)
		s.span.Store(span)
	}
	s.bytes.Add(n)
}

// perSecond is the average of the present span and the full ones before it.
func (m *meter) perSecond(at time.Duration) int64 {
	span := int64(at/meterSpan) + 1
	oldest, sum := span, int64(0)
	for i := range m.slots {
		s := &m.slots[i]
		if n := s.span.Load(); n > span-meterSpans-1 && n <= span {
			sum += s.bytes.Load()
			oldest = min(oldest, n)
		}
	}
	if sum == 0 {
		return 0
	}
	// From the beginning of the first span that counts; who began late is not slow.
	took := max(at-time.Duration(oldest-1)*meterSpan, meterSpan)
	return int64(float64(sum) / took.Seconds())
}
