#!/usr/bin/env bash
# Runs every RUN line of deploy/cluster/Dockerfile in a fresh Debian root, as far as that goes without a container registry:
#
#   tests/deploy/cluster/try_image.sh ROOT [cpu|gpu]     # as root; needs debootstrap and a Debian mirror; about 6 GB
#
# Debian 12's own Python 3.11 stands in for that of the image python:3.12-slim-bookworm. With `cpu`, the default, the CPU set
# is installed instead of the GPU's. pip's settings (PIP_*) are passed on; directories that they name are shared when
# BIND lists them. At the end the image's user runs `terse doctor` and `terse plan`, with no git and a home of nobody.
set -euo pipefail
root=$1 extra=${2:-cpu}
here=$(cd "$(dirname "$0")/../../.." && pwd)
dockerfile=$here/deploy/cluster/Dockerfile

[ -e "$root/bin/sh" ] || debootstrap --variant=minbase --include=ca-certificates,python3,python3-pip,python3-venv bookworm "$root"
mkdir -p "$root/opt/terse" "$root/proc" "$root/dev/shm"
for source in $(sed -n 's/^COPY \(.*\) [^ ]*$/\1/p' "$dockerfile") "constraints-$extra.txt"; do
  cp -r "$here/$source" "$root/opt/terse/"
done
mounted=()
trap 'for place in "${mounted[@]}"; do umount "$place"; done' EXIT
share() { mkdir -p "$root$1"; mount --bind "$1" "$root$1"; mounted=("$root$1" "${mounted[@]}"); }
share /dev
share /proc
for place in ${BIND:-}; do share "$place"; done
cp /etc/resolv.conf "$root/etc/resolv.conf" 2> /dev/null || true

# A virtual environment in the place of the image's own Python; every later line finds its pip and terse first.
inside() { chroot "$root" /usr/bin/env -i PATH=/opt/venv/bin:/usr/bin:/bin:/usr/sbin:/sbin $(env | grep '^PIP_' || true) "$@"; }
[ -e "$root/opt/venv/bin/pip" ] || inside python3 -m venv /opt/venv

sed -e ':a' -e '/\\$/N; s/\\\n//; ta' "$dockerfile" | sed -n 's/^RUN //p' | while IFS= read -r line; do
  [ "$extra" = gpu ] || line=${line//gpu/cpu}
  case $line in useradd*) inside id terse > /dev/null 2>&1 && continue ;; esac
  echo "RUN $line"
  inside sh -ec "cd /opt/terse && $line"
done
[ "$extra" = gpu ] || inside pip uninstall --quiet --yes torchvision torchaudio torchcodec

! inside sh -c 'command -v git' || { echo "git is in the image: reports must do without" >&2; exit 1; }
for command in "terse doctor --config quickstart" "terse plan --config quickstart run.dir=/data/runs"; do
  echo "as the image's user: $command"
  inside chroot --userspec=1000:1000 / /usr/bin/env HOME=/nonexistent TERSE_COMMIT=tried PATH=/opt/venv/bin:/usr/bin:/bin \
    sh -c "cd /data && $command" || { [ "${command%% --*}" = "terse doctor" ] && echo "(doctor found something, see above)"; }
done
