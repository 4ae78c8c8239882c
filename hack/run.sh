#!/bin/bash
# run.sh [MANIFEST] - what `make run` does: builds and starts the runtime, runs the example pod through its socket, and
# serves until Ctrl-C (or SIGTERM), which takes everything away again. Needs root and Go; installs what else is missing.
# OFFLINE=1 does not try the registry of the manifest's image.
set -euo pipefail
cd "$(dirname "$0")/.."
manifest=${1:-examples/web.yaml}

say() { echo "run: $*" >&2; }
die() { say "$*"; exit 1; }
((EUID == 0)) || die "root is needed: sudo make run"
command -v go >/dev/null || die "Go is needed: https://go.dev/dl"
# Two built-in networks on one machine would share a bridge and hand out the same addresses.
[[ ! -e /sys/class/net/cri0 ]] || die "a bridge cri0 is here already: end the runtime that made it, or, if none runs, 'ip link delete cri0'"
image=$(sed -n 's/^[- ]*image: *"\{0,1\}\([^" ]*\).*/\1/p' "$manifest" | head -n 1)
[[ -n $image ]] || die "$manifest names no image"

stop=0 # the exit code after a signal. (To exit from within a trap leaves bash 5.2's functions in disorder.)
work='' state='' daemon='' job='' registry='' serving='' awaited=''
forward=(/proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding) # the bridge network needs them on
before=()

# end PID: asks a job to end, and waits for that.
end() { [[ -z $1 ]] || { kill -TERM "$1" 2>/dev/null && wait "$1" || true; }; }

# The daemon removes its pods, its network and its monitor by itself (--take-away); here goes what we made.
finish() {
  local code=$? i
  ((stop == 0)) || code=$stop
  trap '' INT TERM HUP
  [[ -z $daemon ]] || say "taking everything away"
  end "$job"
  end "$daemon"
  end "$registry"
  for i in "${!before[@]}"; do
    [[ ${before[i]} != 0 ]] || echo 0 >"${forward[i]}" || true
  done
  [[ -z $work ]] || rm -rf "$work"
  [[ -z $state ]] || rm -rf "$state"
  [[ -z $serving ]] || code=0 # to be interrupted is how it ends well
  trap - EXIT
  exit "$code"
}
trap finish EXIT
# A signal ends what is waited for: one that comes just before the wait would not interrupt it.
trap 'stop=130; end_awaited' INT
trap 'stop=143; end_awaited' TERM HUP
end_awaited() { [[ -z $awaited ]] || kill -TERM "$awaited" 2>/dev/null || true; }

# spawn COMMAND...: starts a job in a process group of its own ($!): Ctrl-C comes to us only, and finish ends the jobs in order.
spawn() {
  set -m
  "$@" </dev/null &
  set +m
}

# await_job: waits for it, and exits when a signal comes first.
await_job() {
  local code=0
  awaited=$job
  ((stop == 0)) || exit "$stop"
  wait "$job" || code=$?
  awaited=''
  ((stop == 0)) || exit "$stop"
  job=''
  return "$code"
}

# job COMMAND...: runs it so that a signal to us is not held up by it.
job() {
  spawn "$@"
  job=$!
  await_job
}

# busy TEXT COMMAND...: says how long the command has been going on: at once on a terminal, else each half minute.
busy() {
  local text=$1 start=$SECONDS last=0 now
  shift
  say "$text"
  spawn "$@"
  job=$!
  while kill -0 "$job" 2>/dev/null; do
    now=$((SECONDS - start))
    if [[ -t 2 ]]; then printf '\r%4d s ' "$now" >&2; elif ((now >= last + 30)); then last=$now; say "... $now s"; fi
    sleep 0.2
    ((stop == 0)) || exit "$stop"
  done
  [[ ! -t 2 ]] || printf '\r       \r' >&2
  await_job
}

# reachable IMAGE: its registry takes connections, or a proxy may.
reachable() {
  local host=${1%%/*}
  [[ -z ${HTTPS_PROXY-}${https_proxy-} ]] || return 0
  [[ $host != docker.io ]] || host=registry-1.docker.io
  [[ $host == *:* ]] || host=$host:443
  job timeout --foreground 5 bash -c 'exec 3<>"/dev/tcp/${1%:*}/${1##*:}"' _ "$host" 2>/dev/null
}

# until_there PID TEST...: waits for what a job that was just started makes; fails when the job ends first.
until_there() {
  local pid=$1 i
  shift
  for ((i = 0; i < 600; i++)); do
    ! test "$@" || return 0
    kill -0 "$pid" 2>/dev/null || return 1
    sleep 0.1
    ((stop == 0)) || exit "$stop"
  done
  return 1
}

job hack/debian.sh busybox-static ca-certificates
busy "building (a minute at the first time)" make -s build

work=$(mktemp -d /var/tmp/cri-runtime-run.XXXXXX)
state=$(mktemp -d /run/cri-runtime-run.XXXXXX)
chmod 711 "$work" "$state"
mkdir "$work/certs.d"
socket=$state/cri.sock
for file in "${forward[@]}"; do before+=("$(cat "$file" 2>/dev/null || true)"); done

spawn bin/cri-runtime serve --root "$work/root" --state "$state" --listen "$socket" --registry-config "$work/certs.d" \
  --network=builtin --cgroup-parent "/${work##*/}" --take-away
daemon=$!
until_there "$daemon" -S "$socket" || die "the daemon did not open its socket"

if [[ -n ${OFFLINE-} ]] || ! reachable "$image" || ! job bin/cri-runtime pull --connect "$socket" --timeout 5m "$image"; then
  say "the registry of $image cannot be used from here: taking a copy made from this machine's busybox, served by a registry on loopback"
  busy "making the image" go build -o "$work/images" ./test/images
  spawn "$work/images" -cache "$work/cache" -serve 127.0.0.1:0 -example "$image" -hosts "$work/certs.d" >"$work/registry.log" 2>&1
  registry=$!
  until_there "$registry" -e "$work/certs.d/_default/hosts.toml" || die "the loopback registry did not start: $(cat "$work/registry.log")"
fi

job bin/cri-runtime run --connect "$socket" --data "$work/pods" --logs-for 3s "$manifest"
serving=1
cat >&2 <<END
run: serving until Ctrl-C. In another terminal (crictl: PATH=\$(hack/testtools.sh crictl):\$PATH):
  export CONTAINER_RUNTIME_ENDPOINT=unix://$socket
  crictl pods; crictl ps; crictl images; crictl stats
  crictl logs -f \$(crictl ps -q --name client)
  crictl exec -it \$(crictl ps -q --name server) sh
END
code=0
awaited=$daemon
((stop == 0)) || exit "$stop"
wait "$daemon" || code=$?
((stop == 0)) || exit "$stop"
daemon=''
serving=''
die "the daemon ended by itself, with $code"
