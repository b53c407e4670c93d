#!/usr/bin/env bash
# A whole appliance from files on this machine, with a mounted volume of real data; and its complete removal.
#
#   scripts/lab.sh up   [--dir DIR] [--disks 6] [--disk-size 2G] [--tolerance double] [--data-mib 300]
#   scripts/lab.sh down [--dir DIR]
#
# DIR (default: .lab in the source tree) gets appliance/ (disks, state, socket) and mnt/ (the mounted file system).
# Needs root, directly or through sudo, for the loop device and the mount; needs /dev/fuse.
# ASHLAR=PATH uses that command instead of building one.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin:${CARGO_HOME:-$HOME/.cargo}/bin"

dir=$root/.lab
disks=6
disk_size=2G
tolerance=double
data_mib=300
volume=data
marker=.ashlar-lab

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
die() { printf 'lab: %s\n' "$*" >&2; exit 1; }
usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }
# Shows a command, then runs it.
show() { printf '$'; printf ' %q' "$@"; printf '\n'; "$@"; }

# ---------------------------------------------------------------- what the machine must have

preflight() {
    local lacks=()
    [ "$(id -u)" != 0 ] || modprobe -q -a fuse loop ext4 2>/dev/null || true
    [ "$(id -u)" = 0 ] || command -v sudo >/dev/null ||
        lacks+=("root: you are $(id -un) and there is no sudo. Run it as root.")
    [ -e /dev/fuse ] ||
        lacks+=("/dev/fuse: the kernel module fuse is not loaded (modprobe fuse), or the container was not given the device (--device /dev/fuse --cap-add SYS_ADMIN).")
    [ -e /dev/loop-control ] ||
        lacks+=("/dev/loop-control: the kernel module loop is not loaded (modprobe loop), or the container was not given loop devices (--privileged).")
    grep -qw ext4 /proc/filesystems || [ "$(id -u)" != 0 ] ||
        lacks+=("ext4: the kernel cannot mount it.")
    local free
    mkdir -p "$dir"
    free=$(df --output=avail -BM "$dir" | tail -n 1 | tr -dc 0-9)
    [ "$free" -gt $((data_mib * 4 + 2048)) ] || lacks+=("space: $free MiB are free under $dir, $((data_mib * 4 + 2048)) are needed (LAB=DIR chooses another place).")
    [ ${#lacks[@]} = 0 ] && return
    rmdir "$dir" 2>/dev/null || true
    printf 'lab: this machine lacks what the laboratory with a mounted volume needs:\n' >&2
    printf '  - %s\n' "${lacks[@]}" >&2
    cat >&2 <<MSG
An appliance without a mount needs none of this, and runs as any user:
    make build
    target/release/ashlar lab up --dir /tmp/lab
    target/release/ashlar --dir /tmp/lab volume create $volume --size 20G
    target/release/ashlar --dir /tmp/lab volume attach $volume --via nbd
MSG
    exit 2
}

find_ashlar() {
    if [ -n "${ASHLAR:-}" ]; then
        [ -x "$ASHLAR" ] || die "ASHLAR=$ASHLAR is not an executable file"
        return
    fi
    ASHLAR=${CARGO_TARGET_DIR:-$root/target}/release/ashlar
}

# ---------------------------------------------------------------- up

up() {
    preflight
    "$root/scripts/setup.sh"
    if [ -z "${ASHLAR:-}" ]; then
        say "Building"
        (cd "$root" && show cargo build --locked --release -p ashlar-tools)
    fi
    find_ashlar
    # A FUSE file is open only to the user who mounted it, and loop devices are root's: the appliance runs as root.
    if [ "$(id -u)" != 0 ]; then
        exec sudo env ASHLAR="$ASHLAR" "${BASH_SOURCE[0]}" raise "${arguments[@]}"
    fi
    raise
}

raise() {
    find_ashlar
    local app=$dir/appliance mnt=$dir/mnt
    if [ -e "$dir/$marker" ]; then
        if mountpoint -q "$mnt" && "$ASHLAR" --dir "$app" pool status >/dev/null 2>&1; then
            echo "lab: it is up already, in $dir"
            next_commands
            return
        fi
        die "what is in $dir is not whole (an interrupted start?): run 'make lab-down' first"
    fi
    [ ! -d "$dir" ] || [ -z "$(ls -A "$dir")" ] || die "$dir is not empty and not a laboratory: choose another directory (LAB=DIR)"
    mkdir -p "$mnt"
    touch "$dir/$marker"
    trap 'echo "lab: it stopped half way; look around, then: make lab-down" >&2' ERR

    say "An appliance from $disks files of $disk_size"
    show "$ASHLAR" lab up --dir "$app" --disks "$disks" --disk-size "$disk_size" --tolerance "$tolerance"

    say "A thin volume, larger than the pool, as a block device with ext4"
    show "$ASHLAR" --dir "$app" volume create $volume --size 20G
    local file dev
    file=$("$ASHLAR" -o json --dir "$app" volume attach $volume --via fuse | jq -re '.path')
    printf '$ ashlar --dir %q volume attach %s --via fuse\n%s\n' "$app" $volume "$file"
    dev=$(losetup --find --show --direct-io=on --sector-size 4096 "$file")
    printf '$ losetup --find --show --direct-io=on --sector-size 4096 %q\n%s\n' "$file" "$dev"
    show mkfs.ext4 -q -m 0 -L ashlar-lab "$dev"
    show mount "$dev" "$mnt"

    say "Real data, twice"
    list_data >"$dir/list"
    printf '%s files, %s MiB: this source tree, headers, libraries\n' "$(tr -dc '\0' <"$dir/list" | wc -c)" "$(data_size)"
    local copy
    for copy in first second; do
        mkdir "$mnt/$copy"
        tar -C / --null --no-recursion --hard-dereference -cf - -T "$dir/list" | tar -C "$mnt/$copy" -xf -
        show sync -f "$mnt"
        echo "-- after the $copy copy:"
        show "$ASHLAR" --dir "$app" volume list
    done
    show "$ASHLAR" --dir "$app" pool status

    say "Reading back"
    (cd / && xargs -0 sha256sum <"$dir/list") >"$dir/sums"
    umount "$mnt" && mount "$dev" "$mnt" # nothing may come from the page cache of the file system
    for copy in first second; do
        (cd "$mnt/$copy" && sha256sum --quiet -c "$dir/sums") || die "the $copy copy differs from its source"
    done
    echo "both copies are equal to their sources"
    trap - ERR
    next_commands
}

# Names of regular files relative to /, separated by NUL, of about data_mib MiB in all.
list_data() {
    local libraries
    libraries=/usr/lib/$(cc -dumpmachine 2>/dev/null || echo x86_64-linux-gnu)
    {
        git -c safe.directory="$root" -C "$root" ls-files -z 2>/dev/null | while IFS= read -r -d '' f; do
            [ ! -f "$root/$f" ] || [ -L "$root/$f" ] || printf '%s\t%s\0' "$(stat -c %s "$root/$f")" "${root#/}/$f"
        done
        local tree
        for tree in /usr/include "$libraries" /usr/share; do
            [ ! -d "$tree" ] || find "$tree" -xdev -type f -readable -size -65536k -printf '%s\t%P\0' |
                LC_ALL=C sort -z -t $'\t' -k 2 | sed -z "s|\t|\t${tree#/}/|"
        done
    } | awk -v RS='\0' -v ORS='\0' -v most=$((data_mib << 20)) '
        { tab = index($0, "\t"); size = substr($0, 1, tab - 1); if (sum + size > most) next; sum += size; print substr($0, tab + 1) }'
}

data_size() { (cd / && xargs -0 stat -c %s <"$dir/list") | awk '{ sum += $1 } END { printf "%d", sum / 1048576 }'; }

next_commands() {
    local app
    app=$(printf %q "$dir/appliance")
    cat <<MSG

== It is mounted on $dir/mnt. What to try next:

    alias ashlar='$ASHLAR'
    export ASHLAR_DIR=$app
    ls ${app%/*}/mnt/first
    ashlar pool status
    ashlar pool stats
    ashlar volume list -o json
    ashlar disk list
    ashlar lab disk-pull 2          # pull a disk: everything stays readable and writable
    ashlar lab disk-push 2
    ashlar lab disk-corrupt 3       # rot: what is read stays right
    ashlar disk show 3
    ashlar pool check
    ashlar volume create other --size 5G
    ashlar volume attach other --via nbd
    make lab-down${make_lab}    # remove every trace
MSG
}

# ---------------------------------------------------------------- down

# Mount points below DIR, and of loop devices over files below DIR, last mounted first. Octal escapes are undone.
our_mounts() {
    local sources
    sources=$(our_loops | tr '\n' ' ')
    awk -v below="$dir/" -v loops=" $sources" '{
        point = $5; for (i = 6; $i != "-"; i++); source = $(i + 2)
        gsub(/\\040/, " ", point)
        if (index(point "/", below) == 1 || index(loops, " " source " ")) print point
    }' /proc/self/mountinfo | tac
}

our_loops() {
    local entry backing
    for entry in /sys/block/loop*/loop/backing_file; do
        [ -e "$entry" ] || continue
        backing=$(cat "$entry" 2>/dev/null) || continue
        case ${backing% (deleted)} in
        "$dir"/*) entry=${entry#/sys/block/}; echo "/dev/${entry%%/*}" ;;
        esac
    done
}

# Processes of an ashlar command that were given a path below DIR.
our_daemons() {
    local pid exe
    for pid in $(cd /proc && echo [0-9]*); do
        exe=$(readlink "/proc/$pid/exe" 2>/dev/null) || continue
        exe=${exe% (deleted)}
        [ "${exe##*/}" = ashlar ] || continue
        tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF -- "$dir/" && echo "$pid"
    done
    return 0
}

unmount_all() {
    local point
    our_mounts | while IFS= read -r point; do
        umount "$point" 2>/dev/null || umount -l "$point" 2>/dev/null || fusermount3 -u -z "$point" || true
    done
}

down() {
    if [ ! -e "$dir/$marker" ]; then
        [ ! -e "$dir" ] || [ -z "$(ls -A "$dir")" ] || die "$dir is not a laboratory of this script: nothing removed"
        rmdir "$dir" 2>/dev/null || true
        echo "lab: nothing is there in $dir"
        return
    fi
    find_ashlar
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || die "the laboratory was made by root: run this as root"
        exec sudo env ASHLAR="$ASHLAR" "${BASH_SOURCE[0]}" down "${arguments[@]}"
    fi
    # The appliance unmounts what is on its volumes, detaches loop devices, and ends. Somebody still at work there is not robbed.
    local failed=0
    if [ -x "$ASHLAR" ] && [ -d "$dir/appliance" ]; then
        timeout 120 "$ASHLAR" lab down --dir "$dir/appliance" || failed=$?
        [ $failed != 4 ] || die "nothing was removed"
        [ $failed = 0 ] || echo "lab: 'ashlar lab down' failed; removing by force" >&2
    fi
    local pid round dev
    for round in TERM KILL; do
        for pid in $(our_daemons); do kill -s $round "$pid" 2>/dev/null || true; done
        for _ in $(seq 50); do [ -n "$(our_daemons)" ] || break; sleep 0.1; done
    done
    unmount_all
    for dev in $(our_loops); do losetup -d "$dev" || true; done
    # A loop device lets go of its file a moment later.
    for _ in $(seq 50); do [ -n "$(our_loops)$(our_mounts)" ] || break; sleep 0.1; done
    local left
    left="$(our_daemons) $(our_mounts) $(our_loops)"
    [ -z "${left//[[:space:]]/}" ] || die "these could not be removed (still in use?): $left"
    rm -rf --one-file-system "$dir"
    echo "lab: every trace of $dir is removed"
}

# ---------------------------------------------------------------- command line

[ $# -gt 0 ] || { usage; exit 2; }
command=$1
shift
arguments=("$@")
make_lab=
while [ $# -gt 0 ]; do
    case $1 in
    --dir | --disks | --disk-size | --tolerance | --data-mib) [ $# -gt 1 ] || die "$1 needs a value" ;;
    -h | --help) usage; exit 0 ;;
    *) die "unknown option '$1'; see --help" ;;
    esac
    case $1 in
    --dir) dir=$2 ;;
    --disks) disks=$2 ;;
    --disk-size) disk_size=$2 ;;
    --tolerance) tolerance=$2 ;;
    --data-mib) data_mib=$2 ;;
    esac
    shift 2
done
[[ $data_mib =~ ^[1-9][0-9]*$ ]] || die "--data-mib takes a whole number"
dir=$(realpath -m -- "$dir")
[ "$dir" != / ] || die "not there"
[ "$dir" = "$root/.lab" ] || make_lab=" LAB=$(printf %q "$dir")"
case $command in
up) up ;;
raise) raise ;;
down) down ;;
-h | --help | help) usage ;;
*) die "unknown command '$command'; see --help" ;;
esac
