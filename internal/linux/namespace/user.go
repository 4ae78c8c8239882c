package namespace

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// maxRanges is the kernel's UID_GID_MAP_MAX_EXTENTS.
const maxRanges = 340

func (m *UserMap) check() error {
	for what, ids := range map[string][]IDMap{"uid": m.UIDs, "gid": m.GIDs} {
		if len(ids) == 0 || len(ids) > maxRanges {
			return fmt.Errorf("user namespace: %d %s ranges, want 1 to %d: %w", len(ids), what, maxRanges, errdef.ErrInvalid)
		}
		for _, r := range ids {
			// 2^32-1 is "no id" to the kernel; sums beyond it would wrap to root.
			if r.Size == 0 || uint64(r.Container)+uint64(r.Size) > math.MaxUint32 || uint64(r.Host)+uint64(r.Size) > math.MaxUint32 {
				return fmt.Errorf("user namespace: %s range %d -> %d, size %d: outside 32 bits: %w",
					what, r.Container, r.Host, r.Size, errdef.ErrInvalid)
			}
		}
	}
	return nil
}

// root is the host's id of the namespace's root user, 0 when it has none.
func (m *UserMap) root() int {
	for _, r := range m.UIDs {
		if r.Container == 0 {
			return int(r.Host)
		}
	}
	return 0
}

// write gives the process behind proc its maps; the kernel takes each only once
// and in one write.
func (m *UserMap) write(proc string) error {
	for file, ids := range map[string][]IDMap{"uid_map": m.UIDs, "gid_map": m.GIDs} {
		var b strings.Builder
		for _, r := range ids {
			fmt.Fprintf(&b, "%d %d %d\n", r.Container, r.Host, r.Size)
		}
		f, err := os.OpenFile(proc+"/"+file, os.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("write %s: %w", file, err)
		}
		_, err = f.WriteString(b.String())
		if e := f.Close(); err == nil {
			err = e
		}
		if errors.Is(err, unix.EINVAL) { // the kernel alone compares the ranges with each other
			return fmt.Errorf("write %s: ranges that overlap: %w: %w", file, err, errdef.ErrInvalid)
		}
		if err != nil {
			return fmt.Errorf("write %s: %w", file, err)
		}
	}
	return nil
}
