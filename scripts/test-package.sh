#!/usr/bin/env bash
# Makes the Debian package of $ASHLAR_BIN and does with it what its users do, in a small Debian of its own: install, configure, serve by the unit's
# command line, write by NBD, restart, upgrade, remove, purge.
#
#   scripts/test-package.sh
#
# As root, after `scripts/setup.sh --package`. All mounts and processes are in namespaces of their own, so that nothing is left however it ends.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root_archive=/var/cache/ashlar-package/root.tar
binary=${ASHLAR_BIN:?name the program under test}

step() { printf 'package: %s\n' "$*"; }
die() { printf 'package: FAILED: %s\n' "$*" >&2; exit 1; }

if [ "${1:-}" != inside ]; then
    [ "$(id -u)" = 0 ] || die "root is needed"
    [ -e "$root_archive" ] || die "there is no $root_archive: scripts/setup.sh --package"
    work=$(mktemp -d "${TMPDIR:-/tmp}/ashlar-package.XXXXXX")
    inner=
    trap '[ -z "$inner" ] || kill -KILL $inner 2>/dev/null; wait; rm -rf --one-file-system "$work"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    unshare --mount --propagation private --pid --fork --kill-child "${BASH_SOURCE[0]}" inside "$work" &
    inner=$!
    status=0
    wait $inner || status=$?
    inner=
    exit $status
fi

work=$2
root=$work/root
began=$SECONDS
in_root() { chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive "$@"; }
on_failure() {
    [ $? = 0 ] || { echo '--- the daemon' >&2; tail -n 40 "$work/log" >&2 || true; }
}
trap on_failure EXIT
# What must hold, said once in words.
expect() {
    local what=$1
    shift
    "$@" || die "$what"
}
refuse() { ! "$@"; }

step "making two packages"
"$here/package.sh" --binary "$binary" --quick "$work" >"$work/first"
"$here/package.sh" --binary "$binary" --version 9.9 --quick "$work" >"$work/second"

step "a small Debian"
mkdir "$root"
tar -C "$root" --numeric-owner -xf "$root_archive" --exclude='./dev/*'
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755 dev "$root/dev"
for node in null zero full random urandom fuse; do
    [ -e "/dev/$node" ] || continue
    touch "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o mode=755 run "$root/run"
cp "$(cat "$work/first")" "$root/first.deb"
cp "$(cat "$work/second")" "$root/second.deb"

step "install"
in_root dpkg -i /first.deb >"$work/dpkg" 2>&1 || { cat "$work/dpkg" >&2; die "the package does not install"; }
expect "the installed command does not run" test "$(in_root ashlar --version)" = "$("$binary" --version)"
expect "the unit is not enabled" test -L "$root/etc/systemd/system/multi-user.target.wants/ashlar.service"
expect "there is no /dev/ashlar" test -d "$root/dev/ashlar"
in_root systemd-analyze --man=no verify /usr/lib/systemd/system/ashlar.service >"$work/verify" 2>&1 || die "systemd-analyze: $(cat "$work/verify")"
expect "systemd-analyze: $(cat "$work/verify")" refuse grep -i ashlar "$work/verify"
wrong=$(in_root dpkg -L ashlar | while IFS= read -r file; do
    mode=$(in_root stat -c '%U:%G %a %F' "$file")
    case "$file=$mode" in
    /usr/bin/ashlar='root:root 755 regular file' | /usr/lib/ashlar/*='root:root 755 regular file') ;;
    *='root:root 644 regular file' | *='root:root 755 directory') ;;
    *) echo "$file ($mode)" ;;
    esac
done)
expect "owners or modes: $wrong" test -z "$wrong"
(cd "$root" && md5sum --quiet -c var/lib/dpkg/info/ashlar.md5sums) || die "files differ from the package's list"
# Nothing is configured: the unit's own condition says so.
condition=$(sed -n 's/^ExecCondition=//p' "$root/usr/lib/systemd/system/ashlar.service")
expect "the unit would start without drives" refuse in_root sh -c "$condition"

step "a pool on files, served by the unit's command line"
mkdir "$root/srv/drives"
for n in 1 2 3; do truncate -s 512M "$root/srv/drives/$n"; done
in_root ashlar pool create store --disk /srv/drives/1 /srv/drives/2 /srv/drives/3 --tolerance single --config /etc/ashlar/ashlar.toml >/dev/null
sed -i '1i memory = "256M"' "$root/etc/ashlar/ashlar.toml"
expect "the unit would not start with drives" in_root sh -c "$condition"
expect "the comments of the configuration are gone" grep -q '^# Configuration of Ashlar' "$root/etc/ashlar/ashlar.toml"
cp "$root/etc/ashlar/ashlar.toml" "$work/configured"
command=$(sed -n 's/^ExecStart=//p' "$root/usr/lib/systemd/system/ashlar.service")
# As the service manager: hears what the daemon tells of itself.
python3 -c 'import os, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.bind(sys.argv[1]); os.chmod(sys.argv[1], 0o666)
while True: print(s.recv(4096).decode(), flush=True)' "$root/run/notify" >"$work/notified" &
daemon=$!
start() {
    # shellcheck disable=SC2086
    chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin NOTIFY_SOCKET=/run/notify $command >>"$work/log" 2>&1 &
    daemon=$!
    wait_for "the daemon is not ready" grep -q '^READY=1' "$work/notified"
}
wait_for() {
    local tries=300 what=$1
    shift
    until "$@" 2>/dev/null; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] && kill -0 $daemon || die "$what"
        sleep 0.1
    done
}
wait_for "nobody listens at the service manager's place" test -S "$root/run/notify"
stop() {
    kill $daemon
    wait $daemon || die "the daemon ended with status $?"
    expect "it did not tell that it stops" grep -q '^STOPPING=1' "$work/notified"
    : >"$work/notified"
}
uri="nbd+unix:///data?socket=$root/run/ashlar/nbd.sock"
mkdir -p "$root/run/ashlar" "$root/var/lib/ashlar"
start
in_root ashlar volume create data --size 64M >/dev/null
in_root ashlar volume attach data --via nbd >/dev/null
head -c 64M "$binary" >"$work/written"
truncate -s 64M "$work/written"
nbdcopy --flush "$work/written" "$uri"
same() { nbdcopy "$uri" "$work/read" && cmp "$work/written" "$work/read"; }

step "restart"
stop
start
expect "data is gone after a restart" same

step "upgrade"
in_root dpkg -i /second.deb >"$work/dpkg" 2>&1 || { cat "$work/dpkg" >&2; die "the second version does not install"; }
expect "the configuration was changed by the upgrade" cmp "$work/configured" "$root/etc/ashlar/ashlar.toml"
: >"$work/notified"
expect "the new program does not take over" in_root ashlar upgrade
expect "it did not tell that another program goes on" grep -q '^RELOADING=1' "$work/notified"
expect "it did not tell that it serves again" grep -q '^READY=1' "$work/notified"
expect "it is the old program still" test "$(readlink "$root/proc/$daemon/exe")" = "$root/usr/bin/ashlar"
expect "data is gone after an upgrade" same
in_root ashlar pool check >/dev/null || die "the pool is not sound"

step "remove"
# A stand-in for a volume by ublk that is mounted.
truncate -s 16M "$work/mounted"
if mkfs.ext4 -q "$work/mounted" && mount -o loop "$work/mounted" "$root/mnt"; then
    device=$(findmnt --noheadings --output SOURCE "$root/mnt")
    touch "$root$device"
    mount --bind "$device" "$root$device"
    ln -s "$device" "$root/dev/ashlar/mounted"
    expect "the package goes although a volume is mounted" refuse in_root dpkg -r ashlar >"$work/dpkg" 2>&1
    expect "it does not say why it stays: $(cat "$work/dpkg")" grep -q 'in use.*/dev/ashlar/mounted' "$work/dpkg"
    umount "$root/mnt"
    rm "$root/dev/ashlar/mounted"
else
    step "no loop devices here: that a mounted volume keeps the package is not tested"
fi
stop
in_root dpkg -r ashlar >"$work/dpkg" 2>&1 || { cat "$work/dpkg" >&2; die "the package does not go"; }
expect "the command is there still" refuse test -e "$root/usr/bin/ashlar"
expect "the configuration is gone" cmp "$work/configured" "$root/etc/ashlar/ashlar.toml"
expect "the daemon's state is gone" test -e "$root/var/lib/ashlar/events.jsonl"

step "purge"
in_root dpkg -P ashlar >"$work/dpkg" 2>&1 || { cat "$work/dpkg" >&2; die "the package is not purged"; }
for gone in /etc/ashlar /var/lib/ashlar /etc/systemd/system/multi-user.target.wants/ashlar.service; do
    expect "$gone is there still" refuse test -e "$root$gone" -o -L "$root$gone"
done
for n in 1 2 3; do expect "drive $n is gone" test "$(stat -c %s "$root/srv/drives/$n")" = 536870912; done

step "install again: the drives hold everything"
in_root dpkg -i /second.deb >"$work/dpkg" 2>&1 || { cat "$work/dpkg" >&2; die "the package does not install again"; }
cp "$work/configured" "$root/etc/ashlar/ashlar.toml"
mkdir -p "$root/run/ashlar" "$root/var/lib/ashlar"
start
expect "data is gone" same
stop
step "passed in $((SECONDS - began)) s"
