#!/bin/bash
# build.sh [uml] [tcg] - makes what run.sh boots, once, in the cache (see cache.sh); uml when nothing is named:
#   root.img   Debian root filesystem (ext4)     vmlinuz  Debian's 6.12 cloud kernel, for qemu (tcg)
#   linux      user-mode Linux built from Debian's linux-source-6.12 (uml)
# Needs root and Debian 12 with its security suite; installs the Debian packages that it needs. uml compiles for 5 to 10 minutes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/cache.sh"
engines=${*:-uml}
for engine in $engines; do
  [[ $engine == uml || $engine == tcg ]] || { sed -n 2,5p "$0" >&2; exit 2; }
done
mkdir -p "$dir"; cd "$dir"
exec 9>lock; flock 9 # a second build waits, and then finds everything made
renice -n 10 $BASHPID >/dev/null
say() { echo "cgroup2: $*" >&2; }

# sudo and apparmor: critest loads its AppArmor profiles by sudo apparmor_parser.
packages=systemd,systemd-sysv,dbus,udev,kmod,mount,iproute2,iptables,nftables,procps,conntrack,socat,util-linux
# busybox-static and make: what `make run` wants.
packages+=,busybox-static,make,ca-certificates,apparmor,sudo,curl,e2fsprogs,iputils-ping,jq,strace,libseccomp2,crun${CGROUP2_PACKAGES:+,$CGROUP2_PACKAGES}
made_of="$packages $(cksum <"$here/guest.sh")"
[[ $(cat root.packages 2>/dev/null) == "$made_of" ]] || rm -f root.img

need=()
[[ -f root.img ]] || need+=(mmdebstrap e2fsprogs)
[[ $engines == *tcg* ]] && need+=(qemu-system-x86 mmdebstrap e2fsprogs)
[[ $engines == *uml* && ! -x linux ]] && need+=(gcc libc6-dev make flex bison bc xz-utils)
((${#need[@]} == 0)) || "$here/../../hack/debian.sh" "${need[@]}"

# Debian 12 has its 6.12 kernels in the security suite.
if [[ ! -f root.img || ! -x linux ]] && ! apt-cache show linux-source-6.12 >/dev/null 2>&1; then
  apt-get -qq update >&2
  apt-cache show linux-source-6.12 >/dev/null 2>&1 || { say "apt knows no linux-source-6.12: is Debian 12's security suite in its sources?"; exit 1; }
fi

kernel_package() { # newest 6.12 cloud kernel that apt knows
  apt-cache pkgnames linux-image-6.12 | grep -E '^linux-image-6\.12\.[0-9]+\+deb12-cloud-amd64$' | sort -V | tail -n 1
}

if [[ $engines == *tcg* && ! ( -f vmlinuz && -f root.img ) ]]; then # the root image holds the kernel's modules
  rm -rf kernel root.img; mkdir kernel
  (cd kernel; apt-get -q download "$(kernel_package)" >/dev/null 2>&1; dpkg -x ./*.deb .)
  cp kernel/boot/vmlinuz-* vmlinuz
fi

if [[ ! -f root.img ]]; then
  say "making the root filesystem (about a minute)"
  rm -rf root; mmdebstrap --quiet --variant=minbase --include="$packages" bookworm root.tar
  mkdir root; tar -C root -xf root.tar; rm root.tar
  if [[ -d kernel/lib/modules ]]; then cp -a kernel/lib/modules root/usr/lib/; chroot root depmod "$(ls kernel/lib/modules)"; fi
  install -m 755 "$here/guest.sh" root/guest.sh
  # systemd boots (run.sh -S) run the same job as a unit, and nothing slow beside it
  printf '[Unit]\nDescription=job\nAfter=basic.target\n[Service]\nType=oneshot\nStandardOutput=null\nStandardError=null\nDelegate=yes\nExecStart=/guest.sh job\n' >root/etc/systemd/system/job.service
  printf '[Unit]\nDescription=job\nRequires=basic.target job.service\nAfter=job.service\nAllowIsolate=yes\n' >root/etc/systemd/system/job.target
  for unit in systemd-networkd systemd-resolved systemd-timesyncd e2scrub_reap apt-daily.timer apt-daily-upgrade.timer nftables apparmor systemd-udev-settle; do
    ln -sf /dev/null "root/etc/systemd/system/${unit%.timer}.$([[ $unit == *.timer ]] && echo timer || echo service)"
  done
  echo cgroup2 >root/etc/hostname; echo '127.0.0.1 localhost cgroup2' >root/etc/hosts; : >root/etc/fstab
  rm -f new.img; truncate -s "${CGROUP2_DISK:-12G}" new.img
  mke2fs -q -t ext4 -E lazy_itable_init=1,nodiscard -O ^has_journal -d root new.img
  rm -rf root; mv new.img root.img; echo "$made_of" >root.packages
fi

if [[ $engines == *uml* && ! -x linux ]]; then
  say "building user-mode Linux (5 to 10 minutes)"
  rm -rf src; mkdir src
  (cd src; apt-get -q download linux-source-6.12 >/dev/null 2>&1; dpkg -x ./*.deb .; tar -xf usr/src/linux-source-6.12.tar.xz)
  cd src/linux-source-6.12
  # Hosts with AMX have an 11 KiB xstate; the buffer in this version is 2696 bytes (boot dies: "ptrace set fp regs failed").
  sed -i 's/DEFINE_LONGS(HOST_FP_SIZE, 2696)/DEFINE_LONGS(HOST_FP_SIZE, 12288)/' arch/x86/um/user-offsets.c
  # kubelet (cadvisor) refuses to start without a clock speed in /proc/cpuinfo.
  sed -i 's/^\tseq_printf(m, "cache_alignment/\tseq_puts(m, "cpu MHz\\t\\t: 2000.000\\n");\n&/' arch/um/kernel/um_arch.c
  make -s ARCH=um defconfig
  scripts/kconfig/merge_config.sh -m .config "$here/uml.config" >/dev/null
  make -s ARCH=um olddefconfig
  make -s ARCH=um -j"$(nproc)" linux
  cd "$dir"; mv src/linux-source-6.12/linux linux; rm -rf src
fi
rm -rf kernel
say "ready in $dir"
