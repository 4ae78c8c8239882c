#!/bin/bash
# smoke.sh [make-run|node|systemd]... - the built programs in the cgroup v2 guest, a minute in all: `make run`, what a container
# is given there (limits, cgroup, devices, AppArmor), and the systemd unit, whose restart pods survive.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/stage.sh"
(($# > 0)) || set -- make-run node systemd
for part; do
  flags=(); [[ $part != systemd ]] || flags=(-S)
  "$here/run.sh" -t 300 "${flags[@]}" -s "$share" /share/src/test/cgroup2/smoke-guest.sh "$part"
done
