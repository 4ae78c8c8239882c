package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
	"github.com/cri-runtime/cri-runtime/internal/linux/file"
	"github.com/cri-runtime/cri-runtime/internal/linux/mount"
)

// The small files of a pod that its containers mount.
const (
	fileHosts    = "hosts"
	fileHostname = "hostname"
	fileResolv   = "resolv.conf"
	dirShm       = "shm"
)

// shmSize is /dev/shm's size in bytes, the field's usual one.
const shmSize = 64 << 20

// Where the host's own files are. systemd-resolved's stub address cannot be reached
// from a pod's network, so its list of real servers is taken instead.
const (
	hostResolv    = "/etc/resolv.conf"
	hostUpstreams = "/run/systemd/resolve/resolv.conf"
	stubAddress   = "127.0.0.53"
	hostHosts     = "/etc/hosts"
)

// podFiles are the contents of a pod's files.
type podFiles struct {
	hostname string
	hosts    []byte
	resolv   []byte
	owner    int // host id of the pod's root
}

func (s *Service) writeFiles(id ID, f podFiles) error {
	for _, c := range []struct {
		name string
		body []byte
	}{{fileHostname, []byte(f.hostname + "\n")}, {fileHosts, f.hosts}, {fileResolv, f.resolv}} {
		path := s.paths.file(id, c.name)
		if err := file.Write(path, c.body, 0o644); err != nil {
			return fmt.Errorf("write %s: %w", c.name, err)
		}
		if f.owner == 0 {
			continue // it is so
		}
		if err := os.Chown(path, f.owner, f.owner); err != nil {
			return fmt.Errorf("write %s: %w", c.name, err)
		}
	}
	return nil
}

// removePodDir deletes what writeFiles and mountShm have made, which is all there is when
// the namespaces are gone, or else whatever there is.
func (s *Service) removePodDir(id ID) error {
	for _, name := range []string{fileHostname, fileHosts, fileResolv} {
		if err := file.Remove(s.paths.file(id, name)); err != nil {
			return fmt.Errorf("remove pod's files: %w", err)
		}
	}
	_ = unix.Rmdir(s.paths.file(id, dirShm)) // what is left is seen next
	err := unix.Rmdir(s.paths.podDir(id))
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err := os.RemoveAll(s.paths.podDir(id)); err != nil {
		return fmt.Errorf("remove pod directory: %w", err)
	}
	return nil
}

// contents decides what the pod's files hold.
func (r *podRecord) contents() (podFiles, error) {
	f := podFiles{hostname: r.Config.Hostname, owner: int(r.rootID())}
	var err error
	if f.hostname == "" {
		if f.hostname, err = os.Hostname(); err != nil {
			return f, fmt.Errorf("read the host's name: %w", err)
		}
	}
	if strings.ContainsAny(f.hostname, "\n \t") {
		return f, fmt.Errorf("pod config: hostname %q: %w", f.hostname, errdef.ErrInvalid)
	}
	if f.resolv, err = resolvConf(r.Config.DNS); err != nil {
		return f, err
	}
	if r.onHostNetwork() {
		f.hosts, err = os.ReadFile(hostHosts)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return f, fmt.Errorf("read the host's hosts file: %w", err)
		}
		return f, nil
	}
	f.hosts = hostsFile(f.hostname, r.ips())
	return f, nil
}

func hostsFile(hostname string, ips []netip.Addr) []byte {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	for _, ip := range ips {
		fmt.Fprintf(&b, "%s\t%s\n", ip, hostname)
	}
	return []byte(b.String())
}

// resolvConf is the kubelet's DNS configuration, or the host's when there is none.
func resolvConf(dns *DNS) ([]byte, error) {
	if dns == nil || len(dns.Servers)+len(dns.Searches)+len(dns.Options) == 0 {
		return hostResolvConf()
	}
	var b strings.Builder
	line := func(words ...string) error {
		for _, w := range words {
			if w == "" || strings.ContainsAny(w, " \t\n\r#;") {
				return fmt.Errorf("pod config: dns_config: %q: %w", w, errdef.ErrInvalid)
			}
		}
		b.WriteString(strings.Join(words, " ") + "\n")
		return nil
	}
	var errs []error
	if len(dns.Searches) > 0 {
		errs = append(errs, line(append([]string{"search"}, dns.Searches...)...))
	}
	for _, server := range dns.Servers {
		errs = append(errs, line("nameserver", server))
	}
	if len(dns.Options) > 0 {
		errs = append(errs, line(append([]string{"options"}, dns.Options...)...))
	}
	return []byte(b.String()), errors.Join(errs...)
}

func hostResolvConf() ([]byte, error) {
	body, err := os.ReadFile(hostResolv)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the host's resolv.conf: %w", err)
	}
	if strings.Contains(string(body), "nameserver "+stubAddress) {
		if real, err := os.ReadFile(hostUpstreams); err == nil {
			return real, nil
		}
	}
	return body, nil
}

// mountShm gives the pod's containers one /dev/shm, as a shared IPC namespace wants.
func (s *Service) mountShm(id ID) error {
	dir := s.paths.file(id, dirShm)
	if err := file.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("make /dev/shm: %w", err)
	}
	tree, err := mount.New("tmpfs", "shm", []string{"mode=1777", fmt.Sprintf("size=%d", shmSize)}, mount.Attr{NoSuid: true, NoDev: true, NoExec: true})
	if err != nil {
		return fmt.Errorf("make /dev/shm: %w", err)
	}
	defer tree.Close()
	if err := mount.AttachPath(tree, dir); err != nil {
		return fmt.Errorf("mount /dev/shm: %w", err)
	}
	return nil
}

func (s *Service) unmountShm(id ID) error {
	err := unix.Unmount(s.paths.file(id, dirShm), unix.MNT_DETACH)
	if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return fmt.Errorf("unmount /dev/shm: %w", err)
}

// makeLogDir makes the pod's log directory, which is never deleted here: the kubelet
// owns it.
func makeLogDir(dir string) error {
	if dir == "" {
		return nil
	}
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("pod config: log_directory %q is not absolute: %w", dir, errdef.ErrInvalid)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make log directory: %w", err)
	}
	return nil
}
