package cni_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cri-runtime/cri-runtime/cni"
	"github.com/cri-runtime/cri-runtime/internal/linux/namespace"
)

// pinner is namespace.Pin, or a pool's.
type pinner func(dir string, s namespace.Spec) (map[namespace.Kind]string, error)

// BenchmarkPod is all that the network has to do with a pod, namespaces included: pods
// that come one after the other, with the time between in which a node does the rest.
func BenchmarkPod(b *testing.B) {
	needNode(b)
	n, err := cni.New(b.Context(), cni.Config{CacheDir: b.TempDir(), Default: &cni.DefaultNetwork{}})
	must(b, err)
	defer n.Close()
	var pool namespace.Pool
	defer pool.Close()
	for _, kind := range []struct {
		name string
		pin  pinner
	}{{"demand", namespace.Pin}, {"pool", pool.Pin}} {
		b.Run(kind.name, func(b *testing.B) {
			dir := b.TempDir()
			took := map[string][]time.Duration{}
			for i := range b.N {
				lifeOfPod(b, n, kind.pin, filepath.Join(dir, fmt.Sprint(i)), took)
			}
			for step, s := range took {
				slices.Sort(s)
				b.ReportMetric(s[len(s)/20].Seconds()*1e3, "p5-ms/"+step)
				b.ReportMetric(s[len(s)/2].Seconds()*1e3, "p50-ms/"+step)
			}
		})
	}
}

func lifeOfPod(b *testing.B, n *cni.Network, pin pinner, dir string, took map[string][]time.Duration) {
	at := time.Now()
	lap := func(step string) {
		took[step] = append(took[step], time.Since(at))
		at = time.Now()
	}
	const rest = 8 * time.Millisecond
	pins, err := pin(dir, namespace.Spec{Net: true, IPC: true, UTS: true, Hostname: "pod"})
	must(b, err)
	lap("pin")
	p := cni.Pod{ID: filepath.Base(dir), NetNS: pins[namespace.Net]}
	_, err = n.Attach(b.Context(), p)
	must(b, err)
	lap("attach")
	time.Sleep(rest)
	at = time.Now()
	must(b, n.Detach(b.Context(), p))
	lap("detach")
	must(b, namespace.Unpin(dir))
	lap("unpin")
	time.Sleep(rest)
}

// BenchmarkPodsParallel is the same by eight at a time, without a rest.
func BenchmarkPodsParallel(b *testing.B) {
	needNode(b)
	n, err := cni.New(b.Context(), cni.Config{CacheDir: b.TempDir(), Default: &cni.DefaultNetwork{}})
	must(b, err)
	defer n.Close()
	var pool namespace.Pool
	defer pool.Close()
	dir := b.TempDir()
	var next atomic.Int64
	b.SetParallelism(8 / runtime.GOMAXPROCS(0))
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			id := fmt.Sprint("p", next.Add(1))
			pins, err := pool.Pin(filepath.Join(dir, id), namespace.Spec{Net: true, IPC: true, UTS: true, Hostname: "pod"})
			if err != nil {
				b.Error(err)
				return
			}
			p := cni.Pod{ID: id, NetNS: pins[namespace.Net]}
			_, err = n.Attach(b.Context(), p)
			err = errors.Join(err, n.Detach(b.Context(), p), namespace.Unpin(filepath.Join(dir, id)))
			if err != nil {
				b.Error(err)
				return
			}
		}
	})
}
