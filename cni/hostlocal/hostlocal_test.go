package hostlocal

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

func request(dir, id, ipam, rest string) Request {
	return Request{ContainerID: id, IfName: "eth0", Conf: fmt.Appendf(nil, `{"cniVersion":"1.0.0","name":"net","ipam":{"dataDir":%q,%s}%s}`, dir, ipam, rest)}
}

func TestRoundRobinAndLayout(t *testing.T) {
	dir := t.TempDir()
	const ipam = `"ranges":[[{"subnet":"10.1.0.0/29","rangeStart":"10.1.0.2","rangeEnd":"10.1.0.4"}],[{"subnet":"fd00::/64"}]]`
	var got []string
	for i := range 3 {
		res, err := Add(t.Context(), request(dir, fmt.Sprint("c", i), ipam, ""))
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, res.IPs[0].Address.String(), res.IPs[1].Address.String())
		if g := res.IPs[0].Gateway.String(); g != "10.1.0.1" {
			t.Errorf("gateway %s", g)
		}
	}
	if want := []string{"10.1.0.2/29", "fd00::2/64", "10.1.0.3/29", "fd00::3/64", "10.1.0.4/29", "fd00::4/64"}; !slices.Equal(got, want) {
		t.Errorf("addresses %v, want %v", got, want)
	}
	if _, err := Add(t.Context(), request(dir, "full", ipam, "")); !errors.Is(err, errdef.ErrExhausted) {
		t.Errorf("full: %v", err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "net/10.1.0.3"))
	if err != nil || string(b) != "c1\r\neth0" {
		t.Errorf("file: %q, %v", b, err)
	}
	b, _ = os.ReadFile(filepath.Join(dir, "net/last_reserved_ip.0"))
	if string(b) != "10.1.0.4" {
		t.Errorf("last reserved: %q", b)
	}
	// A freed address comes again only after the others were tried.
	if err := Del(t.Context(), request(dir, "c0", ipam, "")); err != nil {
		t.Fatal(err)
	}
	res, err := Add(t.Context(), request(dir, "again", ipam, ""))
	if err != nil || res.IPs[0].Address.IP.String() != "10.1.0.2" || res.IPs[1].Address.IP.String() == "fd00::2" {
		t.Errorf("again: %v, %v", res, err)
	}
}

func TestFailureLeavesNoAddress(t *testing.T) {
	dir := t.TempDir()
	// The second set is full, so the first set's address must be given back.
	const ipam = `"ranges":[[{"subnet":"10.1.0.0/24"}],[{"subnet":"10.2.0.0/30","rangeStart":"10.2.0.1","rangeEnd":"10.2.0.1"}]]`
	if _, err := Add(t.Context(), request(dir, "c", ipam, "")); !errors.Is(err, errdef.ErrExhausted) {
		t.Fatalf("add: %v", err)
	}
	if err := Check(t.Context(), request(dir, "c", ipam, "")); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("check: %v", err)
	}
}

func TestRequestedAddresses(t *testing.T) {
	dir := t.TempDir()
	const ipam = `"subnet":"10.1.0.0/24"`
	r := request(dir, "c", ipam, "")
	r.Args = "IgnoreUnknown=1;IP=10.1.0.77"
	if res, err := Add(t.Context(), r); err != nil || res.IPs[0].Address.String() != "10.1.0.77/24" {
		t.Errorf("by argument: %v, %v", res, err)
	}
	if _, err := Add(t.Context(), request(dir, "d", ipam, `,"runtimeConfig":{"ips":["10.1.0.77/24"]}`)); !errors.Is(err, errdef.ErrExists) {
		t.Errorf("taken: %v", err)
	}
	if _, err := Add(t.Context(), request(dir, "d", ipam, `,"args":{"cni":{"ips":["10.9.0.1"]}}`)); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("in no range: %v", err)
	}
	if err := Check(t.Context(), request(dir, "d", ipam, "")); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("refused requests left an address: %v", err)
	}
}

func TestDelWithAResultOfAnotherPlugin(t *testing.T) {
	dir := t.TempDir()
	const ipam = `"ranges":[[{"subnet":"10.1.0.0/24"}]]`
	if _, err := Add(t.Context(), request(dir, "c", ipam, "")); err != nil {
		t.Fatal(err)
	}
	if err := Del(t.Context(), request(dir, "c", ipam, `,"prevResult":{"cniVersion":"1.0.0","ips":[{"address":"10.7.7.7/24"}]}`)); err != nil {
		t.Fatal(err)
	}
	if err := Check(t.Context(), request(dir, "c", ipam, "")); !errors.Is(err, errdef.ErrNotFound) {
		t.Errorf("address left: %v", err)
	}
}

func TestGCKeepsValidAttachments(t *testing.T) {
	dir := t.TempDir()
	const ipam = `"subnet":"10.1.0.0/24"`
	for _, id := range []string{"a", "b"} {
		if _, err := Add(t.Context(), request(dir, id, ipam, "")); err != nil {
			t.Fatal(err)
		}
	}
	// What a power cut leaves of a file.
	if err := os.WriteFile(filepath.Join(dir, "net/10.1.0.50"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := GC(t.Context(), request(dir, "", ipam, `,"cni.dev/valid-attachments":[{"containerID":"b","ifname":"eth0"}]`)); err != nil {
		t.Fatal(err)
	}
	left, _ := filepath.Glob(filepath.Join(dir, "net/10.*"))
	if len(left) != 1 || filepath.Base(left[0]) != "10.1.0.3" {
		t.Errorf("left: %v", left)
	}
}

func TestBadRanges(t *testing.T) {
	for name, ipam := range map[string]string{
		"none":               `"type":"host-local"`,
		"not a subnet":       `"subnet":"10.1"`,
		"host bits":          `"subnet":"10.1.0.1/24"`,
		"too small":          `"subnet":"10.1.0.0/31"`,
		"start outside":      `"subnet":"10.1.0.0/24","rangeStart":"10.2.0.1"`,
		"end before start":   `"subnet":"10.1.0.0/24","rangeStart":"10.1.0.9","rangeEnd":"10.1.0.8"`,
		"sets overlap":       `"ranges":[[{"subnet":"10.1.0.0/24"}],[{"subnet":"10.1.0.0/16"}]]`,
		"families in a set":  `"ranges":[[{"subnet":"10.1.0.0/24"},{"subnet":"fd00::/64"}]]`,
		"name leaves folder": `"subnet":"10.1.0.0/24"},"name":"../x","x":{`,
	} {
		if _, err := Add(t.Context(), request(t.TempDir(), "c", ipam, "")); !errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Every address of a set is offered once, whatever was handed out last.
func TestFromOffersAll(t *testing.T) {
	set, err := newSet([]rangeConf{{Subnet: "10.1.0.0/29"}, {Subnet: "10.2.0.0/30"}})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6", "10.2.0.2"}
	for _, last := range append(slices.Clone(want), "10.1.0.1", "0.0.0.0", "fd00::1") {
		var got []string
		a := netip.MustParseAddr(last)
		set.from(a, func(ip netip.Addr, _ ipRange) bool { got = append(got, ip.String()); return false })
		if i := slices.Index(want, last); i >= 0 && got[len(got)-1] != last {
			t.Errorf("after %s: %v, it should come last", last, got)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("after %s: %v, want %v", last, got, want)
		}
	}
}
