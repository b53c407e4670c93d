#!/usr/bin/env bash
# An appliance from files with a NAS server and an NFS export, used by a client, through the death of the daemon; and its complete removal.
#
#   scripts/lab-nas.sh up   [DIR]
#   scripts/lab-nas.sh down [DIR]
#
# DIR (default: .lab-nas in the source tree) is the appliance's. Needs root, directly or through sudo. ASHLAR=PATH uses that command instead of building one;
# ADDRESS=… is the server's address, which only this machine reaches.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin:${CARGO_HOME:-$HOME/.cargo}/bin"
verb=${1:-}
dir=${2:-$root/.lab-nas}
address=${ADDRESS:-10.77.0.2}

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
show() { printf '$'; printf ' %q' "$@"; printf '\n'; "$@"; }
die() { printf 'lab-nas: %s\n' "$*" >&2; exit 1; }
case $verb in up | down) ;; *) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 2 ;; esac

if [ -z "${ASHLAR:-}" ]; then
    ASHLAR=${CARGO_TARGET_DIR:-$root/target}/release/ashlar
    if [ "$verb" = up ]; then
        "$root/scripts/setup.sh" --nas
        say "Building"
        (cd "$root" && show cargo build --locked --release -p ashlar-tools)
    fi
fi
[ -x "$ASHLAR" ] || die "$ASHLAR is not there; make build"
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || die "NAS servers need root, and there is no sudo: run it as root"
    exec sudo env ASHLAR="$ASHLAR" ADDRESS="$address" "${BASH_SOURCE[0]}" "$verb" "$dir"
fi
ashlar() { show "$ASHLAR" --dir "$dir" "$@"; }

if [ "$verb" = down ]; then
    # A client that is mounted would wait for a server that never comes back.
    umount -f -l "$dir.mnt" 2>/dev/null || true
    rmdir "$dir.mnt" 2>/dev/null || true
    [ ! -e "$dir" ] || ashlar lab down
    exit
fi

say "An appliance from six files, a NAS server, a file system, an export"
ashlar lab up --disks 6 --disk-size 2G --tolerance double >/dev/null
ashlar nas server create files --address "$address"
ashlar nas fs create home --size 20G --server files
ashlar nas export create files:/home --fs home --access root
for _ in $(seq 100); do
    state=$("$ASHLAR" --dir "$dir" -o json nas server show files | jq -r .state)
    [ "$state" != running ] || break
    sleep 0.2
done
ashlar nas server show files
[ "$state" = running ] || die "the server does not come up; its logs are in $dir/log"

url() { echo "nfs://$address/home/$1?version=3"; }
say "A client that needs nothing of the kernel"
show nfs-cp /usr/bin/git "$(url git)"
show nfs-ls "nfs://$address/home?version=3"
# The kernel's own client, where there is one.
kernel=no
if modprobe -q -a nfs nfsv4 2>/dev/null || grep -qw nfs4 /proc/filesystems; then
    mkdir -p "$dir.mnt"
    show mount -t nfs -o vers=4.1 "$address:/home" "$dir.mnt" && kernel=yes
fi

say "The daemon is killed while a client writes"
if [ $kernel = yes ]; then
    (for n in $(seq 200); do echo "line $n"; sleep 0.02; done) >"$dir.mnt/log" &
    sleep 1
fi
ashlar lab kill
ashlar lab start
if [ $kernel = yes ]; then
    wait
    show tail -n 1 "$dir.mnt/log"
fi
for _ in $(seq 100); do cmp -s /usr/bin/git <(nfs-cat "$(url git)" 2>/dev/null) && break; sleep 0.2; done
nfs-cat "$(url git)" | cmp - /usr/bin/git
echo "the file is there, byte for byte"

cat <<MSG

Next:
  export ASHLAR_DIR='$dir'
  ashlar nas server show files
  ashlar nas export set files:/home --rw 10.0.0.0/8
  ashlar nas snapshot create home@now
  mount -t nfs $address:/home /mnt          # where the kernel has a client of NFS
  make lab-nas-down                         # removes every trace
MSG
