package container

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	rt "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/test/container/node"
)

func attach(t *testing.T, p *node.Pod, ctr string, w wants) string {
	t.Helper()
	reply, err := p.Runtime.Attach(t.Context(), &rt.AttachRequest{ContainerId: ctr, Stdin: w.stdin, Tty: w.tty, Stdout: true, Stderr: !w.tty})
	if err != nil {
		t.Fatal(err)
	}
	return reply.Url
}

func exec(t *testing.T, p *node.Pod, ctr string, w wants, cmd ...string) string {
	t.Helper()
	reply, err := p.Runtime.Exec(t.Context(), &rt.ExecRequest{ContainerId: ctr, Cmd: cmd, Stdin: w.stdin, Tty: w.tty, Stdout: true, Stderr: !w.tty})
	if err != nil {
		t.Fatal(err)
	}
	return reply.Url
}

func TestInput(t *testing.T) {
	n := node.Start(t)
	p := n.RunPod(t, n.PodConfig("a"))
	for name, dial := range dialers {
		t.Run(name+": stdin_once ends with the first client's input", func(t *testing.T) {
			c := p.ContainerConfig("once-"+name, "sh", "-c", "cat; echo end of input; exit 5")
			c.Stdin, c.StdinOnce = true, true
			ctr := p.Start(t, c)
			s := dial(t, attach(t, p, ctr, wants{stdin: true}), wants{stdin: true})
			s.send(t, "one\n")
			s.send(t, "two\n")
			s.endInput(t)
			if got := s.output(t); got != "one\ntwo\nend of input\n" {
				t.Errorf("the client got %q", got)
			}
			if st := p.Ended(t, ctr); st.ExitCode != 5 || node.LogText(t, st.LogPath) != "one\ntwo\nend of input\n" {
				t.Errorf("exit code %d, log %q", st.ExitCode, node.LogText(t, st.LogPath))
			}
		})
		t.Run(name+": stdin stays open for the next client", func(t *testing.T) {
			c := p.ContainerConfig("again-"+name, "sh", "-c", "read a; echo got $a; read b; echo got $b")
			c.Stdin = true
			ctr := p.Start(t, c)
			log := p.Status(t, ctr).LogPath
			first := dial(t, attach(t, p, ctr, wants{stdin: true}), wants{stdin: true})
			first.send(t, "one\n")
			node.Eventually(t, "the first line is logged", func() bool { return node.LogText(t, log) == "got one\n" })
			first.endInput(t)
			first.hangUp()
			second := dial(t, attach(t, p, ctr, wants{stdin: true}), wants{stdin: true})
			second.send(t, "two\n")
			if got := second.output(t); !strings.HasSuffix(got, "got two\n") {
				t.Errorf("the second client got %q", got)
			}
			if st := p.Ended(t, ctr); st.ExitCode != 0 || node.LogText(t, st.LogPath) != "got one\ngot two\n" {
				t.Errorf("exit code %d, log %q", st.ExitCode, node.LogText(t, st.LogPath))
			}
		})
	}
	t.Run("none is empty", func(t *testing.T) {
		if got := p.Shell(t, "cat; readlink /proc/self/fd/0; echo end", nil); got != "/dev/null\nend" {
			t.Errorf("got %q", got)
		}
	})
}

func TestTerminal(t *testing.T) {
	n := node.Start(t)
	p := n.RunPod(t, n.PodConfig("a"))
	for name, dial := range dialers {
		t.Run(name+": attach", func(t *testing.T) {
			c := p.ContainerConfig("tty-"+name, "sh", "-c", "read w; stty size; ls -l /proc/self/fd/0 | sed 's/.*-> //'; test -t 2 && tty")
			c.Tty, c.Stdin = true, true
			ctr := p.Start(t, c)
			w := wants{stdin: true, tty: true}
			s := dial(t, attach(t, p, ctr, w), w)
			s.resize(t, 123, 45)
			s.resize(t, 124, 46)
			waitForSize(t, p, ctr)
			s.send(t, "go\n")
			if got := s.output(t); !strings.Contains(got, "46 124\r\n/dev/pts/0\r\n/dev/pts/0\r\n") {
				t.Errorf("got %q, want the size and the terminal", got)
			}
			if log := node.LogText(t, p.Ended(t, ctr).LogPath); !strings.Contains(log, "46 124\r\n") {
				t.Errorf("log: got %q", log)
			}
		})
		t.Run(name+": exec", func(t *testing.T) {
			ctr := p.Start(t, p.ContainerConfig("exec-"+name, node.Sleeper()...))
			w := wants{stdin: true, tty: true}
			s := dial(t, exec(t, p, ctr, w, "sh", "-c", "until [ \"$(stty size)\" = '30 90' ]; do sleep 0.01; done; read w; echo size $w; test -t 1 && echo terminal"), w)
			s.resize(t, 90, 30)
			s.send(t, "reached\n")
			if got := s.output(t); !strings.HasSuffix(got, "size reached\r\nterminal\r\n") {
				t.Errorf("got %q", got)
			}
		})
	}
}

// waitForSize waits until the container's terminal has its size: a resize has no answer.
func waitForSize(t *testing.T, p *node.Pod, ctr string) {
	t.Helper()
	node.Eventually(t, "the terminal has its size", func() bool {
		return p.Exec(t, ctr, "sh", "-c", "stty size </proc/1/fd/0") == "46 124"
	})
}

// TestLogLines holds where lines are cut, which is nowhere below 16 KiB.
func TestLogLines(t *testing.T) {
	n := node.Start(t)
	p := n.RunPod(t, n.PodConfig("a"))
	const line = "head -c %d /dev/zero | tr '\\0' x; "
	for name, tc := range map[string]struct{ script, want string }{
		"16384 bytes":             {fmt.Sprintf(line, 16384) + "echo", "stdout F 16384"},
		"16385 bytes":             {fmt.Sprintf(line, 16385) + "echo", "stdout P 16384, stdout F 1"},
		"40000 bytes":             {fmt.Sprintf(line, 40000) + "echo", "stdout P 16384, stdout P 16384, stdout F 7232"},
		"no newline":              {"printf tail", "stdout P 4"},
		"16384 without newline":   {fmt.Sprintf(line, 16384), "stdout P 16384"},
		"in pieces":               {"printf one; sleep 0.1; printf two; sleep 0.1; echo three", "stdout F 11"},
		"empty lines":             {"echo; echo; printf x", "stdout F 0, stdout F 0, stdout P 1"},
		"both streams":            {"printf a; sleep 0.1; echo b >&2; sleep 0.1; echo c", "stderr F 1, stdout F 2"},
		"nothing":                 {"true", ""},
		"after the first process": {"(sleep 0.2; echo late) & echo early", "stdout F 5"},
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			s, _ := p.RunToEnd(t, p.ContainerConfig(strings.ReplaceAll(name, " ", "-"), "sh", "-c", tc.script))
			body, err := os.ReadFile(s.LogPath)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for l := range strings.Lines(string(body)) {
				f := strings.SplitN(strings.TrimSuffix(l, "\n"), " ", 4)
				if len(f) != 4 {
					t.Fatalf("line %q", l)
				}
				if at, err := time.Parse(time.RFC3339Nano, f[0]); err != nil || at.Before(began) || at.After(time.Now()) {
					t.Errorf("time %q, %v", f[0], err)
				}
				got = append(got, fmt.Sprint(f[1], " ", f[2], " ", len(f[3])))
			}
			if strings.Join(got, ", ") != tc.want {
				t.Errorf("got %q, want %q", strings.Join(got, ", "), tc.want)
			}
		})
	}
}
