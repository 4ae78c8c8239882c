# stage.sh - sets share: a directory with all that the guest gets to see as /share, removed when the caller ends. Nothing is
# compiled in the guest: the programs are built here. Hard links where possible, as the guest only reads it.
root=$here/../..
. "$here/cache.sh"
share=$(mktemp -d "$cache/cgroup2-share.XXXXXX")
trap 'rm -rf "$share"' EXIT
mkdir -p "$share/cache" "$share/bin" "$share/src/test"
(cd "$root" && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$share/bin/" ./cmd/... ./test/images)
cp -al "$cache/bin" "$share/cache/bin"
cp -a "$root/Makefile" "$root/hack" "$root/examples" "$root/contrib" "$share/src/"
cp -a "$here" "$share/src/test/"
# The guest's `go build` hands over what was built here, so that `make run` and tests that build programs run as they are.
mkdir "$share/go"
cat >"$share/go/go" <<'EOF'
#!/bin/bash
[[ $1 == build ]] || { echo "go: in this guest there is only go build" >&2; exit 1; }
for a; do
  case $last in -o) out=$a ;; esac
  case $a in . | ./* | ../*) what=$a ;; esac
  last=$a
done
case $what in
.) exec cp "/share/bin/${PWD##*/}" "$out" ;;
*/cmd/...) exec cp /share/bin/cri-* "$out" ;;
*) exec cp "/share/bin/${what##*/}" "$out" ;;
esac
EOF
chmod 755 "$share/go/go"
