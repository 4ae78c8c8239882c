package spec

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// Real-time signals as the C libraries number them; the kernel's own first two (32
// and 33) belong to the threading library.
const (
	sigRTMin = 34
	sigRTMax = 64
)

// signals are the numbers of Linux on amd64, arm64 and most others.
var signals = map[string]int{
	"HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "IOT": 6, "BUS": 7,
	"FPE": 8, "KILL": 9, "USR1": 10, "SEGV": 11, "USR2": 12, "PIPE": 13, "ALRM": 14,
	"TERM": 15, "STKFLT": 16, "CHLD": 17, "CLD": 17, "CONT": 18, "STOP": 19, "TSTP": 20,
	"TTIN": 21, "TTOU": 22, "URG": 23, "XCPU": 24, "XFSZ": 25, "VTALRM": 26, "PROF": 27,
	"WINCH": 28, "IO": 29, "POLL": 29, "PWR": 30, "SYS": 31,
	"RTMIN": sigRTMin, "RTMAX": sigRTMax,
}

// ParseSignal reads a signal's number or name, such as "15", "TERM", "SIGRTMIN+3".
func ParseSignal(s string) (int, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > sigRTMax {
			return 0, fmt.Errorf("signal %q is not between 1 and %d: %w", s, sigRTMax, errdef.ErrInvalid)
		}
		return n, nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if n, ok := signals[name]; ok {
		return n, nil
	}
	for _, base := range []string{"RTMIN+", "RTMAX-"} {
		rest, ok := strings.CutPrefix(name, base)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(rest, 10, 8)
		if err != nil || n > sigRTMax-sigRTMin {
			break
		}
		if base == "RTMIN+" {
			return sigRTMin + int(n), nil
		}
		return sigRTMax - int(n), nil
	}
	return 0, fmt.Errorf("signal %.40q is not known: %w", s, errdef.ErrInvalid)
}
