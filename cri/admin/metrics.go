package admin

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"runtime"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/image"
)

// A family is a metric with its samples.
type family struct {
	name, kind, help string
	label            string // of the samples' keys; empty: there is one sample with the key ""
	samples          map[string]float64
}

func gauge(name, help string, value float64) family {
	return family{name, "gauge", help, "", map[string]float64{"": value}}
}

func counter(name, help string, value float64) family {
	return family{name, "counter", help, "", map[string]float64{"": value}}
}

func counters[N uint64 | float64](name, help, label string, values map[string]N) family {
	samples := map[string]float64{}
	for k, v := range values {
		samples[k] = float64(v)
	}
	return family{name, "counter", help, label, samples}
}

// metrics writes everything. The client library of Prometheus does the same for 1.5 MB
// of program; the format is a page of text, and a test reads it with their parser.
func (s *Server) metrics(w http.ResponseWriter, r *http.Request) {
	families, err := s.imageMetrics()
	if err != nil {
		fail(w, r, fmt.Errorf("measure images: %w", err))
		return
	}
	families = append(families, s.processMetrics()...)
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_ = write(w, families) // the client is gone
}

func (s *Server) imageMetrics() ([]family, error) {
	layers, writable, err := s.deps.Images.FsUsage()
	if err != nil {
		return nil, err
	}
	inFlight := 0
	for _, p := range s.deps.Images.Pulls() {
		if p.Ended == nil {
			inFlight++
		}
	}
	images := s.deps.Images.List()
	unique := map[image.Digest]struct{}{}
	for _, i := range images {
		for _, d := range i.DiffIDs {
			unique[d] = struct{}{}
		}
	}
	c := s.deps.Images.PullCounts()
	return []family{
		{"cri_runtime_build_info", "gauge", "The program.", "version", map[string]float64{s.deps.Version: 1}},
		gauge("cri_runtime_image_pulls_in_flight", "Pulls that have not ended.", float64(inFlight)),
		counters("cri_runtime_image_pulls_total", "Pulls that have ended, by result.", "result", c.Results),
		counters("cri_runtime_image_pull_bytes_total", "Bytes of blobs and documents received, by the host that was asked.", "host", c.Hosts),
		counter("cri_runtime_image_pull_resumed_bytes_total", "Bytes that did not have to be transferred again.", float64(c.Resumed)),
		counters("cri_runtime_image_digest_mismatches_total", "Content that was not what its digest says, by the host that served it.",
			"host", s.deps.Images.Mismatches()),
		gauge("cri_runtime_images", "Images in the store.", float64(len(images))),
		gauge("cri_runtime_image_layers", "Different layers of these images.", float64(len(unique))),
		gauge("cri_runtime_image_bytes", "Bytes that the layers take on disk.", float64(layers.Bytes)),
		gauge("cri_runtime_writable_layer_bytes", "Bytes that the containers' writable layers take on disk.", float64(writable.Bytes)),
	}, nil
}

// processMetrics has the names that every Prometheus client library uses. What /proc
// does not tell is left out.
func (s *Server) processMetrics() []family {
	read := []metrics.Sample{
		{Name: "/sched/goroutines:goroutines"}, {Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/total:bytes"},
		{Name: "/gc/cycles/total:gc-cycles"}, {Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/allocs:objects"},
	}
	metrics.Read(read)
	value := func(i int) float64 {
		if read[i].Value.Kind() != metrics.KindUint64 {
			return 0
		}
		return float64(read[i].Value.Uint64())
	}
	out := []family{
		{"go_info", "gauge", "Information about the Go environment.", "version", map[string]float64{runtime.Version(): 1}},
		gauge("go_goroutines", "Number of goroutines that currently exist.", value(0)),
		gauge("go_memstats_heap_alloc_bytes", "Number of heap bytes allocated and currently in use.", value(1)),
		counter("go_memstats_alloc_bytes_total", "Total number of heap bytes allocated until now, even if released already.", value(4)),
		counter("go_memstats_mallocs_total", "Total number of heap objects allocated, both live and gc-ed.", value(5)),
		gauge("go_memstats_sys_bytes", "Number of bytes obtained from system.", value(2)),
		counter("go_gc_cycles_total", "Garbage collections.", value(3)),
		gauge("process_start_time_seconds", "Start time of the process since unix epoch in seconds.", float64(s.started.UnixMilli())/1000),
	}
	var ru unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &ru) == nil {
		seconds := float64(ru.Utime.Nano()+ru.Stime.Nano()) / 1e9
		out = append(out, counter("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.", seconds))
	}
	if statm, err := os.ReadFile("/proc/self/statm"); err == nil {
		if f := strings.Fields(string(statm)); len(f) > 1 {
			if pages, err := strconv.ParseUint(f[1], 10, 64); err == nil {
				out = append(out, gauge("process_resident_memory_bytes", "Resident memory size in bytes.", float64(pages)*float64(os.Getpagesize())))
			}
		}
	}
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
		out = append(out, gauge("process_open_fds", "Number of open file descriptors.", float64(len(fds)-1))) // one is this reading's
	}
	return out
}

// write prints families in the text format 0.0.4, samples sorted.
func write(w io.Writer, families []family) error {
	b := bufio.NewWriter(w)
	help := strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	text := strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
	for _, f := range families {
		fmt.Fprintf(b, "# HELP %s %s\n# TYPE %s %s\n", f.name, help.Replace(f.help), f.name, f.kind)
		for _, key := range slices.Sorted(maps.Keys(f.samples)) {
			labels := ""
			if f.label != "" {
				labels = "{" + f.label + `="` + text.Replace(strings.ToValidUTF8(key, "?")) + `"}`
			}
			fmt.Fprintf(b, "%s%s %s\n", f.name, labels, strconv.FormatFloat(f.samples[key], 'f', -1, 64))
		}
	}
	return b.Flush()
}
