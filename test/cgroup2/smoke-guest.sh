#!/bin/bash
# smoke-guest.sh make-run|node|systemd - one part of smoke.sh, in the guest. Says each thing that it looked at.
set -uo pipefail
set -m # jobs get process groups of their own, and SIGINT reaches them
export PATH=$PATH:/share/go:/share/cache/bin CRI_RUNTIME_CACHE=/root/cache
image=docker.io/library/busybox:1.37
bad=0
is() { # is WHAT GOT WANT: equal, or matching when WANT is ~REGEXP
  if [[ $3 == "~"* && $2 =~ ${3#\~} || $2 == "$3" ]]; then echo "ok    $1: ${2//$'\n'/ | }"; else echo "WRONG $1: got ${2@Q}, want ${3@Q}"; bad=1; fi
}
until_is() { # until_is SECONDS COMMAND...: waits until it succeeds
  local end=$((SECONDS + $1)); shift
  until "$@"; do ((SECONDS < end)) || { echo "WRONG not within the time: $*"; bad=1; return 1; }; sleep 0.2; done
}
traces() { # what a daemon and its pods may leave
  grep -cE 'cri-|overlay|nsfs' /proc/self/mountinfo
  ls /sys/fs/cgroup /run /var/tmp | grep cri-
  ls -d /proc/[0-9]* | while read -r p; do [[ $(cat "$p/comm" 2>/dev/null) == cri-* ]] && cat "$p/comm"; done
  ip -br link | grep -v '^lo'; nft list tables; find /sys/fs/cgroup -type d -name '*cri*'
} 2>/dev/null
registry() {
  /share/bin/images -serve 127.0.0.1:5010 -example $image -hosts /etc/cri-runtime/certs.d >/root/registry.log 2>&1 &
  until_is 20 test -e /etc/cri-runtime/certs.d/_default/hosts.toml
}
ready() { crictl info 2>/dev/null | grep -q '"type": "RuntimeReady"'; }
mkdir -p /root/cache /root/pods
printf 'runtime-endpoint: unix:///run/cri-runtime/cri-runtime.sock\nimage-endpoint: unix:///run/cri-runtime/cri-runtime.sock\n' >/etc/crictl.yaml

pod() { # pod NAME LINUX-JSON: runs a pod, prints its id
  printf '{"metadata": {"name": "%s", "namespace": "default", "uid": "%s"}, "log_directory": "/root/logs/%s", "linux": %s}' "$1" "$1" "$1" "$2" >"/root/pods/$1.json"
  crictl runp "/root/pods/$1.json" 2>/root/crictl.err || cat /root/crictl.err >&2
}
container() { # container POD POD-ID NAME LINUX-JSON SCRIPT: starts a container, prints its id
  jq -n --arg name "$3" --arg image $image --argjson linux "$4" --arg script "$5" \
    '{metadata: {name: $name}, image: {image: $image}, command: ["sh", "-c", $script], log_path: ($name + ".log"), linux: $linux}' >"/root/pods/$3.json"
  { local id; id=$(crictl create "$2" "/root/pods/$3.json" "/root/pods/$1.json") && crictl start "$id"; } 2>/root/crictl.err || cat /root/crictl.err >&2
}
in_container() { crictl exec "$1" sh -c "$2" 2>&1; }

make_run() {
  local before out=/root/run.log pid
  before=$(traces)
  cp -r /share/src /root/src && cd /root/src || exit 1
  OFFLINE=1 make run >$out 2>&1 & pid=$!
  until_is 60 grep -q 'until Ctrl-C' $out || { cat $out; return; }
  echo "ok    make run serves after $SECONDS s"
  kill -INT -- -$pid; wait $pid
  is 'make run: page' "$(grep -oE '<h1>Hello from [a-z0-9-]+</h1>' $out | sort -u)" '<h1>Hello from web</h1>'
  is 'make run: left behind' "$(diff <(echo "$before") <(traces))" ''
  ((bad == 0)) || cat $out
}

limits='{"resources": {"memory_limit_in_bytes": 33554432, "cpu_quota": 20000, "cpu_period": 100000, "cpu_shares": 512, "unified": {"memory.oom.group": "1"}},
  "security_context": {"apparmor": {"profile_type": 0}, "seccomp": {"profile_type": 0}}}'

out_of_memory() { # out_of_memory NAME UNIFIED SCRIPT WANT, in the pod of node
  local id; id=$(container one "$p" "oom-$1" "{\"resources\": {\"memory_limit_in_bytes\": 16777216, \"unified\": $2}}" "$3")
  until_is 30 bash -c "crictl inspect $id | grep -q CONTAINER_EXITED"
  is "out of memory, $1" "$(crictl inspect "$id" | jq -c '.status | [.reason, .exitCode]')" "$4"
}

node() {
  local before p c u dir
  before=$(traces)
  registry
  /share/bin/cri-runtime serve --network=builtin --take-away -v 4 >/root/daemon.log 2>&1 & daemon=$!
  until_is 20 ready
  crictl pull $image >/dev/null
  p=$(pod one '{}'); c=$(container one "$p" main "$limits" 'sleep 1000')
  dir=$(find /sys/fs/cgroup -type d -name "*$c*" | head -n 1)
  is 'memory.max' "$(cat "$dir/memory.max")" 33554432
  is 'cpu.max' "$(cat "$dir/cpu.max")" '20000 100000'
  is 'cpu.weight' "$(cat "$dir/cpu.weight")" '~^(20|59)$' # of 512 shares, by the former formula and by the present one
  is 'memory.oom.group, from unified' "$(cat "$dir/memory.oom.group")" 1
  is 'its own view of cgroups' "$(in_container "$c" 'cat /proc/self/cgroup /sys/fs/cgroup/memory.max')" '~^0::/(exec[^/]*)?.33554432$'
  is 'AppArmor' "$(in_container "$c" 'cat /proc/self/attr/current')" '~\(enforce\)'
  is 'seccomp' "$(in_container "$c" 'grep ^Seccomp: /proc/self/status')" '~2$'
  is 'a device without a rule' "$(in_container "$c" 'mknod /tmp/kmsg c 1 11 && head -c 1 /tmp/kmsg' | head -n 1)" '~not permitted'
  crictl exec "$c" sleep 3 & sleep 1.5
  is 'cgroups during an exec' "$(find "$dir" -mindepth 1 -type d | wc -l), controllers $(cat "$dir/cgroup.subtree_control")" '1, controllers '
  wait %%; until_is 5 bash -c "! find '$dir' -mindepth 1 -type d | grep -q ."
  crictl update --memory 67108864 --cpu-quota 50000 --cpu-period 100000 "$c" >/dev/null
  is 'after the update' "$(cat "$dir/memory.max" "$dir/cpu.max")" $'67108864\n50000 100000'
  is 'update without room' "$(crictl update --memory 4096 "$c" 2>&1 | grep -oE 'set memory.max.*phase' | head -n 1)" '~cannot be reclaimed'
  is 'memory.max after it' "$(cat "$dir/memory.max")" 67108864
  is 'stats' "$(crictl stats -o json --id "$c" | jq -c '.stats[0] | [.cpu.usageCoreNanoSeconds.value, .memory.workingSetBytes.value, .writableLayer.inodesUsed.value | tonumber > 0]')" '[true,true,true]'
  is 'PSI in the stats' "$(crictl stats -o json --id "$c" | jq -c '.stats[0] | [.cpu.psi, .memory.psi, .io.psi | . != null]')" '[true,true,true]'
  out_of_memory main '{}' 'exec tail /dev/zero' '["OOMKilled",137]'
  out_of_memory group '{"memory.oom.group": "1"}' 'tail /dev/zero; sleep 1; exit 3' '["OOMKilled",137]'
  out_of_memory child '{}' 'tail /dev/zero; exit 3' '["Error",3]' # the main process went on: its exit is its own
  u=$(pod mapped '{"security_context": {"namespace_options": {"userns_options": {"mode": 0, "uids": [{"host_id": 200000, "length": 65536}], "gids": [{"host_id": 200000, "length": 65536}]}}}}')
  u=$(container mapped "$u" user '{"security_context": {"namespace_options": {"userns_options": {"mode": 0, "uids": [{"host_id": 200000, "length": 65536}], "gids": [{"host_id": 200000, "length": 65536}]}}}}' 'sleep 1000')
  is 'user namespace' "$(in_container "$u" 'cat /proc/self/uid_map; touch /x && stat -c %u /x /bin')" '~200000 +65536.*0.*0'
  kill -KILL $daemon; wait $daemon 2>/dev/null
  /share/bin/cri-runtime serve --network=builtin --take-away -v 4 >>/root/daemon.log 2>&1 & daemon=$!
  until_is 20 ready
  is 'exec after kill -9' "$(in_container "$c" 'echo alive')" alive
  took 20
  kill -TERM $daemon; wait $daemon; is 'exit of the daemon' $? 0
  kill %1; wait
  is 'what the monitor had to say' "$(cat /run/cri-runtime/monitor/monitor.log)" ''; rm -rf /run/cri-runtime
  is 'left behind' "$(diff <(echo "$before") <(traces))" ''
  ((bad == 0)) || tail -n 40 /root/daemon.log
}

took() { # took N: the mean time of a pod with a container, by crictl's own calls
  local i p began=${EPOCHREALTIME/./}
  for ((i = 0; i < $1; i++)); do p=$(pod "t$i" '{}'); container "t$i" "$p" "c$i" "$limits" 'sleep 1000' >/dev/null; crictl rmp -f "$p" >/dev/null 2>&1; done
  echo "ok    run, create, start, remove by crictl: $(((${EPOCHREALTIME/./} - began) / 1000 / $1)) ms; of it in the daemon, median ms: $(medians)"
}

medians() { # of the daemon's calls, from its log
  local call
  for call in RunPodSandbox CreateContainer StartContainer StopPodSandbox RemovePodSandbox; do
    sed -n "s/.*call done.* method=\"$call\".* took=\"\([0-9.]*\)\([a-zµ]*\)\".*/\1 \2/p" /root/daemon.log |
      awk '{ print $1 * ($2 == "s" ? 1000 : $2 == "ms" ? 1 : 0.001) }' | sort -n |
      awk -v call=$call '{ a[NR] = $1 } END { printf "%s %.1f ", call, a[int((NR + 1) / 2)] }'
  done
}

systemd() {
  local p c before main monitor
  registry
  install -m 755 /share/bin/cri-runtime /share/bin/cri-monitor /usr/local/bin/
  cp /share/src/contrib/cri-runtime.service /etc/systemd/system/
  mkdir -p /etc/systemd/system/cri-runtime.service.d
  printf '[Service]\nExecStart=\nExecStart=/usr/local/bin/cri-runtime serve --network=builtin -v 4\n' >/etc/systemd/system/cri-runtime.service.d/network.conf
  systemctl daemon-reload
  is 'start' "$(systemctl start cri-runtime 2>&1; systemctl is-active cri-runtime)" active
  is 'socket at once' "$(crictl version | grep -c RuntimeName)" 1
  crictl pull $image >/dev/null
  p=$(pod one '{}'); c=$(container one "$p" main "$limits" 'n=0; while sleep 0.5; do n=$((n + 1)); echo $n; done')
  main=$(systemctl show -P MainPID cri-runtime); monitor=$(pidof cri-monitor)
  is 'cgroup of the daemon' "$(cat "/proc/$main/cgroup")" 0::/system.slice/cri-runtime.service
  is 'cgroup of the monitor' "$(cat "/proc/$monitor/cgroup")" '~^0::/cri-runtime'
  for how in 'restart' 'kill -s KILL' 'stop'; do
    systemctl daemon-reload
    systemctl $how cri-runtime
    [[ $how != stop ]] || { sleep 1; is 'the container without a daemon' "$(pgrep -cf 'while sleep 0.5')" 1; systemctl start cri-runtime; }
    until_is 20 ready
    is "$how: another daemon" "$(($(systemctl show -P MainPID cri-runtime) != main)) $(systemctl is-active cri-runtime)" '1 active'
    main=$(systemctl show -P MainPID cri-runtime)
    is "$how: the same monitor" "$(pidof cri-monitor)" "$monitor"
    is "$how: attempts, state" "$(crictl inspect "$c" | jq -c '[.status.metadata.attempt // 0, .status.state]')" '[0,"CONTAINER_RUNNING"]'
    is "$how: exec" "$(in_container "$c" 'cat /sys/fs/cgroup/memory.max')" 33554432
  done
  sleep 1
  is 'log without a gap' "$(crictl logs "$c" | awk '$1 != NR { bad = 1 } END { print (NR > 3 && !bad) }')" 1
  crictl rmp -f "$p" >/dev/null
  systemctl stop cri-runtime
  is 'memory after it' "$(find /sys/fs/cgroup/cri-runtime -mindepth 2 -type d | wc -l) cgroups" '0 cgroups'
  ((bad == 0)) || journalctl -u cri-runtime --no-pager | tail -n 40
}

case $1 in make-run) make_run ;; node) node ;; systemd) systemd ;; esac
exit $bad
