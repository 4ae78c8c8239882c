package sandbox

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/cri-runtime/cri-runtime/internal/linux/namespace"
	"github.com/cri-runtime/cri-runtime/oci/monitor"
	"github.com/cri-runtime/cri-runtime/sandbox/journal"
)

// Service runs the pods of a node. All methods may be called concurrently.
type Service struct {
	Config
	paths            paths
	pods             *index[*pod]
	containers       *index[*container]
	podJournal       *journal.Journal
	containerJournal *journal.Journal
	flights          flights
	events           broadcaster
	recent           recent
	targets          execTargets
	fresh            namespace.Pool // for pods that are about to come
	sweeping         sync.WaitGroup
	sweepDone        chan struct{} // closed when the leftovers of an earlier life are gone
	stopSweep        context.CancelFunc
	ends             sync.WaitGroup
	endsMu           sync.Mutex // guards endsClosed: nothing is added while Close waits
	endsClosed       bool
	writablePath     string // a directory on the writable layers' file system
	base             string // the lowest layer of each container's root, "" for none
}

// Open reads the records, compares them with the kernel and puts both right. It
// returns when lists are complete; what takes longer goes on behind.
func Open(ctx context.Context, c Config, writablePath string) (*Service, error) {
	s := &Service{
		Config: c, paths: paths{c.State}, pods: newIndex[*pod]("pod", nil),
		containers:   newIndex("container", func(c *container) ID { return c.record().Pod }),
		writablePath: writablePath, sweepDone: make(chan struct{}),
	}
	s.flights.ended = s.traced
	for _, dir := range []string{c.State, s.paths.podsDir(), s.paths.bundlesDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open sandboxes: %w", err)
		}
	}
	// Everybody on the host may read the ids of pods in the mount table, and everybody may
	// write to a /dev/shm whose directory can be reached (CVE-2021-41103).
	if err := os.Chmod(c.State, 0o700); err != nil {
		return nil, fmt.Errorf("open sandboxes: %w", err)
	}
	if err := s.makeBase(); err != nil {
		return nil, fmt.Errorf("open sandboxes: %w", err)
	}
	var err error
	if s.podJournal, err = journal.Open(s.paths.podJournal(), podRecordVersion); err != nil {
		return nil, err
	}
	if s.containerJournal, err = journal.Open(s.paths.containerJournal(), containerRecordVersion); err != nil {
		return nil, err
	}
	if _, err := s.runtime(""); err != nil {
		return nil, fmt.Errorf("default runtime: %w", err)
	}
	if err := s.recover(ctx); err != nil {
		return nil, fmt.Errorf("recover: %w", err)
	}
	return s, nil
}

// Exited is told by the monitor's client of each process that has ended. It returns at
// once; the work goes on behind and Close waits for it. What comes after Close is left
// to the next start of the daemon, which asks the monitor.
func (s *Service) Exited(ctx context.Context, id string, e monitor.Exit) {
	s.endsMu.Lock()
	defer s.endsMu.Unlock()
	if s.endsClosed {
		return
	}
	s.ends.Go(func() { s.exited(context.WithoutCancel(ctx), id, e) })
}

// closeLimit is how long operations under way may take to give up.
const closeLimit = 10 * time.Second

// Close cancels operations under way and waits for them. Pods go on running.
func (s *Service) Close() error {
	s.stopSweep()
	s.sweeping.Wait()
	err := s.flights.close(closeLimit)
	s.fresh.Close()
	s.endsMu.Lock()
	s.endsClosed = true
	s.endsMu.Unlock()
	s.ends.Wait()
	s.events.close()
	for _, c := range s.containers.all() {
		c.usage.close()
		if f := c.rootfs.Swap(nil); f != nil {
			f.Close()
		}
	}
	for _, p := range s.pods.all() {
		p.usage.close()
	}
	return err
}
