#!/usr/bin/env bash
# In the guest, as a service of systemd: the package on a machine with a real kernel, ublk and file systems in use.
#
#   package.sh FIRST.deb [SECOND.deb]
#
# Without a second package only the start and the stop of the machine are tried. Ends by stopping the machine; what is left to check then is in the script it leaves behind.
set -euo pipefail
first=$1 second=${2:-}
log=$ASHLAR_VM_DIR/daemon.log

step() { printf 'package: %s (%s s)\n' "$*" "$(cut -d . -f 1 /proc/uptime)"; }
die() { printf 'package: FAILED: %s\n' "$*"; exit 1; }
trap 'status=$?; [ $status = 0 ] || { set +e; systemctl --no-pager status ashlar; journalctl --no-pager -n 60; tail -n 40 "$log"; exit $status; }' EXIT
expect() {
    local what=$1
    shift
    "$@" || die "$what"
}
refuse() { ! "$@"; }
install_package() { dpkg --force-unsafe-io --no-triggers -i "$1" >/tmp/dpkg 2>&1 || { cat /tmp/dpkg; die "$1 does not install"; }; }
main() { systemctl show -P MainPID ashlar; }

step "install"
install_package "$first"
expect "it is not enabled" systemctl -q is-enabled ashlar
systemctl start ashlar
expect "it runs without drives" refuse systemctl -q is-active ashlar
expect "it failed without drives" refuse systemctl -q is-failed ashlar
ashlar pool create store --disk /dev/disk/by-id/virtio-pool{0,1,2} --tolerance single --force --config /etc/ashlar/ashlar.toml >/dev/null
sed -i '1i memory = "256M"' /etc/ashlar/ashlar.toml
printf '[log]\nfile = "%s"\n' "$log" >>/etc/ashlar/ashlar.toml
systemctl start ashlar
expect "it does not run" systemctl -q is-active ashlar

step "volumes, one mounted by its unit and one by hand"
for name in files byhand; do
    ashlar volume create $name --size 256M >/dev/null
    ashlar volume attach $name --via ublk >/dev/null
done
udevadm settle
expect "systemd does not know /dev/ashlar/files" systemctl -q is-active dev-ashlar-files.device
for name in files byhand; do mkfs.ext4 -q /dev/ashlar/$name; done
udevadm settle
uuid=$(blkid -o value -s UUID /dev/ashlar/files)
expect "there is no name by UUID" test -e "/dev/disk/by-uuid/$uuid"
mkdir -p /srv/files /srv/byhand
echo '/dev/ashlar/files /srv/files ext4 _netdev,nofail 0 2' >>/etc/fstab
systemctl daemon-reload
systemctl start srv-files.mount
mount /dev/ashlar/byhand /srv/byhand
# A loop file by FUSE beside them, as the unit's restrictions must let it.
ashlar volume create loop --size 64M >/dev/null
loop=$(ashlar volume attach loop --via fuse --loop)
expect "$loop is no block device here" test -b "$loop"
ashlar volume detach loop

work() {
    local n=0
    while [ ! -e /run/stop ]; do
        n=$((n + 1))
        head -c 2M /dev/urandom >"$1/file"
        sum=$(cksum <"$1/file")
        sync -f "$1"
        echo 1 >/proc/sys/vm/drop_caches
        [ "$(cksum <"$1/file")" = "$sum" ] || { echo "$1 reads other data" >/run/wrong; return 1; }
        echo $n >"/run/rounds.${1##*/}"
    done
}
work /srv/files & one=$!
work /srv/byhand & two=$!

under_load() {
    local before
    step "restarts under it"
    for _ in 1 2; do
        before=$(main)
        sleep 2
        systemctl restart ashlar
        expect "it is the same process" test "$(main)" != "$before"
        expect "a mount is gone" mountpoint -q /srv/files
        expect "a mount is gone" mountpoint -q /srv/byhand
    done
    step "an upgrade of the package under it"
    before=$(main)
    sleep 2
    install_package "$second"
    grep took /tmp/dpkg || { cat /tmp/dpkg; die "the daemon did not hand over"; }
    expect "it is another process" test "$(main)" = "$before"
    expect "it is the old program" test "$(readlink "/proc/$before/exe")" = /usr/bin/ashlar
    expect "it is not active but $(systemctl is-active ashlar)" systemctl -q is-active ashlar
    systemctl reload ashlar
    expect "it is another process" test "$(main)" = "$before"
    expect "the package goes although its volumes are mounted" refuse dpkg -r ashlar
    systemctl kill --signal=KILL ashlar
    for _ in $(seq 50); do
        systemctl -q is-active ashlar && [ "$(main)" != "$before" ] && break
        sleep 0.5
    done
    expect "it is not started again after a kill" systemctl -q is-active ashlar
}
if [ -n "$second" ]; then under_load; fi
sleep 2
touch /run/stop
wait $one || die "$(cat /run/wrong)"
wait $two || die "$(cat /run/wrong)"
step "$(cat /run/rounds.files) and $(cat /run/rounds.byhand) rounds of work"

step "the machine stops"
echo --- >>"$log"
cat >"$ASHLAR_VM_DIR/at-shutdown" <<'CHECK'
ended=$(sed -n '/^---$/,$p' "$ASHLAR_VM_DIR/daemon.log")
case $ended in
*"in use wait"*) echo "package: FAILED: the daemon stopped before what is on its devices: $ended"; exit 1 ;;
*"the pool is closed"*) echo "package: the machine stopped in order"; exit 0 ;;
*) echo "package: FAILED: the daemon was not stopped in order: $ended"; exit 1 ;;
esac
CHECK
trap - EXIT
systemctl --no-block poweroff
sleep 300
die "the machine does not stop"
