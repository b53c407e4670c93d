#!/usr/bin/env bash
# Makes two generations of a Debian root tree as ext4 images: tools/bench/trees.sh DIR. Needs root, debootstrap, e2fsprogs.
# The second generation is a copy of the first, upgraded, with a compiler and some tools installed.
set -euo pipefail
dir=${1:?usage: trees.sh DIR}
suite=bookworm
mkdir -p "$dir/cache"
cd "$dir"
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $suite" 'Component: main' | head -1)
[ -n "$mirror" ] || { echo "trees.sh: apt knows no archive of $suite; add one and run apt-get update" >&2; exit 1; }
rm -rf gen1 gen2
debootstrap --variant=minbase --cache-dir="$PWD/cache" \
    --include=python3,perl,openssh-client,git,ca-certificates,vim-tiny,curl "$suite" gen1 "$mirror" >gen1.log
cp -a gen1 gen2
cp /etc/resolv.conf gen2/etc/
cp -r /etc/apt/apt.conf.d/. gen2/etc/apt/apt.conf.d/
find /etc/apt/sources.list.d -name 'debian*.sources' -exec cp {} gen2/etc/apt/sources.list.d/ \;
{
    chroot gen2 apt-get update
    DEBIAN_FRONTEND=noninteractive chroot gen2 apt-get -y upgrade
    DEBIAN_FRONTEND=noninteractive chroot gen2 apt-get -y --no-install-recommends install rsync less gcc libc6-dev
} >gen2.log
for generation in gen1 gen2; do
    rm -rf "$generation"/var/cache/apt/archives/*.deb "$generation.img"
    truncate -s 1G "$generation.img"
    mkfs.ext4 -q -d "$generation" "$generation.img"
    echo "$PWD/$generation.img"
done
rm -rf gen1 gen2
