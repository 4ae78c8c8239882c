#!/bin/bash
# run.sh [-e uml|tcg] [-S] [-s DIR] [-o DIR] [-m MIB] [-c CPUS] [-t SECONDS] COMMAND [ARG...]
# Boots a fresh cgroup v2 guest, runs COMMAND in it as root, prints its output, and exits with its status (124: out of
# time; 125: the guest died, its console is printed). -s DIR is there as /share, read-only; what COMMAND leaves under /out
# comes back in -o DIR; -S boots systemd first; standard input, when it is a file or a pipe, is handed on (-i).
set -uo pipefail
. "$(dirname "$(realpath "$0")")/cache.sh"
engine= systemd= share= out= mem=3072 cpus=2 limit=600 stdin=
while getopts e:Ss:o:m:c:t:i opt; do
  case $opt in
  e) engine=$OPTARG ;; S) systemd=1 ;; s) share=$(realpath "$OPTARG") ;; o) out=$(realpath -m "$OPTARG") ;;
  m) mem=$OPTARG ;; c) cpus=$OPTARG ;; t) limit=$OPTARG ;; i) stdin=1 ;; *) exit 2 ;;
  esac
done
shift $((OPTIND - 1)); [[ $# -gt 0 ]] || { sed -n 2,5p "$0" >&2; exit 2; }
: "${engine:=$([[ -x $dir/linux ]] && echo uml || echo tcg)}"

[[ -f $dir/root.img && ( -x $dir/linux || -f $dir/vmlinuz ) ]] || { echo "run.sh: no guest yet: test/cgroup2/build.sh makes it" >&2; exit 3; }

work=$(mktemp -d /tmp/cgroup2.XXXXXX); trap 'rm -rf "$work"' EXIT
mkdir "$work/job" "$work/out"
{ echo '#!/bin/bash'; printf 'exec'; printf ' %q' "$@"; echo; } >"$work/job/run"; chmod 755 "$work/job/run"
[[ -n $stdin ]] && cat >"$work/job/stdin"
[[ -n $share ]] && echo "$share" >"$work/job/share"
append="rw quiet panic=-1 mitigations=off root=ROOT init=$([[ -n $systemd ]] && echo /sbin/init || echo /guest.sh)"
[[ -n $systemd ]] && append+=" systemd.unit=job.target systemd.show_status=0 systemd.unified_cgroup_hierarchy=1"

disk() { # disk DIR FILE: an ext4 image that holds DIR
  truncate -s "$(($(du -sm "$1" | cut -f1) * 5 / 4 + 16))M" "$2"
  mke2fs -q -t ext4 -O ^has_journal -d "$1" "$2"
}

case $engine in
uml)
  TMPDIR=/dev/shm timeout -k 2 "$limit" "$dir/linux" mem="${mem}M" ubd0="$work/root.cow,$dir/root.img" ${append/ROOT/\/dev\/ubda} \
    job="uml:$work" hostfs=/ con=null con0=null,fd:3 ssl=null ssl0=null,fd:1 </dev/null 3>"$work/console" 2>>"$work/console" & ;;
tcg)
  disk "$work/job" "$work/job.img"; disks=()
  # Debian's cloud kernel has NVMe built in (so no initrd is needed), virtio-blk as a module
  add() { disks+=(-drive "id=$1,if=none,file=$2,format=raw,cache=unsafe" -device "virtio-blk-pci,drive=$1,serial=$1"); }
  add job "$work/job.img"
  [[ -n $share ]] && { disk "$share" "$work/share.img"; add share "$work/share.img"; }
  truncate -s 2G "$work/out.img"; add out "$work/out.img"
  timeout -k 2 "$limit" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -m "$mem" -smp "$cpus" -display none -no-reboot -nodefaults \
    -kernel "$dir/vmlinuz" -append "console=ttyS0 job=disk ${append/ROOT/\/dev\/nvme0n1}" \
    -drive "id=root,if=none,file=$dir/root.img,format=raw,cache=unsafe,snapshot=on" -device nvme,drive=root,serial=root "${disks[@]}" \
    -serial "file:$work/console" -serial "file:$work/job/status" \
    -chardev stdio,id=c,signal=off -device virtio-serial-pci -device virtconsole,chardev=c </dev/null & ;;
*) echo "run.sh: engine uml or tcg" >&2; exit 2 ;;
esac
guest=$!; trap 'kill $guest; wait $guest' INT TERM
{ wait $guest; } 2>/dev/null; rc=$?
[[ $rc == 124 || $rc == 137 ]] && { echo "run.sh: not done in $limit s" >&2; exit 124; }
status=$(cat "$work/job/status" 2>/dev/null | tr -dc 0-9)
[[ -n $status ]] || { echo "run.sh: the guest died; its console:" >&2; tail -n 40 "$work/console" >&2; exit 125; }
if [[ -n $out ]]; then
  mkdir -p "$out"
  if [[ $engine == tcg ]]; then tar -C "$out" -xf "$work/out.img"; else cp -a "$work/out/." "$out/"; fi
fi
exit "$status"
