package lab

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// RemoveLinks takes away all network links but loopback, and all packet filter tables.
func RemoveLinks(t testing.TB) {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal("list links: ", err)
	}
	for _, link := range links {
		if link.Type() == "bridge" || link.Type() == "veth" {
			_ = netlink.LinkDel(link) // one end of a pair takes the other along
		}
	}
	nft, err := nftables.New()
	if err != nil {
		t.Fatal("open packet filter: ", err)
	}
	nft.FlushRuleset()
	if err := nft.Flush(); err != nil {
		t.Fatal("flush packet filter: ", err)
	}
}

// NewBootID shows everybody in here another boot id, as after a reboot, until the test ends.
func NewBootID(t testing.TB, dir string) {
	t.Helper()
	const path = "/proc/sys/kernel/random/boot_id"
	file := filepath.Join(dir, "boot_id")
	if err := os.WriteFile(file, []byte("00000000-1111-4222-8333-444444444444\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(file, path, "", unix.MS_BIND, ""); err != nil {
		t.Fatal("change boot id: ", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
}
