package cri

import (
	"path"
	"slices"
	"strings"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-runtime/cri-runtime/sandbox"
)

func decodePodSecurity(f field, c *pb.LinuxSandboxSecurityContext) (out sandbox.PodSecurity, err error) {
	n := c.GetNamespaceOptions()
	pod := []sandbox.NamespaceMode{sandbox.ModePod, sandbox.ModeContainer, sandbox.ModeNode}
	if out.Namespaces, err = decodeNamespaces(f.sub("namespace_options."), n, pod); err != nil {
		return out, err
	}
	out.SELinux = decodeSELinux(c.GetSelinuxOptions())
	out.ReadonlyRootfs, out.Privileged = c.GetReadonlyRootfs(), c.GetPrivileged()
	u := user{uid: c.GetRunAsUser(), gid: c.GetRunAsGroup(), groups: c.GetSupplementalGroups(), policy: c.GetSupplementalGroupsPolicy()}
	if out.RunAsUser, out.RunAsGroup, out.SupplementalGroups, err = u.decode(f); err != nil {
		return out, err
	}
	out.StrictGroups = u.policy == pb.SupplementalGroupsPolicy_Strict
	if out.Seccomp, err = decodeSeccomp(f, c.GetSeccomp(), c.GetSeccompProfilePath()); err != nil { //nolint:staticcheck // the kubelet may still send it
		return out, err
	}
	out.AppArmor, err = decodeProfile(f.sub("apparmor."), c.GetApparmor())
	return out, err
}

func decodeContainerSecurity(f field, c *pb.LinuxContainerSecurityContext) (out sandbox.ContainerSecurity, err error) {
	all := []sandbox.NamespaceMode{sandbox.ModePod, sandbox.ModeContainer, sandbox.ModeNode, sandbox.ModeTarget}
	if out.Namespaces, err = decodeNamespaces(f.sub("namespace_options."), c.GetNamespaceOptions(), all); err != nil {
		return out, err
	}
	if err := decodeCapabilities(f.sub("capabilities."), c.GetCapabilities(), &out); err != nil {
		return out, err
	}
	out.SELinux = decodeSELinux(c.GetSelinuxOptions())
	out.Privileged, out.ReadonlyRootfs, out.NoNewPrivs = c.GetPrivileged(), c.GetReadonlyRootfs(), c.GetNoNewPrivs()
	u := user{
		uid: c.GetRunAsUser(), gid: c.GetRunAsGroup(), name: c.GetRunAsUsername(),
		groups: c.GetSupplementalGroups(), policy: c.GetSupplementalGroupsPolicy(),
	}
	if out.RunAsUser, out.RunAsGroup, out.SupplementalGroups, err = u.decode(f); err != nil {
		return out, err
	}
	out.RunAsUsername, out.StrictGroups = u.name, u.policy == pb.SupplementalGroupsPolicy_Strict
	if out.MaskedPaths, err = f.sub("masked_paths").texts(c.GetMaskedPaths(), field.absolute); err != nil {
		return out, err
	}
	if out.ReadonlyPaths, err = f.sub("readonly_paths").texts(c.GetReadonlyPaths(), field.absolute); err != nil {
		return out, err
	}
	if out.Seccomp, err = decodeSeccomp(f, c.GetSeccomp(), c.GetSeccompProfilePath()); err != nil { //nolint:staticcheck // the kubelet may still send it
		return out, err
	}
	out.AppArmor, err = decodeAppArmor(f, c.GetApparmor(), c.GetApparmorProfile()) //nolint:staticcheck // likewise
	return out, err
}

// user is what both security contexts say about ids.
type user struct {
	uid, gid *pb.Int64Value
	name     string
	groups   []int64
	policy   pb.SupplementalGroupsPolicy
}

func (u user) decode(f field) (uid, gid *int64, groups []int64, err error) {
	if uid, err = f.sub("run_as_user").optionalID(u.uid); err != nil {
		return nil, nil, nil, err
	}
	if gid, err = f.sub("run_as_group").optionalID(u.gid); err != nil {
		return nil, nil, nil, err
	}
	if uid != nil && u.name != "" {
		return nil, nil, nil, f.sub("run_as_username").refuse("is set beside run_as_user")
	}
	if gid != nil && uid == nil && u.name == "" {
		return nil, nil, nil, f.sub("run_as_group").refuse("is set without run_as_user or run_as_username")
	}
	if strings.Contains(u.name, ":") { // a field separator of /etc/passwd
		return nil, nil, nil, f.sub("run_as_username").refuse("%q is not a user name", u.name)
	}
	if err := f.sub("run_as_username").line(u.name); err != nil {
		return nil, nil, nil, err
	}
	if !known(u.policy) {
		return nil, nil, nil, f.sub("supplemental_groups_policy").refuse("%d is unknown", u.policy)
	}
	groups, err = f.sub("supplemental_groups").ids(u.groups)
	return uid, gid, groups, err
}

// decodeNamespaces takes a nil n for CRI's zero values: everything is the pod's.
func decodeNamespaces(f field, n *pb.NamespaceOption, pid []sandbox.NamespaceMode) (sandbox.Namespaces, error) {
	out := sandbox.Namespaces{TargetID: sandbox.ID(n.GetTargetId())}
	shared := []sandbox.NamespaceMode{sandbox.ModePod, sandbox.ModeNode}
	for _, x := range []struct {
		name    string
		mode    pb.NamespaceMode
		allowed []sandbox.NamespaceMode
		to      *sandbox.NamespaceMode
	}{
		{"network", n.GetNetwork(), shared, &out.Network},
		{"pid", n.GetPid(), pid, &out.PID},
		{"ipc", n.GetIpc(), shared, &out.IPC},
	} {
		*x.to = sandbox.NamespaceMode(x.mode)
		if !slices.Contains(x.allowed, *x.to) {
			return out, f.sub(x.name).refuse("cannot be %s here", x.mode)
		}
	}
	if (out.PID == sandbox.ModeTarget) != (out.TargetID != "") {
		return out, f.sub("target_id").refuse("must be set if, and only if, pid is TARGET")
	}
	var err error
	out.User, err = decodeUserNamespace(f.sub("userns_options."), n.GetUsernsOptions())
	return out, err
}

func decodeUserNamespace(f field, u *pb.UserNamespace) (*sandbox.UserNamespace, error) {
	if u == nil {
		return nil, nil
	}
	switch u.GetMode() {
	case pb.NamespaceMode_NODE:
		if len(u.GetUids())+len(u.GetGids()) > 0 {
			return nil, f.sub("mode").refuse("is NODE, which cannot have mappings")
		}
		return nil, nil
	case pb.NamespaceMode_POD:
	default:
		return nil, f.sub("mode").refuse("cannot be %s", u.GetMode())
	}
	var out sandbox.UserNamespace
	var err error
	if out.UIDs, err = f.sub("uids").idMappings(u.GetUids()); err != nil {
		return nil, err
	}
	if out.GIDs, err = f.sub("gids").idMappings(u.GetGids()); err != nil {
		return nil, err
	}
	if len(out.UIDs) == 0 || len(out.GIDs) == 0 {
		return nil, f.sub("uids").refuse("and gids must both map something when mode is POD")
	}
	return &out, nil
}

func decodeSELinux(o *pb.SELinuxOption) *sandbox.SELinux {
	if o == nil {
		return nil
	}
	return &sandbox.SELinux{User: o.GetUser(), Role: o.GetRole(), Type: o.GetType(), Level: o.GetLevel()}
}

// decodeCapabilities only checks that names are there: which names exist is known to
// oci/spec, and differs between kernels.
func decodeCapabilities(f field, c *pb.Capability, out *sandbox.ContainerSecurity) (err error) {
	if out.CapAdd, err = f.sub("add_capabilities").texts(c.GetAddCapabilities(), field.required); err != nil {
		return err
	}
	if out.CapDrop, err = f.sub("drop_capabilities").texts(c.GetDropCapabilities(), field.required); err != nil {
		return err
	}
	out.CapAmbient, err = f.sub("add_ambient_capabilities").texts(c.GetAddAmbientCapabilities(), field.required)
	return err
}

// localPrefix starts the name of a Localhost profile in the deprecated fields. The new
// ones should not have it, but some clients left it there.
const localPrefix = "localhost/"

// decodeProfile decodes a profile. An empty message is RuntimeDefault, as its zero
// value says; only a missing one is unset.
func decodeProfile(f field, p *pb.SecurityProfile) (sandbox.Profile, error) {
	var out sandbox.Profile
	if p == nil {
		return out, nil
	}
	ref := strings.TrimPrefix(p.GetLocalhostRef(), localPrefix)
	switch p.GetProfileType() {
	case pb.SecurityProfile_RuntimeDefault:
		out.Kind = sandbox.ProfileRuntimeDefault
	case pb.SecurityProfile_Unconfined:
		out.Kind = sandbox.ProfileUnconfined
	case pb.SecurityProfile_Localhost:
		out.Kind, out.Name = sandbox.ProfileLocalhost, ref
		if err := f.sub("localhost_ref").line(ref); err != nil {
			return out, err
		}
		return out, f.sub("localhost_ref").required(ref)
	default:
		return out, f.sub("profile_type").refuse("%d is unknown", p.GetProfileType())
	}
	if ref != "" {
		return out, f.sub("localhost_ref").refuse("is set, profile_type is %s", p.GetProfileType())
	}
	return out, nil
}

// decodeSeccomp prefers the new field; the deprecated string counts when that is unset.
func decodeSeccomp(f field, p *pb.SecurityProfile, old string) (sandbox.Profile, error) {
	if p == nil {
		return decodeOldProfile(f.sub("seccomp_profile_path"), old)
	}
	out, err := decodeProfile(f.sub("seccomp."), p)
	if err == nil && out.Kind == sandbox.ProfileLocalhost && !path.IsAbs(out.Name) {
		return out, f.sub("seccomp.localhost_ref").refuse("%q is not an absolute path", out.Name)
	}
	return out, err
}

// decodeAppArmor prefers the new field, as decodeSeccomp.
func decodeAppArmor(f field, p *pb.SecurityProfile, old string) (sandbox.Profile, error) {
	if p == nil {
		return decodeOldProfile(f.sub("apparmor_profile"), old)
	}
	return decodeProfile(f.sub("apparmor."), p)
}

// decodeOldProfile reads the deprecated strings in the way that containerd does.
func decodeOldProfile(f field, s string) (sandbox.Profile, error) {
	switch s {
	case "":
		return sandbox.Profile{}, nil
	case "runtime/default", "docker/default":
		return sandbox.Profile{Kind: sandbox.ProfileRuntimeDefault}, nil
	case "unconfined":
		return sandbox.Profile{Kind: sandbox.ProfileUnconfined}, nil
	}
	name, ok := strings.CutPrefix(s, localPrefix)
	if !ok || name == "" {
		return sandbox.Profile{}, f.refuse("%q is none of runtime/default, unconfined, localhost/NAME", s)
	}
	return sandbox.Profile{Kind: sandbox.ProfileLocalhost, Name: name}, f.line(name)
}
