package spec

import (
	"bytes"
	"fmt"
	"io"
	"iter"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/cri-runtime/cri-runtime/internal/errdef"
)

// A UserRequest says who should run, in order of precedence: UID, Name, ImageUser.
type UserRequest struct {
	UID          *int64
	Name         string // looked up in the image's passwd
	GID          *int64 // needs UID or Name
	ImageUser    string // "user", "uid", "user:group", "uid:gid", ...
	Supplemental []int64
	Strict       bool // groups of the image's group file do not count
}

const (
	// maxUserFile bounds what is read of an image's passwd or group file: an image
	// may contain one of any size (CVE-2026-47262).
	maxUserFile = 1 << 20
	// maxID is the last usable id: the kernel takes 0xffffffff as "leave it".
	maxID = math.MaxUint32 - 1
)

// ResolveUser finds ids, groups and home directory. A nil reader stands for a file
// that the image does not have. Ids that are not in the files are fine, names that
// are not are an error.
func ResolveUser(r UserRequest, passwd, group io.Reader) (u User, home string, err error) {
	who, wantGroup, err := r.pick()
	if err != nil {
		return User{}, "", err
	}
	users, err := readUserFile("passwd", passwd)
	if err != nil {
		return User{}, "", err
	}
	groups, err := readUserFile("group", group)
	if err != nil {
		return User{}, "", err
	}
	found, err := findUser(users, who)
	if err != nil {
		return User{}, "", err
	}
	u.UID, u.GID = found.uid, found.gid
	switch {
	case r.GID != nil:
		u.GID, err = id("run as group", *r.GID)
	case wantGroup != "":
		u.GID, err = findGroup(groups, wantGroup)
	}
	if err != nil {
		return User{}, "", err
	}
	// The primary group is one of the supplementary ones: a process may leave its
	// primary group, and would then pass a "group may not" check (CVE-2022-2995).
	u.Groups = []uint32{u.GID}
	if !r.Strict && found.name != "" {
		u.Groups = append(u.Groups, memberships(groups, found.name)...)
	}
	for i, s := range r.Supplemental {
		g, err := id(fmt.Sprintf("supplemental group %d", i), s)
		if err != nil {
			return User{}, "", err
		}
		u.Groups = append(u.Groups, g)
	}
	u.Groups = unique(u.Groups)
	return u, found.home, nil
}

// pick chooses the user, as a name or number, and the image's wish for a group.
func (r UserRequest) pick() (user, group string, err error) {
	if r.GID != nil && r.UID == nil && r.Name == "" {
		return "", "", fmt.Errorf("run as group %d without a user: %w", *r.GID, errdef.ErrInvalid)
	}
	switch {
	case r.UID != nil:
		if _, err := id("run as user", *r.UID); err != nil {
			return "", "", err
		}
		return strconv.FormatInt(*r.UID, 10), "", nil
	case r.Name != "":
		return r.Name, "", nil
	}
	user, group, _ = strings.Cut(r.ImageUser, ":")
	if user == "" {
		user = "0" // also ":group"
	}
	return user, group, nil
}

type userEntry struct {
	name     string
	uid, gid uint32
	home     string
}

// findUser looks who up. A number always means an id, also if it is somebody's name:
// otherwise an image could redefine what the pod's author meant.
func findUser(passwd []byte, who string) (userEntry, error) {
	number, isNumber, err := number("user", who)
	if err != nil {
		return userEntry{}, err
	}
	for f := range entries(passwd, 6) {
		uid, err1 := parseID(f[2])
		gid, err2 := parseID(f[3])
		if err1 != nil || err2 != nil || (isNumber && uid != number) || (!isNumber && f[0] != who) {
			continue
		}
		home := f[5]
		// What is not a path cannot be a home directory; it would only confuse
		// programs that trust HOME.
		if !strings.HasPrefix(home, "/") || strings.ContainsRune(home, 0) {
			home = "/"
		}
		return userEntry{name: f[0], uid: uid, gid: gid, home: home}, nil
	}
	if !isNumber {
		return userEntry{}, fmt.Errorf("user %.64q is not in the image's passwd: %w", who, errdef.ErrInvalid)
	}
	return userEntry{uid: number, home: "/"}, nil
}

func findGroup(group []byte, which string) (uint32, error) {
	gid, isNumber, err := number("group", which)
	if err != nil || isNumber {
		return gid, err
	}
	for f := range entries(group, 3) {
		if gid, err := parseID(f[2]); err == nil && f[0] == which {
			return gid, nil
		}
	}
	return 0, fmt.Errorf("group %.64q is not in the image's group file: %w", which, errdef.ErrInvalid)
}

func memberships(group []byte, name string) []uint32 {
	var gids []uint32
	for f := range entries(group, 4) {
		if gid, err := parseID(f[2]); err == nil && slices.Contains(strings.Split(f[3], ","), name) {
			gids = append(gids, gid)
		}
	}
	return gids
}

// entries yields the lines that have at least n fields; others are not ours to judge.
func entries(file []byte, n int) iter.Seq[[]string] {
	return func(yield func([]string) bool) {
		for line := range bytes.Lines(file) {
			f := strings.Split(strings.TrimRight(string(line), "\r\n"), ":")
			if len(f) >= n && f[0] != "" && f[0][0] != '#' && !yield(f) {
				return
			}
		}
	}
}

func readUserFile(name string, r io.Reader) ([]byte, error) {
	if r == nil {
		return nil, nil
	}
	b, err := io.ReadAll(io.LimitReader(r, maxUserFile+1))
	if err != nil {
		return nil, fmt.Errorf("read the image's %s: %w", name, err)
	}
	if len(b) > maxUserFile {
		return nil, fmt.Errorf("the image's %s is larger than %d bytes: %w", name, maxUserFile, errdef.ErrInvalid)
	}
	return b, nil
}

// number tells whether s is one. One that is no valid id is an error: 4294967296
// must not wrap around to root (CVE-2024-40635), nor be looked up as a name.
func number(what, s string) (n uint32, is bool, err error) {
	if strings.Trim(s, "0123456789") != "" && !isNegative(s) {
		return 0, false, nil
	}
	if n, err = parseID(s); err != nil {
		return 0, false, fmt.Errorf("%s %.64q is not between 0 and %d: %w", what, s, uint32(maxID), errdef.ErrInvalid)
	}
	return n, true, nil
}

func isNegative(s string) bool {
	return len(s) > 1 && s[0] == '-' && strings.Trim(s[1:], "0123456789") == ""
}

func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err == nil && n > maxID {
		err = strconv.ErrRange
	}
	return uint32(n), err
}

func id(what string, n int64) (uint32, error) {
	if n < 0 || n > maxID {
		return 0, fmt.Errorf("%s: %d is not between 0 and %d: %w", what, n, uint32(maxID), errdef.ErrInvalid)
	}
	return uint32(n), nil
}

func unique(ids []uint32) []uint32 {
	var out []uint32
	for _, g := range ids {
		if !slices.Contains(out, g) {
			out = append(out, g)
		}
	}
	return out
}
