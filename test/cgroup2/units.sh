#!/bin/bash
# units.sh [PACKAGE...] - the tests of the packages that ask the kernel, in the cgroup v2 guest. Without arguments: all of them.
# A test may skip what kernel 6.12 or cgroup v2 does not have; any other skip is a failure.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/stage.sh"
(($# > 0)) || set -- ./cmd/... ./cni/... ./cri/... ./image/... ./internal/... ./oci/... ./sandbox/...
mkdir "$share/tests"
cd "$root"
mapfile -t packages < <(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' "$@" | sed '/^$/d; s|^github.com/cri-runtime/cri-runtime/||')
for package in "${packages[@]}"; do
  mkdir -p "$share/tests/$package"
  CGO_ENABLED=0 go test -c -o "$share/tests/$package/" "./$package"
  [[ ! -d $package/testdata ]] || cp -a "$package/testdata" "$share/tests/$package/"
done
"$here/run.sh" -t 1200 -s "$share" /share/src/test/cgroup2/units-guest.sh "${packages[@]}"
