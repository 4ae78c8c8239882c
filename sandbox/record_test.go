package sandbox

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/cri-runtime/cri-runtime/internal/linux/namespace"
	"github.com/cri-runtime/cri-runtime/sandbox/journal"
)

// loadOne reads the only record of a journal.
func loadOne(t *testing.T, dir string, version int) journal.Record {
	t.Helper()
	j, err := journal.Open(dir, version)
	if err != nil {
		t.Fatal(err)
	}
	records, damaged, err := j.Load()
	if err != nil || len(damaged) > 0 || len(records) != 1 {
		t.Fatalf("got %d records, damage %v, %v, want one record", len(records), damaged, err)
	}
	return records[0]
}

// Records of version 1 are read for ever: pods of that time may still run.
func TestRecordsOfVersion1(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/v1")); err != nil {
		t.Fatal(err)
	}
	p, err := decodePod(loadOne(t, filepath.Join(dir, "pods"), 2))
	if err != nil {
		t.Fatal(err)
	}
	if p.ID == "" || p.Phase != PodRunning || p.Config.Metadata.Name != "web-0" || len(p.Namespaces) != 3 || p.Attachment == nil ||
		p.Config.DNS.Options[0] != "ndots:5" || p.Config.Security.Namespaces.PID != ModeContainer || p.CreatedAt.IsZero() {
		t.Errorf("pod: got %+v %+v", p.podBase, p.podState)
	}
	c, err := decodeContainer(loadOne(t, filepath.Join(dir, "containers"), 2))
	if err != nil {
		t.Fatal(err)
	}
	if c.ID == "" || c.Pod != p.ID || c.Phase != PhaseRunning || c.Process == nil || c.Process.PID != 81 || c.Config.Args[0] != "wait" ||
		string(c.Config.Envs[0].Value) != "10.0.0.1" || c.Resources.OOMScoreAdj != 1000 || c.StartedAt.IsZero() || c.User.Groups[0] != 0 {
		t.Errorf("container: got %+v %+v", c.containerBase, c.containerState)
	}
}

// What was committed is read back, whether it was written whole or as a change.
func TestPodRecordIsReadBack(t *testing.T) {
	dir := t.TempDir()
	j, err := journal.Open(dir, podRecordVersion)
	if err != nil {
		t.Fatal(err)
	}
	s, p := &Service{podJournal: j}, newPod(&podRecord{podBase: &podBase{}})
	first, err := decodePod(journal.Record{Body: []byte(`{"ID":"x","Phase":1,"Parent":"/p"}`)})
	if err != nil {
		t.Fatal(err)
	}
	v1, err := decodePod(loadOne(t, copyOf(t, "testdata/v1/pods"), 1))
	if err != nil {
		t.Fatal(err)
	}
	ops := []Op{{Name: opRunPod}}
	for i, change := range []func(r *podRecord){
		func(*podRecord) {},
		func(r *podRecord) {
			r.Namespaces, r.Phase = map[namespace.Kind]string{"net": "/n", "ipc": "/i"}, PodRunning
		},
		func(r *podRecord) { r.Attachment, r.Ops = v1.Attachment, ops },
		func(r *podRecord) { r.Init = &process{PID: 7, Start: 8} },
		func(r *podRecord) { r.Namespaces, r.Problem = map[namespace.Kind]string{"ipc": "/i"}, "gone" },
		func(r *podRecord) {
			base := *r.podBase
			base.Config.Overhead = &Resources{CPUShares: 2}
			r.podBase = &base
		},
		func(r *podRecord) { r.Init, r.Namespaces, r.Problem = nil, nil, "" },
	} {
		r := *first
		change(&r)
		for range maxChanges/2 + 1 { // at times it is written whole in between
			if err := s.commitPod(p, r); err != nil {
				t.Fatal(err)
			}
		}
		got, err := decodePod(loadOne(t, dir, podRecordVersion))
		if err != nil || !reflect.DeepEqual(got, p.record()) {
			t.Errorf("step %d: got %+v %+v, %v, want %+v %+v", i, got.podBase, got.podState, err, r.podBase, r.podState)
		}
		*first = r
	}
	if n := loadOne(t, dir, podRecordVersion).Changes; len(n) > maxChanges {
		t.Errorf("got %d changes in one file, want no more than %d", len(n), maxChanges)
	}
}

func copyOf(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

func TestContainerRecordIsReadBack(t *testing.T) {
	dir := t.TempDir()
	j, err := journal.Open(dir, containerRecordVersion)
	if err != nil {
		t.Fatal(err)
	}
	s, now := &Service{containerJournal: j}, time.Now().UTC().Round(0)
	last, err := decodeContainer(loadOne(t, copyOf(t, "testdata/v1/containers"), 1))
	if err != nil {
		t.Fatal(err)
	}
	ops := []Op{{Name: opCreate}}
	last.Phase, last.Process, last.StartedAt, last.Ops = PhaseCreating, nil, time.Time{}, nil
	c := newContainer(last)
	if err := j.Write(string(c.id), last.seed()); err != nil {
		t.Fatal(err)
	}
	seed, err := decodeContainer(loadOne(t, dir, containerRecordVersion))
	if err != nil || seed.ID != last.ID || seed.Pod != last.Pod || seed.Cgroup != last.Cgroup || seed.Phase != PhaseCreating {
		t.Errorf("seed: got %+v, %v", seed, err)
	}
	for i, change := range []func(r *containerRecord){
		func(r *containerRecord) { r.Phase, r.Ops = PhaseCreated, ops },
		func(r *containerRecord) { r.Phase = PhaseStarting },
		func(r *containerRecord) {
			r.Phase, r.Process, r.StartedAt = PhaseRunning, &process{PID: 7, Start: 8}, now
			r.Ops = append(slices.Clip(r.Ops), Op{Name: opStart})
		},
		func(r *containerRecord) { r.StdinDone = true },
		func(r *containerRecord) { r.own(); r.Resources.CPUShares = 3 },
		func(r *containerRecord) {
			r.Phase, r.Ended = PhaseExited, &ending{At: now, ExitCode: 1, Reason: reasonError}
		},
		func(*containerRecord) {},
	} {
		r := *c.record()
		change(&r)
		if err := s.commit(c, r); err != nil {
			t.Fatal(err)
		}
		got, err := decodeContainer(loadOne(t, dir, containerRecordVersion))
		if err != nil || !reflect.DeepEqual(got, c.record()) {
			t.Errorf("step %d: got %+v %+v, %v, want %+v %+v", i, got.containerBase, got.containerState, err, r.containerBase, r.containerState)
		}
	}
}

// A change that could not be written is in the next record.
func TestChangeAfterOneThatFailed(t *testing.T) {
	dir := t.TempDir()
	j, err := journal.Open(dir, podRecordVersion)
	if err != nil {
		t.Fatal(err)
	}
	s := &Service{podJournal: j}
	r := podRecord{podBase: &podBase{ID: "x"}, podState: podState{Phase: PodRunning}}
	p := newPod(&r)
	if err := s.commitPod(p, r); err != nil {
		t.Fatal(err)
	}
	if err := j.Remove("x"); err != nil {
		t.Fatal(err)
	}
	r.Ops = []Op{{}}
	if err := s.commitPod(p, r); err == nil {
		t.Fatal("change of a record that is not there: got no error")
	}
	p.now.Store(&r)
	r.Phase = PodStopping
	if err := s.commitPod(p, r); err != nil {
		t.Fatal(err)
	}
	got, err := decodePod(loadOne(t, dir, podRecordVersion))
	if err != nil || got.Phase != PodStopping || len(got.Ops) != 1 {
		t.Errorf("got %+v, %v", got.podState, err)
	}
}
