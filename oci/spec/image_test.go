package spec

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

func TestMerge(t *testing.T) {
	image := ImageConfig{Entrypoint: []string{"/e"}, Cmd: []string{"c"}, Env: []string{"A=1", "B=2", "UNSET", "=x"}, WorkingDir: "w", StopSignal: "SIGQUIT", Volumes: []string{"/v/", "/m", "/v"}}
	for name, tc := range map[string]struct {
		image ImageConfig
		req   Request
		want  Merged
	}{
		"image":   {image, Request{}, Merged{Args: []string{"/e", "c"}, Env: image.Env[:2], Cwd: "/w", StopSignal: 3, Volumes: []string{"/m", "/v"}}},
		"args":    {image, Request{Args: []string{"x"}, StopSignal: 9}, Merged{Args: []string{"/e", "x"}, Env: image.Env[:2], Cwd: "/w", StopSignal: 9, Volumes: []string{"/m", "/v"}}},
		"command": {image, Request{Command: []string{"x"}, WorkingDir: "/q/"}, Merged{Args: []string{"x"}, Env: image.Env[:2], Cwd: "/q", StopSignal: 3, Volumes: []string{"/m", "/v"}}},
		"both": {image, Request{Command: []string{"x"}, Args: []string{"y"}, Env: []string{"B=3", "C=", "A=x=y"}, Mounted: []string{"/m"}},
			Merged{Args: []string{"x", "y"}, Env: []string{"A=x=y", "B=3", "C="}, Cwd: "/w", StopSignal: 3, Volumes: []string{"/v"}}},
		"reset entrypoint": {ImageConfig{Entrypoint: []string{""}, Cmd: []string{"c"}}, Request{}, Merged{Args: []string{"c"}, Cwd: "/", StopSignal: 15}},
	} {
		if got, err := Merge(tc.image, tc.req); err != nil || !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, err, tc.want)
		}
	}
	for want, image := range map[string]ImageConfig{"no command": {}, "image config: stop signal": {Cmd: []string{"x"}, StopSignal: "HALT"}} {
		if _, err := Merge(image, Request{}); !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestParseSignal(t *testing.T) {
	for s, want := range map[string]int{
		"15": 15, "TERM": 15, "sigterm": 15, "SIGRTMIN": 34, "RTMIN+3": 37, "SIGRTMAX-2": 62, "RTMAX": 64, "64": 64, "SIGUSR1": 10,
		"": 0, "0": 0, "65": 0, "-1": 0, "RTMIN+31": 0, "RTMAX-31": 0, "RTMIN+": 0, "RTMIN+-1": 0, "TERM\n": 0,
	} {
		got, err := ParseSignal(s)
		if got != want || (want == 0) != errors.Is(err, errdef.ErrInvalid) {
			t.Errorf("%q: got %d, %v, want %d", s, got, err, want)
		}
	}
}

const (
	testPasswd = "#x:x:5:5::/c:\nroot:x:0:0:root:/root:/bin/sh\nbroken:x:zz:1::/b:\nweb:x:1000:1001::/home/web:/bin/sh\r\nhuge:x:4294967296:0::/:\nnohome:x:7:7:::\n1000x:x:8:8::rel:\nshort:x:9\n"
	testGroup  = "root:x:0:\nstaff:x:50:alice,web\nextra:x:51:web\nweb:x:1001:\nhuge:x:4294967296:web\nalmost:x:52:webb\n"
)

func TestResolveUser(t *testing.T) {
	n := func(v int64) *int64 { return &v }
	for name, tc := range map[string]struct {
		r    UserRequest
		want User
		home string
		err  string
	}{
		"nothing":             {UserRequest{}, User{0, 0, []uint32{0}}, "/root", ""},
		"image name":          {UserRequest{ImageUser: "web"}, User{1000, 1001, []uint32{1001, 50, 51}}, "/home/web", ""},
		"image name strict":   {UserRequest{ImageUser: "web", Strict: true, Supplemental: []int64{9, 1001}}, User{1000, 1001, []uint32{1001, 9}}, "/home/web", ""},
		"image uid":           {UserRequest{ImageUser: "1000"}, User{1000, 1001, []uint32{1001, 50, 51}}, "/home/web", ""},
		"image uid unknown":   {UserRequest{ImageUser: "77"}, User{77, 0, []uint32{0}}, "/", ""},
		"image name:group":    {UserRequest{ImageUser: "web:staff"}, User{1000, 50, []uint32{50, 51}}, "/home/web", ""},
		"image uid:gid":       {UserRequest{ImageUser: "77:78"}, User{77, 78, []uint32{78}}, "/", ""},
		"image :group":        {UserRequest{ImageUser: ":staff"}, User{0, 50, []uint32{50}}, "/root", ""},
		"uid beats image":     {UserRequest{UID: n(77), ImageUser: "web:staff"}, User{77, 0, []uint32{0}}, "/", ""},
		"uid and gid":         {UserRequest{UID: n(1000), GID: n(5), Supplemental: []int64{50, 6}}, User{1000, 5, []uint32{5, 50, 51, 6}}, "/home/web", ""},
		"name and gid":        {UserRequest{Name: "web", GID: n(5)}, User{1000, 5, []uint32{5, 50, 51}}, "/home/web", ""},
		"no home":             {UserRequest{Name: "nohome"}, User{7, 7, []uint32{7}}, "/", ""},
		"relative home":       {UserRequest{Name: "1000x"}, User{8, 8, []uint32{8}}, "/", ""},
		"largest":             {UserRequest{UID: n(4294967294)}, User{4294967294, 0, []uint32{0}}, "/", ""},
		"gid alone":           {UserRequest{GID: n(5), ImageUser: "web"}, User{}, "", "run as group 5 without a user"},
		"unknown name":        {UserRequest{ImageUser: "nobody"}, User{}, "", `user "nobody" is not in`},
		"unknown group":       {UserRequest{ImageUser: "web:nogroup"}, User{}, "", `group "nogroup" is not in`},
		"overflow":            {UserRequest{ImageUser: "4294967296"}, User{}, "", `user "4294967296" is not between`},
		"overflow to nobody":  {UserRequest{ImageUser: "4294967295"}, User{}, "", "is not between"},
		"far overflow":        {UserRequest{ImageUser: "65536:18446744073709551616"}, User{}, "", "is not between"},
		"negative image user": {UserRequest{ImageUser: "-1"}, User{}, "", "is not between"},
		"negative uid":        {UserRequest{UID: n(-1)}, User{}, "", "run as user: -1"},
		"uid too large":       {UserRequest{UID: n(1 << 32)}, User{}, "", "run as user: 4294967296"},
		"gid too large":       {UserRequest{UID: n(1), GID: n(1 << 32)}, User{}, "", "run as group: 4294967296"},
		"group too large":     {UserRequest{Supplemental: []int64{1, 1 << 32}}, User{}, "", "supplemental group 1"},
		"broken entry":        {UserRequest{Name: "broken"}, User{}, "", "is not in"},
		"entry out of range":  {UserRequest{Name: "huge"}, User{}, "", "is not in"},
	} {
		u, home, err := ResolveUser(tc.r, strings.NewReader(testPasswd), strings.NewReader(testGroup))
		if tc.err != "" {
			if !errors.Is(err, errdef.ErrInvalid) || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s: got %v, want %q", name, err, tc.err)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(u, tc.want) || home != tc.home {
			t.Errorf("%s: got %+v, %q, %v, want %+v, %q", name, u, home, err, tc.want, tc.home)
		}
	}
}

func TestResolveUserWithoutFiles(t *testing.T) {
	u, home, err := ResolveUser(UserRequest{}, nil, nil)
	if err != nil || u.UID != 0 || home != "/" {
		t.Errorf("got %+v, %q, %v", u, home, err)
	}
}

// endless is a passwd file without an end.
type endless struct{ read int }

func (e *endless) Read(b []byte) (int, error) { e.read += len(b); return len(b), nil }

func TestResolveUserReadsNoMoreThanTheBound(t *testing.T) {
	e := &endless{}
	if _, _, err := ResolveUser(UserRequest{}, e, nil); !errors.Is(err, errdef.ErrInvalid) {
		t.Errorf("got %v", err)
	}
	if e.read > 4*maxUserFile {
		t.Errorf("read %d bytes", e.read)
	}
}
