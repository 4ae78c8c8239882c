package cri

import (
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// signals holds Linux' number of each of CRI's signals, by CRI's number: the names
// changed in v0.37 ("SIGTERM" became "SIGNAL_SIGTERM"), the numbers never do. Linux'
// numbers are those of amd64 and arm64. Index 0 is "what the runtime uses by default".
var signals = [...]int{
	0,
	6, 14, 7, 17, 17, 18, 8, 1, 4, 2, // ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT
	29, 6, 9, 13, 29, 27, 30, 3, 11, 16, // IO IOT KILL PIPE POLL PROF PWR QUIT SEGV STKFLT
	19, 31, 15, 5, 20, 21, 22, 23, 10, 12, // STOP SYS TERM TRAP TSTP TTIN TTOU URG USR1 USR2
	26, 28, 24, 25, // VTALRM WINCH XCPU XFSZ
	34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, // RTMIN to RTMIN+15
	50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63, 64, // RTMAX-14 to RTMAX
}

func decodeSignal(f field, s pb.Signal) (int, error) {
	if s < 0 || int(s) >= len(signals) {
		return 0, f.refuse("%d is unknown", int32(s))
	}
	return signals[s], nil
}

// encodeSignal gives the first of CRI's signals with that number.
func encodeSignal(n int) pb.Signal {
	for s, m := range signals {
		if m == n {
			return pb.Signal(int32(s))
		}
	}
	return pb.Signal_SIGNAL_RUNTIME_DEFAULT
}
