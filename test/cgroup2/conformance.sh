#!/bin/bash
# conformance.sh [FLAG...] - critest in the cgroup v2 guest, against this tree. The flags go to test/conformance
# (-focus, -serial, -workers, -handler, -benchmark, ...). CGROUP2_EXTRA names a directory that is /share/extra in the guest.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/stage.sh"
(cd "$root" && CGO_ENABLED=0 go test -c -o "$share/conformance.test" ./test/conformance && "$share/bin/images" >/dev/null)
cp -al "$cache/images" "$share/cache/images"
[[ -z ${CGROUP2_EXTRA-} ]] || cp -a "$CGROUP2_EXTRA" "$share/extra"

# The image cache is locked by writing to it, so the guest gets a copy. System calls are slow there: a second worker gains little.
"$here/run.sh" -t 2400 -s "$share" bash -c '
  mkdir -p /root/cri-runtime && cp -r /share/cache/images /root/cri-runtime/ && cd /root &&
  CRI_RUNTIME_CACHE=/root/cri-runtime exec /share/conformance.test -test.v -test.timeout 35m -bin /share/bin -tools /share/cache/bin "$@"
' conformance -workers 0 "$@"
