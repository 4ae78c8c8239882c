package netdev

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/cri-runtime/cri-runtime/internal/linux/namespace"
	"github.com/cri-runtime/cri-runtime/internal/testkit"
)

const text = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       2    0    0    0     0          0         0      100       2    0    0    0     0       0          0
  eth0: 18446744073709551615 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
  net1:0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
`

func TestParse(t *testing.T) {
	want := []Interface{
		{Name: "eth0", RxBytes: 1<<64 - 1, RxPackets: 1, RxErrors: 2, RxDrops: 3, TxBytes: 8, TxPackets: 9, TxErrors: 10, TxDrops: 11},
		{Name: "net1"},
	}
	for _, last := range [][]Interface{nil, {{Name: "net1"}, {Name: "net1"}}, want} {
		if got := parse([]byte(text), last); !slices.Equal(got, want) {
			t.Errorf("got %+v\nwant %+v", got, want)
		}
	}
	if got := parse([]byte("no table"), want); len(got) != 0 {
		t.Errorf("got %+v, want nothing", got)
	}
}

// TestRead reads two namespaces, from other threads than those that opened the tables,
// and sees that a table that is closed lets its namespace go.
func TestRead(t *testing.T) {
	testkit.Need(t, testkit.Root)
	testkit.Leaks(t)
	dir := t.TempDir()
	var tables []*Table
	for _, name := range []string{"a", "b"} {
		pins, err := namespace.Pin(filepath.Join(dir, name), namespace.Spec{Net: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := namespace.Unpin(filepath.Join(dir, name)); err != nil {
				t.Error(err)
			}
		})
		path := pins[namespace.Net]
		if err := namespace.Do(path, namespace.Net, func() error { return links(name) }); err != nil {
			t.Fatal(err)
		}
		table, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer table.Close()
		tables = append(tables, table)
	}
	for i, table := range tables {
		own := []string{"a", "b"}[i]
		for range 2 {
			got, err := table.Read(nil)
			// The kernel may make some of its own, such as sit0.
			got = slices.DeleteFunc(got, func(i Interface) bool { return !strings.HasPrefix(i.Name, own) })
			if err != nil || len(got) != 41 || got[0].Name != own || got[0].TxPackets+got[0].TxDrops+got[0].RxBytes != 0 {
				t.Errorf("%s: got %d interfaces, %+v, %v", own, len(got), got, err)
			}
		}
	}
	if _, err := Open(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no namespace: got %v", err)
	}
}

// links makes more interfaces than fit into a page.
func links(first string) error {
	for i := range 41 {
		la := netlink.NewLinkAttrs()
		la.Name = first
		if i > 0 {
			la.Name += string(rune('A'+i%26)) + string(rune('A'+i/26))
		}
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: la}); err != nil {
			return err
		}
	}
	return nil
}

func BenchmarkRead(b *testing.B) {
	testkit.Need(b, testkit.Root)
	table, err := Open("/proc/self/ns/net")
	if err != nil {
		b.Fatal(err)
	}
	defer table.Close()
	var last []Interface
	for b.Loop() {
		if last, err = table.Read(last); err != nil {
			b.Fatal(err)
		}
	}
}
