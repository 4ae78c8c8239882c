// Package fault breaks what a node depends on – a network plugin, limits, disks,
// registries – and holds that the answer names what broke, that nothing is left behind
// and that everything works again afterwards.
//
// Each test has a daemon of its own (package test/container/node), goes through its
// socket, and ends with a look at what is left. The network plugin that fails on
// command is in the directory plugin.
package fault
