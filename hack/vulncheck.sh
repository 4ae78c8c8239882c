#!/bin/bash
# vulncheck.sh TOOL... - runs govulncheck by the given `go tool` command. Vulnerabilities that the code reaches fail; a database
# that cannot be reached is said and passed over, as builds without the internet are normal.
set -uo pipefail
out=$("$@" govulncheck ./... 2>&1)
case $? in
0) echo "govulncheck: nothing known" ;;
3) printf '%s\n' "$out" >&2; exit 3 ;;
*)
  if grep -q -e 'vuln.go.dev' <<<"$out"; then
    echo "govulncheck: not checked: ${out##*$'\n'}"
  else
    printf '%s\n' "$out" >&2; exit 1
  fi ;;
esac
