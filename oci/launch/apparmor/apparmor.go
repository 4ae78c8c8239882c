// Package apparmor knows which AppArmor profiles the kernel has, and loads ours.
//
// The kernel takes profiles in a compiled form only. The compiler is a program,
// apparmor_parser, of the distribution's apparmor package; it is run once per start
// of the daemon and whenever the profile has gone. Without it, and with AppArmor on,
// a container that asks for the runtime's default profile is refused with words that
// say so, never started unconfined. The package leaves the loaded profile in the
// kernel and nothing on disk, and starts no goroutine.
package apparmor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// DefaultName is the name of the profile for RuntimeDefault.
const DefaultName = "cri-runtime-default"

// maxOutput of the parser goes into an error.
const maxOutput = 512

// Host is the kernel's AppArmor interface and the program that loads profiles.
type Host struct {
	securityfs string // the kernel's interface
	enabled    string // a file that starts with "Y"
	current    string // our own confinement
	config     string // the distribution's files
	parser     string // found in PATH

	mu     sync.Mutex
	loaded bool // guarded by mu: this process has loaded the default profile
}

// New is this machine's AppArmor.
func New() *Host {
	return &Host{
		securityfs: "/sys/kernel/security/apparmor",
		enabled:    "/sys/module/apparmor/parameters/enabled",
		current:    "/proc/self/attr/current",
		config:     "/etc/apparmor.d",
		parser:     "apparmor_parser",
	}
}

// Enabled tells whether the kernel confines by AppArmor.
func (h *Host) Enabled() bool {
	b, err := os.ReadFile(h.enabled)
	return err == nil && bytes.HasPrefix(b, []byte("Y"))
}

// Loaded tells whether a profile of that name is loaded. Without AppArmor none is.
func (h *Host) Loaded(name string) (bool, error) {
	if !h.Enabled() {
		return false, nil
	}
	b, err := os.ReadFile(filepath.Join(h.securityfs, "profiles"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("list AppArmor profiles: %w (is securityfs mounted at /sys/kernel/security?)", err)
	}
	if err != nil {
		return false, fmt.Errorf("list AppArmor profiles: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		// "name (mode)"; names may have blanks and parentheses.
		if i := strings.LastIndex(line, " ("); i >= 0 && line[:i] == name {
			return true, nil
		}
	}
	return false, nil
}

// EnsureDefault loads the default profile unless it is loaded, and returns its
// name, or "" where the kernel has no AppArmor. The first call of a process loads it
// in any case: an older version of this program may have left another text.
func (h *Host) EnsureDefault(ctx context.Context) (string, error) {
	if !h.Enabled() {
		return "", nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	there, err := h.Loaded(DefaultName)
	if err != nil {
		return "", err
	}
	if there && h.loaded {
		return DefaultName, nil
	}
	err = h.load(ctx, h.profile())
	// Somebody may have loaded it for us, from a package say.
	if err != nil && (!there || !errors.Is(err, exec.ErrNotFound)) {
		return "", fmt.Errorf("load AppArmor profile %s: %w", DefaultName, err)
	}
	h.loaded = true
	return DefaultName, nil
}

func (h *Host) load(ctx context.Context, text string) error {
	path, err := exec.LookPath(h.parser)
	if err != nil {
		return fmt.Errorf("%s, which comes with the distribution's apparmor package, is needed to compile it: %w: %w", h.parser, err, errdef.ErrRetry)
	}
	// The cache is of no use for a profile that comes on standard input.
	cmd := exec.CommandContext(ctx, path, "--replace", "--skip-cache")
	cmd.Stdin = strings.NewReader(text)
	out, err := cmd.CombinedOutput()
	if err != nil {
		if len(out) > maxOutput {
			out = out[:maxOutput]
		}
		return fmt.Errorf("%s: %w: %q", h.parser, err, bytes.TrimSpace(out))
	}
	return nil
}

// profile is the text for this host.
func (h *Host) profile() string {
	d := defaultProfile{Name: DefaultName}
	if _, err := os.Stat(filepath.Join(h.config, "abi", abi)); err == nil {
		d.ABI = "abi/" + abi
	}
	// "name (mode)", or "unconfined".
	if b, err := os.ReadFile(h.current); err == nil {
		name, _, confined := strings.Cut(strings.TrimRight(string(b), "\x00\n"), " (")
		if confined && !strings.ContainsAny(name, "\"\\\n") {
			d.Daemon = name
		}
	}
	return d.text()
}
