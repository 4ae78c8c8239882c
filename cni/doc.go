// Package cni gives pods their network: it reads CNI configuration, runs plugins in
// the order the configuration names, and remembers enough to take everything back.
//
// It refuses to attach a pod without a usable configuration, a result without an IP
// address (the kubelet would re-create such a pod for ever), and options of the
// built-in plugins that they do not implement.
//
// Plugins are run by executing the binary of their name. The types bridge, host-local,
// portmap and loopback also exist in this process (package builtin): executing the
// binaries costs 12 to 90 ms per pod, the same work over netlink about 1 ms. The usual
// list of them is read once and used without libcni.
//
// Goroutines: one per Network, which runs the STATUS verb of CNI 1.1 plugins when
// Ready asks for it; Close waits for it. Everything else runs on the caller's.
//
// On disk, below Config.CacheDir, which must survive a reboot because address
// managers may keep state elsewhere: pods/ID.json, written before the first plugin is
// run and removed after the last one was undone; and results/, libcni's own cache.
// Below Config.StateDir: pod-cidr.json, and of the default network pods/ID.json and
// networks/, its address files. In the kernel: what plugins make, the built-in bridge, and the
// nftables table "inet cri_runtime", which outlive the process on purpose.
package cni
