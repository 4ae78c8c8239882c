// Command probe tries what a shell cannot, from inside a container: it is built without
// cgo and becomes part of the tests' image, setuid root.
//
//	euid      print the effective user
//	keyctl    ask for a key ring, which the default seccomp profile refuses
//	nofile    print the soft and hard limit of open files
package main

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: probe euid|keyctl|nofile")
		os.Exit(2)
	}
	switch os.Args[1] {
	case "euid":
		fmt.Println(os.Geteuid())
	case "keyctl":
		if _, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, true); err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println("ok")
	case "nofile":
		var limit syscall.Rlimit
		if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			fmt.Fprintln(os.Stderr, "read limit:", err)
			os.Exit(1)
		}
		fmt.Println(limit.Cur, limit.Max)
	}
}
