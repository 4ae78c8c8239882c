package launch

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// mountOptions are the options of one mount, sorted by what they mean.
type mountOptions struct {
	bind, recursive      bool
	set, setRecursive    uint64 // MOUNT_ATTR flags
	clear                uint64
	propagation          uint64
	propagationRecursive bool
	idmap, idmapRecurse  bool
	data                 []string
}

// attrOptions are flags of a mount. With a leading r they hold for the whole tree.
var attrOptions = map[string]uint64{
	"ro": unix.MOUNT_ATTR_RDONLY, "nosuid": unix.MOUNT_ATTR_NOSUID, "nodev": unix.MOUNT_ATTR_NODEV,
	"noexec": unix.MOUNT_ATTR_NOEXEC, "nodiratime": unix.MOUNT_ATTR_NODIRATIME,
	"nosymfollow": unix.MOUNT_ATTR_NOSYMFOLLOW,
}

// atimeOptions exclude each other: the kernel wants the old one cleared.
var atimeOptions = map[string]uint64{
	"relatime": unix.MOUNT_ATTR_RELATIME, "noatime": unix.MOUNT_ATTR_NOATIME, "strictatime": unix.MOUNT_ATTR_STRICTATIME,
}

// weakOptions never take a restriction away: a source that the host mounted
// read-only or without set-uid programs stays so.
var weakOptions = map[string]bool{
	"rw": true, "suid": true, "dev": true, "exec": true, "diratime": true, "symfollow": true, "atime": true,
	"defaults": true, "rrw": true, "rsuid": true, "rdev": true, "rexec": true, "async": true,
}

var propagations = map[string]uint64{
	"private": unix.MS_PRIVATE, "slave": unix.MS_SLAVE, "shared": unix.MS_SHARED, "unbindable": unix.MS_UNBINDABLE,
}

func parseOptions(options []string) (mountOptions, error) { //nolint:cyclop // one case per option
	var m mountOptions
	for _, o := range options {
		short := strings.TrimPrefix(o, "r")
		switch {
		case o == "":
		case weakOptions[o]:
		case o == "bind":
			m.bind = true
		case o == "rbind":
			m.bind, m.recursive = true, true
		case o == "idmap":
			m.idmap = true
		case o == "ridmap":
			m.idmap, m.idmapRecurse = true, true
		case o == "remount" || o == "tmpcopyup" || o == "mand" || o == "iversion":
			return m, fmt.Errorf("mount option %q is not supported: %w", o, errdef.ErrInvalid)
		case propagations[o] != 0:
			m.propagation, m.propagationRecursive = propagations[o], false
		case short != o && propagations[short] != 0:
			m.propagation, m.propagationRecursive = propagations[short], true
		case attrOptions[o] != 0:
			m.set |= attrOptions[o]
		case short != o && attrOptions[short] != 0:
			m.setRecursive |= attrOptions[short]
		default:
			if v, ok := atimeOptions[o]; ok {
				m.set, m.clear = m.set&^unix.MOUNT_ATTR__ATIME|v, m.clear|unix.MOUNT_ATTR__ATIME
			} else {
				m.data = append(m.data, o)
			}
		}
	}
	if m.bind && len(m.data) != 0 {
		return m, fmt.Errorf("mount option %q is unknown: %w", m.data[0], errdef.ErrInvalid)
	}
	return m, nil
}
