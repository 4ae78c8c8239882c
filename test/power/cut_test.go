package power

import (
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/image"
	"github.com/cri-runtime/cri-runtime/image/snapshot"
	"github.com/cri-runtime/cri-runtime/test/container/node"
	"github.com/cri-runtime/cri-runtime/test/lab"
)

// diskSize leaves room for all images and their removal at once.
const diskSize = 160 << 20

var formats = []string{string(snapshot.EROFS), string(snapshot.Directory)}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

// format makes an ext4 filesystem in a file. A small journal wraps round often.
func format(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	command(t, "mkfs.ext4", "-q", "-F", "-m", "0", "-J", "size=4", "-E", "lazy_itable_init=0,nodiscard", path)
}

// attach mounts the filesystem in a file.
func attach(t *testing.T, file, dir, options string) (detach func()) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	command(t, "mount", "-t", "ext4", "-o", "loop,"+options, file, dir)
	gone := false
	detach = func() {
		if gone {
			return
		}
		gone = true
		for limit := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			err := unix.Unmount(dir, 0)
			if err == nil {
				return
			}
			if time.Now().After(limit) {
				t.Errorf("unmount %s: %v", dir, err)
				_ = unix.Unmount(dir, unix.MNT_DETACH)
				return
			}
		}
	}
	t.Cleanup(detach)
	return detach
}

// workDir is a directory in memory: how busy the machine's disk is does not matter.
func workDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(lab.Here(t).Work, "power.") //nolint:usetesting // in the lab's mounts
	if err != nil {
		t.Fatal(err)
	}
	node.MountTmpfs(t, dir, "mode=0711")
	return dir
}

// options are mount options to try: by default ext4 guards files that are replaced by
// rename, and writes out after 5 s; neither may be relied on. With data=writeback it also
// gives a removed file's blocks to others before the removal is committed
// (ext4_mb_clear_bb, fs/ext4/mballoc.c).
var options = []string{"data=ordered,commit=1", "data=ordered,noauto_da_alloc", "data=ordered,commit=1,noauto_da_alloc", "data=writeback,commit=1,noauto_da_alloc"}

// TestPowerCut cuts the power at random moments of pulls and removals.
func TestPowerCut(t *testing.T) {
	lab.Here(t)
	r := newRegistry(t)
	for _, f := range formats {
		t.Run(f, func(t *testing.T) {
			seed := rand.Uint64()
			rng := rand.New(rand.NewPCG(seed, 0))
			dir := workDir(t)
			format(t, dir+"/empty", diskSize)
			d := newDisk(t, dir, dir+"/empty")
			attach(t, d.file, dir+"/mnt", options[rng.IntN(len(options))])
			w := startWorker(t, dir+"/mnt/image", dir+"/state", r.Host(), f)
			w.await(pulled)
			var sum stats
			for round := range rounds() {
				how := cut(round % int(cuts))
				switch rng.IntN(4) {
				case 0:
					w.await(pulled)
					time.Sleep(rand.N(3 * time.Millisecond))
				case 1:
					w.await(durable)
				case 2: // soon after, a pull is under way
					w.await(removing)
					time.Sleep(rand.N(100 * time.Millisecond))
				default:
					time.Sleep(rand.N(500 * time.Millisecond))
				}
				before, path := now(), fmt.Sprintf("%s/cut%d", dir, round)
				unflushed := d.cut(t, path, how, rng)
				after := now()
				sum.unflushed += min(unflushed, 1)
				found := r.recover(t, path, f, &sum)
				for _, i := range w.durableAt(before, after) {
					sum.promised++
					if !slices.Contains(found, image.ID(r.ids[i])) {
						t.Errorf("image %d was durable before the cut and is gone", i)
					}
				}
				w.check(t)
				if t.Failed() {
					t.Fatalf("round %d, spared: %v, seed %d", round, how, seed)
				}
			}
			t.Logf("%d rounds, %d flushes: %+v", rounds(), d.flushed(), sum)
			// On a quiet machine few cuts leave orphans: what was cut off has not reached the disk.
			if sum.images == 0 || sum.orphans+sum.unflushed == 0 || sum.promised == 0 {
				t.Errorf("the cuts hit nothing: %+v", sum)
			}
		})
	}
}

func rounds() int {
	if long {
		return 200
	}
	return 20
}

// stats show that the cuts came when something was going on.
type stats struct{ images, orphans, unflushed, promised int }

// recover mounts what the cut left, opens the store with the empty state directory of a
// fresh boot, and checks that what it lists is whole, that all can be pulled and removed,
// and that then nothing is left. It returns what was listed at first.
func (r *registry) recover(t *testing.T, path, f string, sum *stats) (found []image.ID) {
	t.Helper()
	dir := path + ".mnt"
	detach := attach(t, path, dir, "data=ordered")
	defer detach()
	state := workDir(t)
	root := filepath.Join(dir, "image")
	sum.orphans += unrecorded(t, root)
	s, err := image.Open(t.Context(), image.Options{Root: root, State: state, LayerStore: snapshot.Format(f)})
	if err != nil {
		t.Error(err)
		return nil
	}
	for _, img := range s.List() {
		sum.images++
		found = append(found, img.ID)
		r.check(t, s, img.ID)
	}
	for i, ref := range r.refs {
		id, err := s.Pull(t.Context(), image.PullRequest{Ref: ref})
		if err != nil || string(id) != r.ids[i] {
			t.Errorf("pull after the cut: got %s, %v", id, err)
			continue
		}
		if !slices.Contains(found, id) {
			r.check(t, s, id)
		}
		if err := s.Remove(t.Context(), string(id)); err != nil {
			t.Error(err)
		}
	}
	wantEmpty(t, s, root)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	detach()
	if err := os.Remove(path); err != nil {
		t.Error(err)
	}
	return found
}

// unrecorded counts the layers that have files and no record.
func unrecorded(t *testing.T, root string) (n int) {
	t.Helper()
	es, err := os.ReadDir(filepath.Join(root, "l"))
	if err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
	for _, e := range es {
		name, _, _ := strings.Cut(e.Name(), ".")
		if _, err := os.Stat(filepath.Join(root, "layers", name+".json")); err != nil && name != "0" {
			n++
		}
	}
	return n
}

// wantEmpty waits until a store without images has nothing on disk, and knows of nothing.
func wantEmpty(t *testing.T, s *image.Store, root string) {
	t.Helper()
	var left []string
	for limit := time.Now().Add(20 * time.Second); time.Now().Before(limit); time.Sleep(10 * time.Millisecond) {
		left = nil
		if err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			rel, _ := filepath.Rel(root, p)
			if dir, name := filepath.Split(rel); dir != "" && rel != "l/0" && err == nil {
				left = append(left, dir+name)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		if len(left) == 0 {
			break
		}
	}
	orphans, err := s.Garbage(t.Context(), true)
	layers, writable, uerr := s.FsUsage()
	if len(left)+len(orphans) > 0 || err != nil || uerr != nil || layers.Bytes+writable.Bytes > 0 {
		t.Errorf("left: files %q, orphans %v, %v; layers %+v, writable %+v, %v", left, orphans, err, layers, writable, uerr)
	}
}

// TestPowerCutOfDaemon does the same with the built daemon.
func TestPowerCutOfDaemon(t *testing.T) {
	lab.Here(t)
	r := newRegistry(t)
	rng := rand.New(rand.NewPCG(rand.Uint64(), 0))
	dir := workDir(t)
	format(t, dir+"/empty", diskSize)
	d := newDisk(t, dir, dir+"/empty")
	attach(t, d.file, dir+"/mnt", options[2])
	n := node.New(t)
	n.Args = append(n.Args, "--root", dir+"/mnt")
	n.Start(t)
	t.Cleanup(func() { n.Stop(t) })
	ctx, cancel := context.WithCancel(t.Context())
	var churning sync.WaitGroup
	var failed error
	churning.Go(func() { failed = churn(ctx, n, r) })
	var sum stats
	for round := range max(3, rounds()/4) {
		time.Sleep(rand.N(time.Second))
		path := fmt.Sprintf("%s/cut%d", dir, round)
		sum.unflushed += min(1, d.cut(t, path, cut(round%int(cuts)), rng))
		r.recover(t, path, "", &sum)
		if t.Failed() {
			break
		}
	}
	cancel()
	churning.Wait()
	if failed != nil {
		t.Error(failed)
	}
	t.Logf("%d flushes: %+v", d.flushed(), sum)
	if d.flushed() == 0 {
		t.Error("the daemon has made nothing durable")
	}
}

// churn pulls and removes images through the daemon.
func churn(ctx context.Context, n *node.Node, r *registry) error {
	for i := 0; ; i++ {
		spec := &rt.ImageSpec{Image: r.refs[i%imageCount]}
		_, err := n.Images.PullImage(ctx, &rt.PullImageRequest{Image: spec})
		if err == nil && i%2 == 1 {
			spec.Image = r.refs[rand.IntN(imageCount)]
			_, err = n.Images.RemoveImage(ctx, &rt.RemoveImageRequest{Image: spec})
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
