package pidfd

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Stat is the part of /proc/PID/stat that tells processes apart.
type Stat struct {
	State byte   // R, S, D, Z, ...
	PPid  int    // in the reader's pid namespace
	Start uint64 // ticks after boot; with the pid it names a process for ever
}

// ReadStat reads a process's state; errdef.ErrNotFound when there is none.
func ReadStat(pid int) (Stat, error) {
	name := "/proc/" + strconv.Itoa(pid) + "/stat"
	b, err := os.ReadFile(name)
	if err != nil {
		if os.IsNotExist(err) {
			err = kind(unix.ESRCH)
		}
		return Stat{}, fmt.Errorf("read state of process %d: %w", pid, err)
	}
	return parseStat(b)
}

// StartTime is field 22 of /proc/PID/stat.
func StartTime(pid int) (uint64, error) {
	s, err := ReadStat(pid)
	return s.Start, err
}

// parseStat looks for the last parenthesis: a process may have any in its name.
func parseStat(b []byte) (Stat, error) {
	i := bytes.LastIndexByte(b, ')')
	f := bytes.Fields(b[i+1:])
	if i < 0 || len(f) < 20 {
		return Stat{}, fmt.Errorf("parse process state: %d fields after the name, want 20", len(f))
	}
	ppid, err := strconv.Atoi(string(f[1]))
	if err != nil {
		return Stat{}, fmt.Errorf("parse process state: %w", err)
	}
	start, err := strconv.ParseUint(string(f[19]), 10, 64)
	if err != nil {
		return Stat{}, fmt.Errorf("parse process state: %w", err)
	}
	return Stat{State: f[0][0], PPid: ppid, Start: start}, nil
}
