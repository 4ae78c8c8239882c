#!/bin/bash
# guest.sh - first process of the guest (or, as "guest.sh job", the unit that systemd runs): runs /job/run, hands back its
# output on $tty and its exit status, with what it left under /out. Kernel words: job=uml:DIR or job=disk, sys=1 for systemd.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
word() { tr ' ' '\n' </proc/cmdline | sed -n "s/^$1=//p" | head -n 1; }

setup() { # what an init system does, when there is none
  mount -t proc -o nosuid,nodev,noexec proc /proc
  mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
  mountpoint -q /dev || mount -t devtmpfs dev /dev
  mkdir -p /dev/pts /dev/shm /dev/mqueue
  mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
  mount -t tmpfs -o mode=1777 shm /dev/shm
  ln -sfn /proc/self/fd /dev/fd; for i in 0:stdin 1:stdout 2:stderr; do ln -sfn fd/${i%:*} /dev/${i#*:}; done # bash's <(...) wants them
  mount -t mqueue mqueue /dev/mqueue
  mount -t tmpfs -o mode=755 run /run
  mount -t tmpfs -o mode=1777 tmp /tmp
  mount -t securityfs securityfs /sys/kernel/security
  mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
  mount -t bpf bpf /sys/fs/bpf
  mount --make-rshared /
  for c in $(cat /sys/fs/cgroup/cgroup.controllers); do echo "+$c" >/sys/fs/cgroup/cgroup.subtree_control; done
  hostname cgroup2
  ip link set lo up
}

job() {
  mkdir -p /job /share /out
  case $(word job) in
  uml:*) d=$(word job); d=${d#uml:}; tty=/dev/ttyS0
    mount -t hostfs -o "$d/job" none /job; mount -t hostfs -o "$d/out" none /out
    [[ -e /job/share ]] && mount -t hostfs -o "$(cat /job/share)",ro none /share ;;
  disk) tty=/dev/hvc0
    for m in virtio_blk overlay veth bridge br_netfilter nf_tables xt_comment xt_mark xt_addrtype erofs loop; do modprobe -q $m; done
    for s in /sys/block/vd*/serial; do b=/dev/$(basename "${s%/serial}")
      case $(cat "$s") in out) outdisk=$b ;; job) mount -o ro "$b" /job ;; share) mount -o ro "$b" /share ;; esac
    done ;;
  esac 2>/dev/null
  stty -F $tty raw -echo
  cd /root; /job/run <$([[ -e /job/stdin ]] && echo /job/stdin || echo /dev/null) >$tty 2>&1; rc=$?
  if [[ $(word job) == disk ]]; then
    tar -C /out -cf "$outdisk" . 2>/dev/null; echo $rc >/dev/ttyS1
  else echo $rc >/job/status; fi
  sync; sleep 0.1; echo o >/proc/sysrq-trigger; sleep 5
}

if [[ $1 == job ]]; then job; else setup 2>/dev/null; job; fi
