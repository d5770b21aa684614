#!/usr/bin/env bash
# Run what cluster/geochip.def would do in a build, without Apptainer: in a fresh Debian, made by debootstrap.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: cluster/dev/check_definition.sh DIR      as root; DIR is made, and removed again

%files, %post and %test of cluster/geochip.def in a root of their own: a Debian of the definition's release with a Python
in the place where the image of Docker Hub has it. Takes minutes and some GB: PyTorch is installed with all it brings.
TEXT
}
fail() {
  printf 'check_definition.sh: %s\n' "$1" >&2
  exit 2
}

[ $# -eq 1 ] || { usage >&2; exit 2; }
dir=$(readlink -m -- "$1")
here=$(dirname "$(readlink -f "$0")")
repository=$(readlink -f "$here/../..")
definition=$repository/cluster/geochip.def
[ "$(id -u)" = 0 ] || fail "run as root: debootstrap and chroot need it"
for program in debootstrap chroot unshare; do
  command -v "$program" >/dev/null || fail "$program is missing: apt-get install --no-install-recommends debootstrap"
done
[ ! -e "$dir" ] || fail "$dir exists; name a directory that does not"

# A section's lines, without its name.
section() {
  awk -v name="%$1" '/^%/ { inside = ($1 == name); next } inside' "$definition"
}
from=$(sed -n 's/^From: python:\(.*\)$/\1/p' "$definition")
[[ $from =~ ^(3\.[0-9]+)-slim-([a-z]+)$ ]] || fail "From: python:$from is not understood; python:3.N-slim-RELEASE is"
version=${BASH_REMATCH[1]} release=${BASH_REMATCH[2]}

mkdir -p "$dir"
trap 'rm -rf --one-file-system "$dir"' EXIT
root=$dir/root
echo "check_definition.sh: Debian $release with Python $version in $root"
debootstrap --variant=minbase --include="ca-certificates,python$version-venv,python3-distutils" "$release" "$root" \
  >"$dir/debootstrap.log" 2>&1 || { tail -n 20 "$dir/debootstrap.log" >&2; fail "debootstrap failed"; }

# How this machine reaches the outside is its own business, and that of no image.
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
if [ -f /etc/pip.conf ]; then cp -L /etc/pip.conf "$root/etc/pip.conf"; fi
# Debian's own Python installs no packages beside those of Debian.
chroot "$root" "python$version" -m venv /usr/local

cd "$repository"
while read -r source target; do
  [ -n "$source" ] || continue
  mkdir -p "$root$target"
  cp -a "$source" "$root$target"
done < <(section files)

# In namespaces of its own: what is mounted there is gone with it.
in_root() {
  section "$1" >"$root/section"
  echo "check_definition.sh: %$1"
  # shellcheck disable=SC2016 # expanded by that shell
  unshare --mount --pid --fork --propagation private sh -c '
    mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" &&
      exec chroot "$1" /usr/bin/env "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin" sh /section' sh "$root"
}
in_root post
in_root test
echo "check_definition.sh: all of it went through"
