package load

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/cri-runtime/cri-runtime/test/bench/images"
	"github.com/cri-runtime/cri-runtime/test/lab"
)

func TestMain(m *testing.M) {
	os.Exit(lab.Main(m, func() lab.Needs { return lab.SmallNeeds("load") }))
}

// restarted is our daemon under Restart.
type restarted struct {
	*lab.Daemon
	t *testing.T
}

func (r restarted) Kill() error {
	r.Daemon.Kill()
	return nil
}

func (r restarted) Start() error {
	r.Daemon.Start(r.t)
	return nil
}

// ours starts our daemon, in a cgroup that the client is not in.
func ours(t *testing.T) (*Client, restarted) {
	t.Helper()
	d := lab.StartSmall(t)
	all := "/" + lab.Here(t).Cgroup
	if err := errors.Join(MakeCgroup(all), MakeCgroup(all+"/daemon"), MakeCgroup(all+"/daemon/self"), MakeCgroup(all+"/pods")); err != nil {
		t.Fatal(err)
	}
	meter := Cgroup{Programs: []string{"cri-runtime", "cri-monitor"}}
	for _, dir := range cgroupDirs(all) {
		if _, err := cgroupCPU(dir); err == nil {
			meter.Dirs = []string{dir}
			break
		}
	}
	if len(meter.Dirs) == 0 {
		t.Fatal("no cgroup that counts CPU time")
	}
	self := filepath.Join(meter.Dirs[0], "daemon")
	if _, err := os.Stat(filepath.Join(self, "cgroup.controllers")); err == nil {
		self = filepath.Join(self, "leaf") // one that has no controllers for others
		if err := os.Mkdir(self, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(self, "cgroup.procs"), []byte(strconv.Itoa(d.Pid())), 0); err != nil {
		t.Fatal(err)
	}
	c, err := Dial(t.Context(), Options{Socket: d.Socket, Image: "bench.test/" + images.SmallName, LogDir: filepath.Join(d.Dir, "logs"), CgroupParent: all + "/pods"}, meter)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, restarted{d, t}
}

// TestOurs takes each measurement once, small, of our own daemon, and sees that the figures
// can be: none is missing, nothing is left.
func TestOurs(t *testing.T) {
	c, d := ours(t)
	if v, err := c.Version(t.Context()); err != nil || v == " " {
		t.Errorf("version: %q, %v", v, err)
	}
	t.Run("latency", func(t *testing.T) { latency(t, c) })
	t.Run("throughput", func(t *testing.T) {
		r, err := c.Throughput(t.Context(), 6, 3)
		if err != nil || r.StartsPerSecond <= 0 || r.StopsPerSecond <= 0 || r.CPUPerStart <= 0 || r.CPUPerStop <= 0 || len(r.Steps[stepTeardown]) != 6 {
			t.Errorf("got %+v, %v", r, err)
		}
	})
	t.Run("density", func(t *testing.T) { density(t, c) })
	t.Run("exec", func(t *testing.T) {
		r, err := c.Exec(t.Context(), 5, 3)
		if err != nil || len(r.Serial) != 5 || len(r.Parallel) != 5 || r.PerSecond <= 0 || r.CPUPerExec <= 0 {
			t.Errorf("got %+v, %v", r, err)
		}
	})
	t.Run("logs", func(t *testing.T) {
		r, err := c.Logs(t.Context(), time.Second, 100)
		if err != nil || r.Lines == 0 || r.Bad != 0 || r.MBps <= 0 || r.CPUPerGB <= 0 {
			t.Errorf("got %+v, %v", r, err)
		}
	})
	t.Run("restart", func(t *testing.T) {
		r, err := c.Restart(t.Context(), d, 5)
		if err != nil || r.Containers != 5 || r.Sandboxes != 5 || !r.ExecWorks || !r.LogGoesOn || !r.SamePIDs || r.Complete < r.FirstList {
			t.Errorf("got %+v, %v", r, err)
		}
	})
	t.Run("a client in the runtime's cgroup", func(t *testing.T) {
		if _, err := Dial(t.Context(), c.options, Cgroup{Dirs: []string{filepath.Join(c.meter.(Cgroup).Dirs[0], "..")}}); err == nil {
			t.Error("its own CPU time would count")
		}
	})
	t.Run("nothing is left", func(t *testing.T) { removed(t, c) })
	t.Run("a failure leaves nothing", func(t *testing.T) {
		broken := c.options
		broken.Handler = "no-such-handler"
		bad := &Client{options: broken, meter: c.meter, link: c.link, imageID: c.imageID}
		if _, err := bad.Latency(t.Context(), 1); err == nil {
			t.Error("a pod of no handler runs")
		}
		noLogs(t, c)
	})
}

func latency(t *testing.T, c *Client) {
	r, err := c.Latency(t.Context(), 3)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range Order {
		if len(r.Steps[step]) != 3 {
			t.Errorf("%s: got %v, want 3 samples", step, r.Steps[step])
		}
	}
	if r.CPUPerPod <= 0 || r.Steps[stepReady][0] < r.Steps["RunPodSandbox"][0] {
		t.Errorf("got %+v", r)
	}
}

func density(t *testing.T, c *Client) {
	r, err := c.Density(t.Context(), DensityPlan{Pods: 5, Poll: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	first, last := r.FirstAndLast()
	if len(r.Ready) != 5 || len(r.Teardown) != 5 || first <= 0 || last <= 0 || r.PollCPU <= 0 || len(r.Poll["ContainerStatus"]) != 5 || len(r.Poll[stepRound]) != 1 {
		t.Errorf("got %+v", r)
	}
	for _, name := range []string{"cri-runtime", "cri-monitor"} {
		if r.After[name].Processes != 1 || r.After[name].PSS <= 0 {
			t.Errorf("%s: got %+v", name, r.After)
		}
	}
	if r.After[Total].PSS != r.After["cri-runtime"].PSS+r.After["cri-monitor"].PSS {
		t.Errorf("total: got %+v", r.After)
	}
}

// removed sees that RemoveAll finds a pod that was forgotten.
func removed(t *testing.T, c *Client) {
	p, err := c.Start(t.Context(), "wait")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.RemoveAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Stop(t.Context(), p, 0); err != nil { // of what is gone
		t.Error(err)
	}
	noLogs(t, c)
	if m := cgroupDirs(p.config.Linux.CgroupParent); len(m) != 0 {
		t.Errorf("cgroups: %v", m)
	}
}

func noLogs(t *testing.T, c *Client) {
	left, err := os.ReadDir(c.options.LogDir)
	if err != nil || len(left) != 0 {
		t.Errorf("logs: %v, %v", left, err)
	}
}
