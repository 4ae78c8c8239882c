package stage

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine says where it was measured.
func Machine() map[string]string {
	m := map[string]string{"kernel": kernel(), "processors": fmt.Sprint(runtime.NumCPU()), "load before": LoadAverage()}
	for file, keys := range map[string][]string{"/proc/cpuinfo": {"model name"}, "/proc/meminfo": {"MemTotal"}, "/etc/os-release": {"PRETTY_NAME"}} {
		body, _ := os.ReadFile(file)
		for line := range strings.Lines(string(body)) {
			key, value, ok := strings.Cut(line, ":")
			if !ok {
				key, value, _ = strings.Cut(line, "=")
			}
			if key = strings.TrimSpace(key); slices.Contains(keys, key) && m[key] == "" {
				m[key] = strings.Trim(strings.TrimSpace(value), `"`)
			}
		}
	}
	return m
}

func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err.Error()
	}
	return unix.ByteSliceToString(u.Release[:])
}

// FirstLine is the first line that a program prints; "" when it fails.
func FirstLine(ctx context.Context, program string, args ...string) string {
	out, _ := exec.CommandContext(ctx, program, args...).CombinedOutput()
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}

// Disturbed says what is wrong with a measurement of some length in seconds, in which for
// a time the whole machine lacked memory and the hypervisor ran something else; "" when
// nothing is. The rule is the same for every runtime; what was disturbed counts all the same.
func Disturbed(length, memoryStall, stolen float64) string {
	const share = 0.05
	switch {
	case memoryStall > share*length:
		return fmt.Sprintf("the machine lacked memory for %.1f of %.1f s", memoryStall, length)
	case stolen > share*length:
		return fmt.Sprintf("the hypervisor took %.1f CPU s in %.1f s", stolen, length)
	}
	return ""
}
