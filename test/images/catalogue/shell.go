package catalogue

import (
	"debug/elf"
	"fmt"
	"os/exec"
	"strings"
)

// shellTree is the root file system of all images with a shell. All names of
// busybox are hard links, as in the original: a mask or read-only mount on one
// of them must not reach the others.
func shellTree(busybox string) (*tree, error) {
	t := newTree()
	for _, dir := range []string{"dev", "etc", "home", "proc", "run", "sys", "usr/bin", "usr/sbin", "var/log", "var/www"} {
		t.dir(dir, 0o755)
	}
	t.dir("root", 0o700)
	t.dir("tmp", 0o1777)
	t.symlink("var/run", "/run")
	t.file("etc/passwd", 0o644, text(
		"root:x:0:0:root:/root:/bin/sh", "daemon:x:1:1:daemon:/usr/sbin:/bin/false", "bin:x:2:2:bin:/bin:/bin/false",
		"www-data:x:33:33:www-data:/var/www:/bin/false", "nobody:x:65534:65534:nobody:/home:/bin/false"))
	t.file("etc/group", 0o644, text(
		"root:x:0:", "daemon:x:1:", "bin:x:2:", "tty:x:5:", "www-data:x:33:", "users:x:100:", "nobody:x:65534:"))
	t.file("etc/shadow", 0o640, text("root:*:::::::", "nobody:*:::::::"))

	if err := t.copyFile("bin/busybox", 0o755, busybox); err != nil {
		return nil, err
	}
	list, err := exec.Command(busybox, "--list").Output() //nolint:noctx // a program of ours that prints a list
	if err != nil {
		return nil, fmt.Errorf("list applets of %s: %w", busybox, err)
	}
	for name := range strings.FieldsSeq(string(list)) {
		if name != "busybox" {
			t.hardlink("bin/"+name, "bin/busybox")
		}
	}
	return t, nil
}

// isStatic tells whether file is a program without an interpreter.
func isStatic(file string) bool {
	f, err := elf.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return false
		}
	}
	return true
}
