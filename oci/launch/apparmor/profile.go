package apparmor

import "strings"

// abi is the set of rule kinds that the profile was written for. Later ones mediate
// more, unix sockets for one, and would deny what the profile does not mention.
const abi = "3.0"

// defaultProfile is what the text depends on.
type defaultProfile struct {
	Name   string
	ABI    string // "" where the distribution has no such file
	Daemon string // our own profile, "" when unconfined
}

// The profile allows all that capabilities and permissions allow, but for the parts
// of procfs and sysfs that belong to the node, and mounting. It is the second lock on
// doors that masked and read-only paths close too, for containers that could open
// those. It includes no file of the distribution's. Denials win over permissions;
// "[^x]" is any character but x, "*" stays in a directory, "**" does not.
const profileText = `%ABI%profile "%NAME%" flags=(attach_disconnected,mediate_deleted) {
  network,
  capability,
  file,
  umount,

  # An interface to kernel code that no network program needs.
  deny network alg,

  # Who may end processes of a container: the node, OCI runtimes, itself.
  signal (receive) peer=unconfined,
  signal (receive) peer=runc,
  signal (receive) peer=crun,
%DAEMON%  signal (send,receive) peer="%NAME%",
  ptrace (trace,tracedby,read,readby) peer="%NAME%",

  # A container changes no mounts: other rules go by path.
  deny mount,

  # In /proc: files of processes only, and of /proc/sys the settings of System V
  # queues, semaphores and memory, which belong to the IPC namespace.
  deny /proc/* w,
  deny /proc/[^1-9s]*/** w,
  deny /proc/s[^ey]*/** w,
  deny /proc/sysv*/** w,
  deny /proc/sys/[^k]** w,
  deny /proc/sys/k[^e]** w,
  deny /proc/sys/kernel/[^ms]** w,
  deny /proc/sys/kernel/m[^s]** w,
  deny /proc/sys/kernel/s[^eh]** w,
  deny /proc/sys/kernel/se[^m]** w,
  deny /proc/sys/kernel/sh[^m]** w,
  deny /proc/{sysrq-trigger,kcore} rwklx,

  # In /sys: cgroups only.
  deny /sys/[^f]** wklx,
  deny /sys/f[^s]** wklx,
  deny /sys/fs/[^c]** wklx,
  deny /sys/fs/c[^g]** wklx,
  deny /sys/fs/cg[^r]** wklx,
  deny /sys/firmware/{,**} rwklx,
  deny /sys/devices/virtual/powercap/{,**} rwklx,
  deny /sys/kernel/security/{,**} rwklx,
}
`

// text puts the host's facts in. It uses no text/template: that calls methods by names
// known only at run time, and a linker that sees it keeps every exported method of every
// type of the program, a sixth of its size.
func (d defaultProfile) text() string {
	abi, daemon := "", ""
	if d.ABI != "" {
		abi = "abi <" + d.ABI + ">,\n\n"
	}
	if d.Daemon != "" {
		daemon = "  signal (receive) peer=\"" + d.Daemon + "\",\n"
	}
	return strings.NewReplacer("%ABI%", abi, "%DAEMON%", daemon, "%NAME%", d.Name).Replace(profileText)
}
