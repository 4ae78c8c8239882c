package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/cri-runtime/cri-runtime/cni/builtin"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

const (
	builtinPrefix = "builtin:" // a "path" that is no file but a plugin of this process
	maxOutput     = 4 << 20
	// killGrace is how long the pipes of a killed plugin may stay open: a grandchild
	// that left the process group still holds them.
	killGrace = 2 * time.Second
	busyWait  = 50 * time.Millisecond
	busyTries = 20
)

// executor runs plugins for libcni, here or as programs.
type executor struct {
	version.PluginDecoder
	mode    Builtin
	here    *builtin.Plugins // nil when mode is Off
	paths   []string
	timeout time.Duration
}

// FindInPath returns the file of a plugin, or its place in this process.
func (e *executor) FindInPath(plugin string, paths []string) (string, error) {
	if e.mode == Always && builtin.Has(plugin) {
		return builtinPrefix + plugin, nil
	}
	path, err := invoke.FindInPath(plugin, paths)
	if err == nil {
		return path, nil
	}
	if e.mode == WhenMissing && builtin.Has(plugin) {
		return builtinPrefix + plugin, nil
	}
	return "", &PluginError{Plugin: plugin, Msg: "not installed in " + strings.Join(paths, ", "), Err: errdef.ErrNotFound}
}

// ExecPlugin runs a plugin and returns what it printed.
func (e *executor) ExecPlugin(ctx context.Context, path string, conf []byte, env []string) ([]byte, error) {
	began := time.Now()
	name, isHere := strings.CutPrefix(path, builtinPrefix)
	if !isHere {
		name = path[strings.LastIndexByte(path, '/')+1:]
	}
	limited, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	var out []byte
	var err error
	if isHere {
		out, err = e.here.Run(limited, call(name, conf, env))
	} else {
		out, err = run(limited, path, conf, env)
	}
	if err == nil {
		return out, nil
	}
	if pe, ok := errors.AsType[*PluginError](err); ok && limited.Err() == nil {
		if pe.Plugin == "" {
			pe.Plugin = name
		}
		return nil, pe
	}
	if cause := limited.Err(); cause != nil {
		return nil, &PluginError{Plugin: name, Err: cause,
			Msg: fmt.Sprintf("no answer to %s after %v, stopped", call(name, nil, env).Command, time.Since(began).Round(time.Millisecond))}
	}
	return nil, &PluginError{Plugin: name, Msg: cut(err.Error()), Err: err}
}

// delegate runs an address manager for a built-in plugin.
func (e *executor) delegate(ctx context.Context, plugin string, c builtin.Call) ([]byte, error) {
	path, err := e.FindInPath(plugin, e.paths)
	if err != nil {
		return nil, err
	}
	env := append(os.Environ(), "CNI_COMMAND="+c.Command, "CNI_CONTAINERID="+c.ContainerID, "CNI_NETNS="+c.NetNS,
		"CNI_IFNAME="+c.IfName, "CNI_ARGS="+c.Args, "CNI_PATH="+strings.Join(e.paths, string(os.PathListSeparator)))
	return e.ExecPlugin(ctx, path, c.Conf, env)
}

// call reads the environment that a program would get.
func call(plugin string, conf []byte, env []string) builtin.Call {
	c := builtin.Call{Type: plugin, Conf: conf}
	into := map[string]*string{"CNI_COMMAND": &c.Command, "CNI_CONTAINERID": &c.ContainerID, "CNI_NETNS": &c.NetNS,
		"CNI_IFNAME": &c.IfName, "CNI_ARGS": &c.Args}
	for _, kv := range env {
		k, v, _ := strings.Cut(kv, "=")
		if p := into[k]; p != nil {
			*p = v
		}
	}
	return c
}

// run executes a plugin in a process group of its own, which ends with ctx: plugins
// run iptables and the like, and a killed shell script must not leave those behind.
func run(ctx context.Context, path string, conf []byte, env []string) ([]byte, error) {
	for try := 1; ; try++ {
		stdout, stderr := &capped{max: maxOutput}, &capped{max: 2 * maxForeign}
		cmd := exec.CommandContext(ctx, path)
		cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env, bytes.NewReader(conf), stdout, stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
		cmd.WaitDelay = killGrace
		err := cmd.Run()
		if err == nil {
			return stdout.Bytes(), nil
		}
		// An installer is writing the file at this moment.
		if errors.Is(err, syscall.ETXTBSY) && try < busyTries {
			select {
			case <-time.After(busyWait):
				continue
			case <-ctx.Done():
			}
		}
		return nil, pluginError(err, stdout.Bytes(), stderr.Bytes())
	}
}

// pluginError reads the error that a plugin printed.
func pluginError(err error, stdout, stderr []byte) error {
	var e types.Error
	if len(bytes.TrimSpace(stdout)) > 0 && json.Unmarshal(stdout, &e) == nil && e.Msg != "" {
		return &PluginError{Code: e.Code, Msg: cut(e.Msg), Details: cut(e.Details), Err: err}
	}
	text := stderr
	if len(bytes.TrimSpace(text)) == 0 {
		text = stdout
	}
	if len(bytes.TrimSpace(text)) == 0 {
		return &PluginError{Msg: err.Error() + " without a message", Err: err}
	}
	return &PluginError{Msg: err.Error(), Details: cut(string(text)), Err: err}
}

// capped keeps the first max bytes and swallows the rest, so that a mad plugin can
// neither fill our memory nor block on its pipe.
type capped struct {
	bytes.Buffer
	max int
}

func (c *capped) Write(b []byte) (int, error) {
	if room := c.max - c.Len(); room > 0 {
		c.Buffer.Write(b[:min(room, len(b))])
	}
	return len(b), nil
}
