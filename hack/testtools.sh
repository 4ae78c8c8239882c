#!/bin/bash
# testtools.sh TOOL... - builds the programs that the tests run, once, through the Go module proxy:
#   critest crictl ginkgo   the CRI conformance suite        cni      CNI plugins, below bin/cni
#   runc                    an OCI runtime (with seccomp)     kubelet  a real kubelet
#   containerd crio         other runtimes, for make bench and make bench-pull
#   containerd-shim-runc-v2 pinns oci
#                           what they run pods with; oci: the newest crun and conmon of Debian's suites, below bin/oci, with
#                           the libraries that they were linked with
# and prints the directory that holds them: ${CRI_RUNTIME_CACHE:-${XDG_CACHE_HOME:-~/.cache}/cri-runtime}/bin.
# -n builds nothing and fails when something named is missing. Safe to run twice at once: each tool has a lock.
set -euo pipefail

cri_tools=v1.36.0 cni_plugins=v1.9.1 runc=v1.5.2 kubernetes=v1.36.3 containerd=v2.4.2 crio=v1.36.3
debian_suites='sid trixie bookworm-backports bookworm' # apt takes the newest
cni_names=(main/bridge ipam/host-local main/loopback meta/portmap meta/firewall)
here=$(cd "$(dirname "$0")" && pwd)
cache=${CRI_RUNTIME_CACHE:-${XDG_CACHE_HOME:-${HOME:-$(getent passwd "$UID" | cut -d: -f6)}/.cache}/cri-runtime}
bin=$cache/bin

say() { echo "testtools: $*" >&2; }
die() { say "$*"; exit 1; }

# What a tool is built from: a change here, of a version or of how it is built (+N), builds it again.
stamp_of() {
  case $1 in
  critest | crictl | ginkgo) echo "$cri_tools+1" ;;
  cni) echo "$cni_plugins+2" ;;
  runc) echo "$runc+1" ;;
  kubelet) echo "$kubernetes+1" ;;
  containerd | containerd-shim-runc-v2) echo "$containerd+1" ;;
  crio | pinns) echo "$crio+1" ;;
  oci) echo "$debian_suites+1" ;;
  *) die "no such tool: $1 (critest crictl ginkgo cni runc kubelet containerd containerd-shim-runc-v2 crio pinns oci)" ;;
  esac
}

# module PATH VERSION: makes the current directory a module that requires PATH, with PATH's own checksums beside it.
# (go install PATH@VERSION refuses modules with replace lines, and asks the proxy for lists that some proxies lack.)
module() {
  go mod init tools 2>/dev/null
  go mod edit -require "$1@$2"
  go mod download "$1@$2" || die "cannot download $1 $2 from $(go env GOPROXY)"
  cp "$(go list -mod=mod -m -f '{{.Dir}}' "$1")/go.sum" .
  chmod +w go.sum
}

build_critest() {
  module sigs.k8s.io/cri-tools $cri_tools
  go test -c -ldflags "-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=${cri_tools#v}" -o out/critest sigs.k8s.io/cri-tools/cmd/critest
}

build_crictl() {
  module sigs.k8s.io/cri-tools $cri_tools
  CGO_ENABLED=0 go build -ldflags "-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=${cri_tools#v}" -o out/crictl sigs.k8s.io/cri-tools/cmd/crictl
}

build_ginkgo() { # of the version that critest was built with: others refuse to run it in parallel
  module sigs.k8s.io/cri-tools $cri_tools
  CGO_ENABLED=0 go build -o out/ginkgo github.com/onsi/ginkgo/v2/ginkgo
}

build_cni() {
  local name
  module github.com/containernetworking/plugins $cni_plugins
  mkdir out/cni
  for name in "${cni_names[@]}"; do
    CGO_ENABLED=0 go build -ldflags "-s -w -X github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion=$cni_plugins" -o "out/cni/${name#*/}" "github.com/containernetworking/plugins/plugins/$name"
  done
}

build_runc() {
  "$here/debian.sh" gcc libc6-dev libseccomp-dev pkg-config
  module github.com/opencontainers/runc $runc
  CGO_ENABLED=1 go build -tags seccomp -ldflags "-s -w -X main.version=${runc#v}" -o out/runc github.com/opencontainers/runc
}

build_kubelet() {
  local source staging=v0${kubernetes#v1} p=k8s.io/component-base/version
  source=$(GOFLAGS=-mod=mod go mod download -json k8s.io/kubernetes@$kubernetes | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
  [[ -n $source ]] || die "cannot download k8s.io/kubernetes $kubernetes from $(go env GOPROXY)"
  { # Its go.mod replaces each k8s.io/x by a directory that the module's zip leaves out: take the release of each instead.
    printf 'module tools\n\ngo 1.26.0\n\ngodebug default=go1.26\n\nrequire k8s.io/kubernetes %s\n\nreplace (\n' $kubernetes
    sed -n '/^replace (/,/^)/p' "$source/go.mod" | awk -v v="$staging" '/=>/ { print "\t" $1 " => " $1 " " v }'
    echo ')'
  } >go.mod
  cp "$source/go.sum" .
  chmod +w go.sum
  # Without a version it calls itself v0.0.0-master, and API version checks look odd.
  CGO_ENABLED=0 go build -ldflags "-s -w -X $p.gitVersion=$kubernetes -X $p.gitMajor=1 -X $p.gitMinor=${staging:3:2}" -o out/kubelet k8s.io/kubernetes/cmd/kubelet
}

build_containerd() {
  local m=github.com/containerd/containerd/v2
  module $m $containerd
  CGO_ENABLED=0 go build -ldflags "-s -w -X $m/version.Version=$containerd" -o out/containerd $m/cmd/containerd
}

build_containerd-shim-runc-v2() { # static, as in its release
  local m=github.com/containerd/containerd/v2
  module $m $containerd
  CGO_ENABLED=0 go build -ldflags "-s -w -X $m/version.Version=$containerd" -o out/containerd-shim-runc-v2 $m/cmd/containerd-shim-runc-v2
}

build_pinns() { # as its Makefile does
  "$here/debian.sh" gcc libc6-dev
  module github.com/cri-o/cri-o $crio
  gcc -std=c99 -O3 -static -s -o out/pinns "$(go list -m -f '{{.Dir}}' github.com/cri-o/cri-o)"/pinns/src/*.c
}

# Programs of a newer suite than this machine's want a newer libc. They get all their libraries, and start with the
# libc's own loader, without a wrapper: that would be paid for at each of their starts.
build_oci() {
  local suite lib=$bin/oci/lib
  "$here/debian.sh" patchelf
  mkdir -p apt/lists/partial apt/archives/partial debs root out/oci/lib
  for suite in $debian_suites; do
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $suite main"
  done >apt/sources.list
  local options=(-o "Dir::Etc::sourcelist=$PWD/apt/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$PWD/apt/lists" -o "Dir::Cache=$PWD/apt"
    -o Dir::State::status=/dev/null -o Acquire::Languages=none -o APT::Sandbox::User=root)
  apt-get -qq "${options[@]}" update || say "not all of $debian_suites can be read"
  local names
  names=$(apt-cache "${options[@]}" depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances crun conmon |
    grep '^[a-z]')
  # shellcheck disable=SC2086 # package names
  (cd debs && apt-get -qq "${options[@]}" download $names)
  for deb in debs/*.deb; do dpkg-deb -x "$deb" root; done
  cp -a root/usr/lib/x86_64-linux-gnu/*.so.* out/oci/lib
  cp root/usr/bin/crun root/usr/bin/conmon out/oci
  patchelf --set-interpreter "$lib/ld-linux-x86-64.so.2" --force-rpath --set-rpath "$lib" out/oci/crun out/oci/conmon
}

build_crio() { # with OpenPGP in Go, and without the storage drivers that need C libraries
  "$here/debian.sh" gcc libc6-dev libseccomp-dev pkg-config
  module github.com/cri-o/cri-o $crio
  CGO_ENABLED=1 go build -tags 'containers_image_openpgp exclude_graphdriver_btrfs seccomp' -ldflags '-s -w' -o out/crio github.com/cri-o/cri-o/cmd/crio
}

# have TOOL: it is there, whole and of the right version. The stamp is written last.
have() { [[ $(cat "$bin/.$1.stamp" 2>/dev/null) == "$(stamp_of "$1")" ]]; }

make_tool() (
  have "$1" && exit 0
  exec 8>"$cache/$1.lock"
  flock -n 8 || { say "$1: waiting for another build of it"; flock 8; }
  have "$1" && exit 0
  work=$(mktemp -d "$cache/build.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  cd "$work"
  mkdir out
  say "$1 $(stamp_of "$1"): building (minutes, when the Go build cache is cold)"
  start=$SECONDS
  "build_$1"
  rm -f "$bin/.$1.stamp"
  [[ ! -d $bin/$1 ]] || mv -T "$bin/$1" old
  mv -T "out/$1" "$bin/$1" # on one file system: a program that runs now keeps its old file
  stamp_of "$1" >"$bin/.$1.stamp"
  say "$1: built in $((SECONDS - start)) s"
)

build=1
[[ ${1-} != -n ]] || { build= && shift; }
(($#)) || { sed -n '2,10s/^# \?//p' "$0" >&2; exit 2; }
for tool; do stamp_of "$tool" >/dev/null; done
if [[ -z $build ]]; then
  for tool; do have "$tool" || die "$tool is not built: run hack/testtools.sh $tool"; done
else
  command -v go >/dev/null || die "go is not in PATH"
  mkdir -p "$bin"
  export GOWORK=off GOFLAGS='-mod=mod -trimpath -buildvcs=false'
  renice -n 10 $BASHPID >/dev/null # builds give way to whatever else runs
  for tool; do make_tool "$tool"; done
fi
echo "$bin"
