package mount

import (
	"fmt"
	"os"
)

// EROFS mounts an index whose files' data lie in device, without a loop device: 6.12.
// The files are named by descriptor, so the length of their paths does not matter, and
// what is mounted is what the caller has open; it may close both afterwards. The kernel
// trusts what it reads: only an index of our own making may come here.
func EROFS(index, device *os.File) (*os.File, error) {
	f, err := New("erofs", procFd(index), []string{"device=" + procFd(device)}, Attr{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("mount index %s with data %s: %w", index.Name(), device.Name(), err)
	}
	return f, nil
}
