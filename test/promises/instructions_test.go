package promises

import (
	"encoding/binary"
	"errors"
	"path/filepath"
	"strconv"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// counter counts instructions in user space of a process, of its threads and of all that
// they start from now on.
type counter []int

// instructions is an error where the processor's counters cannot be had: virtual machines
// mostly have none.
func instructions(t *testing.T, pids ...int) (counter, error) {
	t.Helper()
	attr := unix.PerfEventAttr{
		Type: unix.PERF_TYPE_HARDWARE, Config: unix.PERF_COUNT_HW_INSTRUCTIONS, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{})),
		Bits: unix.PerfBitInherit | unix.PerfBitExcludeKernel | unix.PerfBitExcludeHv,
	}
	var c counter
	t.Cleanup(func() { c.close() })
	for _, pid := range pids {
		for _, task := range glob(t, filepath.Join("/proc", strconv.Itoa(pid), "task/*")) {
			fd, err := unix.PerfEventOpen(&attr, atoi(t, filepath.Base(task)), -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
			if errors.Is(err, unix.ESRCH) {
				continue // the thread has ended
			}
			if err != nil {
				return nil, err
			}
			c = append(c, fd)
		}
	}
	return c, nil
}

func (c counter) read(t *testing.T) (sum int) {
	t.Helper()
	for _, fd := range c {
		var b [8]byte
		if n, err := unix.Read(fd, b[:]); err != nil || n != len(b) {
			t.Fatalf("read counter: %d, %v", n, err)
		}
		sum += int(binary.NativeEndian.Uint64(b[:]))
	}
	return sum
}

func (c counter) close() {
	for _, fd := range c {
		_ = unix.Close(fd)
	}
}

// TestInstructions prints what a pod's life costs the processor, apart from the kernel.
func TestInstructions(t *testing.T) {
	n := newNode(t)
	c, err := instructions(t, n.Pid(), monitor(t))
	if err != nil {
		// Not a skip: nothing is wrong with the machine, and the other counts hold the promise.
		t.Logf("%-62s not counted: this machine has no hardware counters (perf_event_open: %v)", "instructions per pod life", err)
		return
	}
	for range 3 {
		n.stop(t, n.start(t, "wait"))
	}
	const rounds = 20
	before := c.read(t)
	for range rounds {
		n.stop(t, n.start(t, "wait"))
	}
	// No limit yet: none of the machines that limits were set on has counters.
	t.Logf("%-62s %7d", "thousand instructions per pod life", (c.read(t)-before)/1000/rounds)
}
