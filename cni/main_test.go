package cni_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// insideEnv tells the second process that it is in namespaces of its own.
const insideEnv = "CRI_RUNTIME_TEST_NETNS"

// TestMain runs the tests in a network and mount namespace of their own, so that
// bridges, rules and sysctls of the "node" never touch the machine's.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 || os.Getenv(insideEnv) != "" {
		if os.Getenv(insideEnv) != "" {
			// The process's first thread cannot end: were it to enter a pod's
			// namespace for a test, it would pin it.
			runtime.LockOSThread()
			if err := prepareNode(); err != nil {
				fmt.Fprintln(os.Stderr, "prepare node:", err)
				os.Exit(1)
			}
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if ee, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(ee.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "run in namespaces:", err)
		os.Exit(1)
	}
}

func prepareNode() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	// Package net finds out once per process whether there is IPv6, in the namespace of
	// whoever listens first. In one whose loopback is down it would find none, and no test
	// after that would listen on it.
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		return err
	}
	return l.Close()
}
