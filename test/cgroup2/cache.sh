# cache.sh - sets dir: where build.sh leaves the guest and run.sh finds it.
cache=${CRI_RUNTIME_CACHE:-${XDG_CACHE_HOME:-${HOME:-$(getent passwd "$UID" | cut -d: -f6)}/.cache}/cri-runtime}
dir=${CGROUP2_DIR:-$cache/cgroup2}
