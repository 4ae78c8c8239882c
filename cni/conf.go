package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/cri-runtime/cri-runtime/cni/builtin"
	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// settle is after how long a second change of a file is sure to have another time.
const settle = 2 * time.Second

// loaded is a network configuration in use.
type loaded struct {
	list   *libcni.NetworkConfigList
	source string // for messages
	here   bool   // the default network: always built in

	compiled *builtin.Network // nil unless the plugins are of the usual shape
}

// confDir follows a directory of configurations. It looks at the directory whenever it
// is asked: one readdir and a stat per file, some 20 us, against watches that die
// with a re-created directory and see nothing on some file systems.
type confDir struct {
	dir     string
	compile func(*loaded) *loaded

	mu    sync.Mutex // guards what follows; held while reading small files
	stamp string
	cur   *loaded
	err   error
}

// current returns the first valid configuration by file name, or why there is none.
func (c *confDir) current() (*loaded, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	files, stamp, settled, err := c.look()
	if err != nil {
		c.stamp, c.cur, c.err = "", nil, err
		return nil, err
	}
	if stamp == c.stamp {
		return c.cur, c.err
	}
	c.stamp, c.cur, c.err = stamp, nil, nil
	if !settled {
		c.stamp = ""
	}
	var bad []error
	for _, f := range files {
		l, err := load(f)
		if err == nil {
			c.cur = c.compile(l)
			return l, nil
		}
		bad = append(bad, err)
	}
	c.err = errors.Join(bad...)
	if c.err == nil {
		c.err = fmt.Errorf("no network configuration in %s: %w", c.dir, errdef.ErrRetry)
	}
	return nil, c.err
}

// look lists candidate files and sums up what tells a change. The inode and the time
// of its last change are in it, since a replaced file may keep size and mtime. A file
// that changed a moment ago has not settled: the clock of file systems ticks every 4 to
// 10 ms (some tell only seconds), and a second change within a tick looks like none.
func (c *confDir) look() (files []string, stamp string, settled bool, err error) {
	entries, err := os.ReadDir(c.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", false, fmt.Errorf("no network configuration: %s does not exist: %w", c.dir, errdef.ErrRetry)
	}
	if err != nil {
		return nil, "", false, fmt.Errorf("read network configurations: %w", err)
	}
	settled = true
	var b strings.Builder
	b.WriteByte('.')
	for _, e := range entries { // sorted by name
		switch filepath.Ext(e.Name()) {
		case ".conf", ".conflist", ".json":
		default:
			continue
		}
		path := filepath.Join(c.dir, e.Name())
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil || st.Mode&syscall.S_IFMT != syscall.S_IFREG {
			continue // vanished, or a dangling link
		}
		files = append(files, path)
		settled = settled && time.Since(time.Unix(st.Ctim.Unix())) > settle
		fmt.Fprintf(&b, "%s %d %d %d %d.%d %d.%d\n", e.Name(), st.Dev, st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec)
	}
	return files, b.String(), settled, nil
}

func load(file string) (*loaded, error) {
	var list *libcni.NetworkConfigList
	var err error
	if filepath.Ext(file) == ".conflist" {
		list, err = libcni.NetworkConfFromFile(file)
	} else {
		var one *libcni.PluginConfig
		//nolint:staticcheck // deprecated, but nodes still have single-plugin files
		if one, err = libcni.ConfFromFile(file); err == nil && one.Network.Type == "" {
			err = errors.New("it has no plugin type; a list of plugins is named .conflist")
		}
		if err == nil {
			list, err = libcni.ConfListFromConf(one) //nolint:staticcheck // as above
		}
	}
	if err == nil && len(list.Plugins) == 0 {
		err = errors.New("it names no plugin")
	}
	if err == nil {
		list, err = flatten(list)
	}
	if err != nil {
		return nil, fmt.Errorf("network configuration %s: %s: %w", file, cut(err.Error()), errdef.ErrRetry)
	}
	return &loaded{list: list, source: file}, nil
}

// flatten makes list.Bytes say everything, including plugins that were read from a
// directory beside the file: DEL must run exactly what ADD ran.
func flatten(list *libcni.NetworkConfigList) (*libcni.NetworkConfigList, error) {
	plugins := make([]json.RawMessage, 0, len(list.Plugins))
	for _, p := range list.Plugins {
		plugins = append(plugins, p.Bytes)
	}
	b, err := json.Marshal(map[string]any{"cniVersion": list.CNIVersion, "name": list.Name, "disableCheck": list.DisableCheck,
		"disableGC": list.DisableGC, "loadOnlyInlinedPlugins": true, "plugins": plugins})
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(b)
}
