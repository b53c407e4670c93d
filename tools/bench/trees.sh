#!/usr/bin/env bash
# Makes two generations of a Debian root tree as ext4 images: tools/bench/trees.sh DIR. Needs root, debootstrap, e2fsprogs.
# The second generation is a copy of the first, upgraded, with a compiler and some tools installed.
set -euo pipefail
dir=${1:?usage: trees.sh DIR}
suite=bookworm
mkdir -p "$dir"
cd "$dir"
[ ! -e trees ] || { echo "trees.sh: $PWD/trees is in the way" >&2; exit 1; }
mkdir -p cache trees
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $suite" 'Component: main' | head -1)
[ -n "$mirror" ] || { echo "trees.sh: apt knows no archive of $suite; add one and run apt-get update" >&2; exit 1; }
trap 'rm -rf --one-file-system "$PWD/trees"' EXIT
debootstrap --variant=minbase --cache-dir="$PWD/cache" \
    --include=python3,perl,openssh-client,git,ca-certificates,vim-tiny,curl "$suite" trees/gen1 "$mirror" >gen1.log
cp -a trees/gen1 trees/gen2
cp /etc/resolv.conf trees/gen2/etc/
# How this machine reaches the archive, not what it hooks into apt.
apt-config dump | grep -i '^Acquire::http' >trees/gen2/etc/apt/apt.conf.d/99host || true
find /etc/apt/sources.list.d -name 'debian*.sources' -exec cp {} trees/gen2/etc/apt/sources.list.d/ \;
{
    chroot trees/gen2 apt-get update
    DEBIAN_FRONTEND=noninteractive chroot trees/gen2 apt-get -y upgrade
    DEBIAN_FRONTEND=noninteractive chroot trees/gen2 apt-get -y --no-install-recommends install rsync less gcc libc6-dev
} >gen2.log
for generation in gen1 gen2; do
    rm -rf "trees/$generation"/var/cache/apt/archives/*.deb "$generation.img"
    truncate -s 1G "$generation.img"
    mkfs.ext4 -q -d "trees/$generation" "$generation.img"
    echo "$PWD/$generation.img"
done
[ -z "${SUDO_UID:-}" ] || chown "$SUDO_UID" . ./*.img
