#!/bin/bash
# units-guest.sh PACKAGE... - runs the tests of units.sh in the guest, each in its directory, one line for each package.
export PATH=$PATH:/share/go:/share/cache/bin CRI_RUNTIME_CACHE=/root/cache
# The disk, not tmpfs: the kernel mounts EROFS from files of a disk only.
export TMPDIR=/root/tmp
mkdir -p /root/tmp /root/cache && cp -r /share/cache/bin /root/cache/ && cp -r /share/tests /share/src/examples /root/ && mv /root/examples /root/tests/ || exit 1
bad=0
for package; do
  cd "/root/tests/$package" || exit 1
  began=${EPOCHREALTIME/./}
  # TestProgramSize asks Go about sources; -short leaves out half a gigabyte of log.
  timeout 300 "$PWD"/*.test -test.v -test.short -test.skip '^TestProgramSize$' -test.timeout 290s >log 2>&1; rc=$?
  printf '%-26s exit %d, %3d passed, %d failed, %d skipped, %6d ms\n' "$package" $rc "$(grep -c '^--- PASS' log)" \
    "$(grep -c '^--- FAIL' log)" "$(grep -c '^ *--- SKIP' log)" $(((${EPOCHREALTIME/./} - began) / 1000))
  # What may be missing: a later kernel, cgroup v1, Go's or the kernel's sources, and fsck.erofs, which asks no kernel.
  if grep -oE '_test.go:[0-9]+: (needs|this test needs|kernel has no|no kernel headers) .*' log |
    grep -vE 'needs kernel|needs cgroup v1|PIDFD_GET_INFO|kernel headers|program fsck.erofs'; then bad=1; echo "  skipped without a good reason"; fi
  if ((rc != 0)); then bad=1; grep -B8 -E '^ *--- FAIL|^panic|^fatal' log | tail -n 60; fi
done
exit $bad
