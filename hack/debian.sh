#!/bin/bash
# debian.sh [PACKAGE...] - installs the Debian packages that building and testing need, those that are missing only.
# Without arguments: what `make test` wants. At most one apt-get update. Needs root when something is missing.
set -euo pipefail

# What for: util-linux: ipcmk (critest), unshare. busybox-static: the test images. crun, libseccomp-dev + gcc: further OCI runtimes.
# erofs-utils: a second reader of indexes. strace: counting system calls (test/promises).
packages=(util-linux iproute2 nftables iptables jq busybox-static crun gcc libc6-dev libseccomp-dev pkg-config ca-certificates procps erofs-utils strace)
(($# == 0)) || packages=("$@")

missing() { # prints the packages of the arguments that are not installed
  local package
  for package; do
    [[ $(dpkg-query -W -f='${Status}' "$package" 2>/dev/null) == 'install ok installed' ]] || echo "$package"
  done
}

mapfile -t want < <(missing "${packages[@]}")
((${#want[@]})) || exit 0
if ((EUID != 0)); then
  echo "debian.sh: root is needed to install: ${want[*]}" >&2
  exit 1
fi

# Two runs at once would fight for dpkg's lock: the second waits here, and then finds nothing missing.
exec 9>/run/lock/cri-runtime-debian
flock 9
mapfile -t want < <(missing "${packages[@]}")
((${#want[@]})) || exit 0
echo "debian.sh: installing ${want[*]}" >&2
apt() { DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@" >&2; }
install() { apt install --no-install-recommends "${want[@]}"; }
# Package lists of yesterday name files that a mirror no longer has, so a failed install gets one update and one more try.
install || { apt update && install; } || {
  echo "debian.sh: apt-get cannot install ${want[*]}" >&2
  exit 1
}
